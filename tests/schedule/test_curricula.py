"""Curricula besides KPOD's: by hand, by name, one of the user's own, and following the student."""

import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import curricula
from kpod_jax.schedule.online import OnlineSchedule
from kpod_jax.schedule.protocol import Feedback, Setting, validated_start_steps
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

# 2, 1, 3 and no steps; means 1.5, 4, 1 and 0.
DIFFICULTY = Ragged.from_list([[1.0, 2.0], [4.0], [1.0, 1.0, 1.0], []], np.float64)
OPTIONS = {
    "initial_fraction": 0.25,
    "mixing": 0.5,
    "growth": 2,
    "p": 0.5,
    "beta": 12.0,
    "solver": "greedy",
}


def setting(**changes: Any) -> Setting:
    return Setting(DIFFICULTY, np.zeros(4, int), phases=6, ramp_phases=3, options=OPTIONS | changes)


def losses(*means: float) -> Feedback:
    """Of examples whose steps are all equally hard."""
    sizes = DIFFICULTY.lengths
    slices = [np.full(n, m) for n, m in zip(sizes, means, strict=True)]
    return Feedback(Ragged.from_list(slices, np.float64))


def test_full_rationale_outputs_every_step():
    plan = curricula.plan(curricula.make("full", setting()), 3, DIFFICULTY)
    assert plan.start_steps.tolist() == [[0] * 4] * 3
    assert plan.target is None and plan.remaining.tolist() == [10.0] * 3


def test_suffixes_grow_alike_until_the_ramp_ends():
    rows = curricula.plan(curricula.make("icl", setting(growth=1)), 6, DIFFICULTY).start_steps
    assert rows.tolist() == [[1, 0, 2, 0], [0, 0, 1, 0], *[[0] * 4] * 4]
    short = setting(growth=1)
    short = Setting(short.difficulty, short.clusters, 6, 1, short.options)
    assert not curricula.make("icl", short).start_steps(1).any()


def test_the_easiest_by_current_loss_take_part_first():
    """Self-paced: a quarter, a half, three quarters and all of four examples."""
    spl = curricula.make("spl", setting())
    order = losses(3.0, 1.0, 2.0, 9.0)  # The last has no steps, hence no loss.
    rows = [spl.start_steps(phase, order).tolist() for phase in range(4)]
    assert rows == [[3, 2, 4, 0], [3, 0, 4, 0], [3, 0, 0, 0], [0, 0, 0, 0]]


def test_adaptive_curriculum_mixes_the_initial_and_the_current_loss():
    # Initially 1.5, 4, 1; now 5, 1, 4: half of each is 3.25, 2.5, 2.5.
    now = losses(5.0, 1.0, 4.0, 0.0)
    assert curricula.make("acl", setting()).start_steps(1, now).tolist() == [3, 0, 4, 0]
    by_now = curricula.make("acl", setting(mixing=1.0)).start_steps(1, now)
    assert by_now.tolist() == curricula.make("spl", setting()).start_steps(1, now).tolist()
    by_initial = curricula.make("acl", setting(mixing=0.0))
    assert by_initial.start_steps(1, now).tolist() == [3, 2, 0, 0]


def test_a_curriculum_that_follows_the_student_is_planned_for_its_first_stage_alone():
    plan = curricula.plan(curricula.make("acl", setting()), 6, DIFFICULTY)
    assert plan.start_steps.tolist() == [[3, 2, 4, 0]] and plan.remaining.tolist() == [0]
    with pytest.raises(ValueError, match="current losses"):
        curricula.make("acl", setting()).start_steps(1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("icl", {"growth": 0}, "growth=0; .*at least 1 step per phase"),
        ("spl", {"initial_fraction": 2}, "initial_fraction=2"),
        ("acl", {"mixing": -1}, "mixing=-1"),
        ("no_such_package.module:Class", {}, "cannot be imported: No module named"),
        ("kpod_jax.schedule.curricula:NoSuch", {}, "cannot be imported: .*NoSuch"),
    ],
)
def test_bad_settings_are_named(name, changes, message):
    with pytest.raises(UserError, match=message):
        curricula.make(name, setting(**changes))


OWN = """
import numpy as np

class Backwards:
    needs_feedback = False
    def __init__(self, setting):
        self.n = setting.num_steps
    def start_steps(self, phase, feedback=None):
        return np.maximum(self.n - phase, 0)

class Bare:
    def __init__(self, setting):
        pass
"""


def test_a_curriculum_of_ones_own(tmp_path, monkeypatch):
    module = tmp_path / "my_own_curricula.py"
    module.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "my_own_curricula:Backwards"
    plan = curricula.plan(curricula.make(name, setting()), 3, DIFFICULTY, name)
    assert plan.start_steps.tolist() == [[2, 1, 3, 0], [1, 0, 2, 0], [0, 0, 1, 0]]
    assert [pathlib.Path(path) for path in plugins.source_files(name)] == [module]
    assert plugins.source_files("kpod") == plugins.source_files("no_such.package:Class") == []
    with pytest.raises(UserError, match="has no attribute needs_feedback"):
        curricula.make("my_own_curricula:Bare", setting())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            [0, 0, 0],
            r"mine returned start steps of shape \(3,\) and type int64 for phase 2; expected 4",
        ),
        ([0.0] * 4, "float64"),
        ([0, -1, 0, 0], "start step -1 for example 1 .* expected 0 to 1"),
        ([0, 0, 5, 0], "start step 5 for example 2 .* expected 0 to 3"),
    ],
)
def test_an_answer_that_is_no_schedule_is_named(answer, message):
    with pytest.raises(UserError, match=message):
        validated_start_steps(np.array(answer), DIFFICULTY.lengths, 2, "mine")


def test_choices_that_follow_the_student_are_kept_and_made_again_from_before_a_stage(tmp_path):
    spl, sizes = curricula.make("spl", setting()), DIFFICULTY.lengths
    path = tmp_path / "start_steps.npz"
    first = OnlineSchedule(spl, sizes, path, "spl")
    with pytest.raises(UserError, match=r"of 0 phases, .* in phase 0"):
        first(0)
    first.begin(0, losses(3.0, 1.0, 2.0, 0.0))
    first.begin(1, losses(3.0, 1.0, 2.0, 0.0))
    later = OnlineSchedule(spl, sizes, path, "spl")
    np.testing.assert_array_equal(later(1), first(1))
    assert later(1).tolist() == [3, 0, 4, 0]
    later.begin(1, losses(1.0, 3.0, 2.0, 0.0))  # The training went on from within phase 0.
    assert later(1).tolist() == [0, 2, 4, 0]
    with pytest.raises(UserError, match="If the file was deleted"):
        later(2)


def test_the_room_imports_no_jax():
    code = (
        "import sys\n"
        "from kpod_jax.schedule import clusters, curricula, kpod, online, solvers, value\n"
        "sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
