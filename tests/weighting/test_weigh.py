import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.data.records import Record
from kpod_jax.parallel import sharding
from kpod_jax.training import checkpoints
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import learn, weigh
from kpod_jax.weighting.answerer_batch import make_answerer_batch, take
from tests.weighting import tiny

TRAIN, HELD_OUT = tiny.copying(21, 0), tiny.copying(10, 1)


def settings(**changes):
    config = defaults.get_config().weighting
    small = {
        "steps": 2,
        "fit_unmasked_steps": 0,
        "fit_masked_steps": 0,
        "batch_size": 8,
        "hidden_size": 8,
    }
    config.update(small | {"num_heads": 2, "min_gap": 0.0, "allow_failed": True} | changes)
    return config


def run(workdir, config, train=TRAIN, answerer=None, fresh=None):
    return weigh.weigh(
        config,
        tiny.student(),
        train,
        HELD_OUT,
        sharding.make_mesh(devices=jax.devices()[:1]),
        answerer=answerer or tiny.student(),
        fresh=fresh,
        workdir=workdir,
    )


def gap(none_masked, all_masked):
    return {
        "none_masked": none_masked,
        "all_masked": all_masked,
        "gap": all_masked - none_masked,
        "by_prefix": {"none_masked": [none_masked] * 10, "all_masked": [all_masked] * 10},
    }


def test_each_half_is_weighed_with_an_answerer_fit_on_the_other(tmp_path, monkeypatch):
    fits, weighed = [], []

    def fit_answerer(learner, params, problems, *_, **options):
        fits.append(problems)
        return params

    def learn_masks(learner, params, problems, *_, joint_examples, recorder, **options):
        assert joint_examples is fits[-1]
        weighed.append(problems)
        recorder.log("generator", 2, {"answer_loss": 1.0})
        row = take(problems, np.arange(1))
        embeddings = learner.embeddings[row.rationale]
        init = learner.generator.init
        return init(jax.random.key(0), embeddings, row.rationale_mask)["params"], "as it ended"

    def constant_objectives(learner, params, *_):
        assert params == "as it ended"
        return 1.0, 2.0

    monkeypatch.setattr(learn, "fit_answerer", fit_answerer)
    monkeypatch.setattr(learn, "learn_masks", learn_masks)
    monkeypatch.setattr(learn, "gap_on", lambda *_: lambda params: gap(0.5, 2.0))
    monkeypatch.setattr(weigh, "objective_on", lambda *_: lambda *_: 0.75)
    monkeypatch.setattr(weigh, "constant_objectives", constant_objectives)
    result = run(tmp_path, settings(fit="other_fold"))
    np.testing.assert_array_equal(result.lengths, TRAIN.rationale_lengths)
    everything = make_answerer_batch(TRAIN, tiny.PAD).rationale.tolist()
    for fit, other in zip(fits, weighed, strict=True):
        assert sorted(fit.rationale.tolist() + other.rationale.tolist()) == sorted(everything)
    np.testing.assert_array_equal(fits[0].rationale, weighed[1].rationale)
    # Every example has the weights of its own tokens: the generator is the same in both folds.
    whole = run(tmp_path, settings(fit="same", eval_examples=4))
    np.testing.assert_allclose(whole.values, result.values, atol=1e-6)
    assert result.held_out is not None and whole.held_out is not None
    assert (len(result.held_out), len(whole.held_out)) == (10, 4)

    summary = json.loads(json.dumps(result.summary))
    assert summary["gap"] == {"none_masked": 0.5, "all_masked": 2.0}
    assert [summary[key] for key in ("objective", "keep_all", "keep_none")] == [0.75, 1.0, 2.0]
    assert summary["mean_weight"] == pytest.approx(result.values.mean())
    assert 0 <= summary["auc"] <= 1
    assert len(summary["folds"]) == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"weigh"}
    assert {"gap", "generator"} <= {line["part"] for line in lines}


def test_the_generator_reads_the_students_embeddings(tmp_path, monkeypatch):
    seen, answerer = [], dataclasses.replace(tiny.student(), seed=5)
    made = weigh.make_learner

    def make_learner(theirs, embeddings, *rest):
        seen.append((theirs, embeddings))
        return made(theirs, embeddings, *rest)

    monkeypatch.setattr(weigh, "make_learner", make_learner)
    run(tmp_path, settings(fit="same", min_gap=-10.0), answerer=answerer)
    ((theirs, embeddings),) = seen
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    expected, other = (model.embeddings(model.load(mesh)) for model in (tiny.student(), answerer))
    assert theirs is answerer
    np.testing.assert_array_equal(embeddings, expected)
    assert np.abs(np.asarray(expected) - np.asarray(other)).max() > 0.1


def test_folds_are_disjoint_and_cover_everything():
    folds = weigh._folds(7, "other_fold", seed=3)
    assert len(folds) == 2
    for fit, weighed in folds:
        assert sorted([*fit, *weighed]) == list(range(7))
    assert sorted([*folds[0][1], *folds[1][1]]) == list(range(7))
    for fit in ("fresh", "same"):
        ((first, second),) = weigh._folds(7, fit, seed=3)
        assert first.tolist() == second.tolist() == list(range(7))


def test_it_refuses_to_go_on_with_an_answerer_that_does_not_read(tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path, settings(fit="same", min_gap=0.5))
    message = str(error.value)
    for part in ("cannot be learned", "min_gap=0.5", "fit_unmasked_steps", "weights=uniform"):
        assert part in message


def test_it_refuses_to_go_on_with_an_answerer_that_knows_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "gap_on", lambda *_: lambda params: gap(0.1, 0.2))
    with pytest.raises(UserError, match=r"0\.10 nats .* 0\.20 .*memorized.*weighting.fit"):
        run(tmp_path, settings(fit="same", min_gap=0.5))


def test_losses_that_are_not_finite_stop_it(tmp_path, monkeypatch):
    def fit_answerer(*args, recorder, **options):
        recorder.log("answerer", 50, {"answer_loss": float("nan")})

    monkeypatch.setattr(learn, "fit_answerer", fit_answerer)
    with pytest.raises(UserError, match=r"step 50 of the answerer .*nan.* Lower"):
        run(tmp_path, settings(fit="same", fit_unmasked_steps=50))


def summary(mean, objective=0.7):
    return {"mean_weight": mean, "objective": objective, "keep_all": 0.8, "keep_none": 2.0}


def test_collapsed_weights_stop_it_with_advice():
    with pytest.raises(UserError, match=r"collapsed: their mean is 0\.010\. Lower weighting.alpha"):
        weigh._check_health(summary(0.01), settings())
    with pytest.raises(UserError, match=r"collapsed: their mean is 0\.990\. Raise weighting.alpha"):
        weigh._check_health(summary(0.99), settings())


def test_weights_that_fail_their_own_objective_stop_it_unless_allowed(caplog):
    strict = settings(allow_failed=False)
    weigh._check_health(summary(0.3), strict)
    figures = r"fail their own objective: .* 0\.900 nats .* 0\.800 with every .* 2\.000 with none"
    with pytest.raises(UserError, match=figures) as error:
        weigh._check_health(summary(0.3, objective=0.9), strict)
    for key in ("steps", "alpha", "allow_failed=True", "weights=uniform"):
        assert f"weighting.{key}" in str(error.value)
    assert not caplog.records
    weigh._check_health(summary(0.3, objective=0.9), settings())
    assert "0.900 nats" in caplog.text and "allow_failed" in caplog.text


def test_a_fold_that_fails_stops_the_stage_before_the_next(tmp_path, monkeypatch):
    began = []
    monkeypatch.setattr(weigh, "constant_objectives", lambda *_: (-1.0, -1.0))
    monkeypatch.setattr(weigh, "objective_on", lambda *_: began.append(0) or (lambda *_: 0.0))
    with pytest.raises(UserError, match="fail their own objective"):
        run(tmp_path, settings(fit="other_fold", min_gap=-10.0, allow_failed=False))
    assert len(began) == 1


def labelled(keypoints, count=2):
    """Examples of 3 tokens at characters 0, 2 and 4."""
    records = tuple(Record(f"{i}", "", ("",), "", keypoints=keypoints) for i in range(count))
    return tiny.tokenized_set([[5]] * count, [[[10, 11, 12]]] * count, [[4]] * count, records)


def test_keypoint_auc_by_hand():
    data = labelled(((2, 3),))  # The token in the middle.
    assert weigh.keypoint_auc(np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.4]), data, 2) == 1
    # Of 2 x 4 pairs the key token wins 4 (0.9) and 1 (0.2 against 0.1), and ties one (0.2).
    weights = np.array([0.1, 0.9, 0.2, 0.3, 0.2, 0.4])
    assert weigh.keypoint_auc(weights, data, 2) == pytest.approx((4 + 1 + 0.5) / 8)
    assert weigh.keypoint_auc(weights[:3], data, 1) == 1
    # A token counts as soon as it shares one character, and not where it only touches.
    assert weigh.keypoint_auc(np.array([0.1, 0.9, 0.2]), labelled(((1, 3),), 1), 1) == 1


def test_there_is_no_auc_where_keypoints_are_unknown_or_everything():
    weights = np.array([0.1, 0.9, 0.2])
    assert weigh.keypoint_auc(weights, labelled(None, 1), 1) is None
    assert weigh.keypoint_auc(weights, labelled((), 1), 1) is None
    assert weigh.keypoint_auc(weights, labelled(((0, 9),), 1), 1) is None


def test_a_rationale_beyond_the_answerers_limit_is_named(tmp_path):
    answerer = tiny.student()
    config = types.SimpleNamespace(max_position_embeddings=8)
    answerer = dataclasses.replace(answerer, config=config)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"Record \d+: .* 10 tokens together.* 8 at most") as error:
        run(tmp_path, settings(), answerer=answerer)
    assert "student.max_target_tokens" in str(error.value)


def test_rationales_of_one_token_are_weighed(tmp_path):
    data = tiny.tokenized_set([[5], [6]], [[[20]], [[21]]], [[30], [31]])
    weights = run(tmp_path, settings(fit="same", min_gap=-10.0), train=data)
    assert weights.lengths.tolist() == [1, 1]
    assert np.isfinite(weights.values).all()


@pytest.mark.parametrize("prefixes", ["all", "sampled", "step_ends"])
@pytest.mark.slow
def test_prefixes_encoded_at_once_are_weighed_too(tmp_path, prefixes):
    options = {"encoding": "causal", "prefixes": prefixes, "fit_masked_steps": 2, "min_gap": -10.0}
    result = run(tmp_path, settings(fit="same", **options))
    np.testing.assert_array_equal(result.lengths, TRAIN.rationale_lengths)


@pytest.mark.slow
def test_a_stage_that_is_killed_anywhere_ends_with_the_same_weights(tmp_path, monkeypatch):
    """After some of the saves in turn, then the same again."""
    monkeypatch.setattr(learn, "_SAVE_EVERY", 2)
    config = settings(
        fit="other_fold",
        fit_unmasked_steps=2,
        fit_masked_steps=1,
        steps=3,
        eval_every=1,
        min_gap=-9.0,
    )
    config.joint_learning_rate = 1e-3
    save, saves, stop_at = checkpoints.Checkpoints.save, [], 0

    def saving(self, step, state, **options):
        save(self, step, state, **options)
        self.wait()
        saves.append(step)
        if len(saves) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", saving)
    whole = run(tmp_path / "whole", config)
    assert saves == [2, 3, 2, 3] * 2  # Answerer and generator, of each half.
    for stop_at in (1, 4, 7):
        saves.clear()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop_at), config)
        before = len(saves)
        again = run(tmp_path / str(stop_at), config)
        assert len(saves) - before == 8 - stop_at
        np.testing.assert_array_equal(again.values, whole.values)
        assert again.summary == whole.summary
        assert _last_of_each(tmp_path / str(stop_at)) == _last_of_each(tmp_path / "whole")


def _last_of_each(workdir):
    """What was last written for each step and part."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], row["part"]): row for row in rows}
