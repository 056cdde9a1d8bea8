"""Configuration keys of the release before still work."""

import subprocess
import sys

import pytest

from kpod_jax.config import defaults, loading
from kpod_jax.utils import config_dict
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _every_warning():
    config_dict._warn.cache_clear()


def test_every_new_name_exists_and_no_old_one_does():
    keys = config_dict.flatten(defaults.get_config())
    blocks = {key.split(".")[0] for key in keys}
    assert set(config_dict.RENAMED.values()) <= keys.keys() | blocks
    assert not set(config_dict.RENAMED) & (keys.keys() | blocks)


def test_an_old_name_reads_and_sets_the_new_key_and_warns_once(capsys):
    config = defaults.get_config()
    config.schedule.stage_steps = 7
    assert config.schedule.phase_steps == config.schedule.stage_steps == 7
    config.watch.hang_seconds = 5.0
    assert config.monitoring.hang_seconds == 5.0
    with config.unlocked():
        config.update_from_flattened_dict({"distill.keep": 3, "weighting.heads": 2})
    assert (config.distill.max_to_keep, config.weighting.num_heads) == (3, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "stage_steps is now phase_steps" in lines[0]
    # A key that another block still has is not renamed there.
    assert config.teacher.keep == "right"
    with pytest.raises(AttributeError):
        config.schedule.clear_share = 0.5


def test_old_names_in_python_and_in_a_run_of_the_version_before(tmp_path):
    assert loading.load_config(distill__least_weight=0.25).distill.min_weight == 0.25
    written = {
        "config": {"seed": 4, "schedule": {"ramp_share": 0.1}, "watch": {"profile_steps": 2}}
    }
    from kpod_jax.utils import files

    files.write_json(tmp_path / "config.json", written)
    config = loading.load_config(tmp_path)
    assert (config.seed, config.schedule.ramp_fraction, config.monitoring.profile_steps) == (
        4,
        0.1,
        2,
    )


def test_a_fingerprint_of_the_version_before_is_that_of_today():
    old = {
        "schedule.stage_steps": 3,
        "seed": 1,
        "training": {"distill.keep": 2, "file x": "digest"},
    }
    assert config_dict.current(old) == {
        "schedule.phase_steps": 3,
        "seed": 1,
        "training": {"distill.max_to_keep": 2, "file x": "digest"},
    }


def test_old_names_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "kpod_jax.main", "--config=configs/quickstart.py"]
    command += [f"--workdir={tmp_path}", "--config.schedule.ramp_share=7.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "ramp_share is now ramp_fraction" in done.stderr
    assert "schedule.ramp_fraction=7.5" in done.stderr
