import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax import pipeline
from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged, Record
from kpod_jax.parallel import sharding
from kpod_jax.training import loop
from kpod_jax.utils import workdir as workdirs
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import reference, summary, weigh, weightings
from kpod_jax.weighting.answerer_batch import make_answerer_batch
from kpod_jax.weighting.answerer_model import make_answerer
from tests.test_pipeline import small
from tests.weighting import tiny

HERE = "tests.weighting.test_weightings"
TEXT = "3 + 14 = 17 pens ."
DATA = tiny.tokenized_set(
    [[5], [6], [7], [8]],
    [[[10, 11, 12]], [[13, 14]], [[15, 16, 17, 18]], [[19]]],
    [[30], [31], [32], [33]],
)


class Student(tiny.TinyStudent):
    """Tokenizes the records of `DATA` by their ids."""

    prompt = "{question}"  # pyright: ignore[reportAssignmentType]

    def tokenize(self, records, *_, **__):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = [int(record.id) for record in records]
        return _take(rows), []


def _take(rows):
    ragged = {
        field.name: Ragged.from_list([getattr(DATA, field.name)[i] for i in rows])
        for field in dataclasses.fields(DATA)
        if isinstance(getattr(DATA, field.name), Ragged)
    }
    arrays = {name: getattr(DATA, name)[rows] for name in ("num_steps", "rationale_lengths")}
    return dataclasses.replace(DATA, records=[DATA.records[i] for i in rows], **ragged, **arrays)


@functools.cache
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def student():
    plain = tiny.student()
    return Student(plain.module, plain.config, plain.tokenizer, plain.settings, plain.seed)


def setting(tmp_path, tokenized=DATA, **changes):
    config = defaults.get_config().weighting
    config.update({"batch_size": 2, "reference_steps": 3} | changes)
    return weightings.Setting(tokenized, student(), config, mesh(), tmp_path)


def texts(*rationales):
    """Examples whose tokens are the words of a rationale."""
    records = tuple(Record(f"{i}", "", (text,), "") for i, text in enumerate(rationales))
    ids = [[[10 + j for j in range(len(text.split()))]] for text in rationales]
    made = tiny.tokenized_set([[5]] * len(ids), ids, [[4]] * len(ids), records)
    spans = []
    for text in rationales:
        ends = np.cumsum([len(word) + 1 for word in text.split()]) - 1
        spans.append([(e - len(w), e) for e, w in zip(ends, text.split(), strict=True)])
    return dataclasses.replace(made, rationale_char_spans=Ragged.from_list(spans, np.int32))


def test_numbers_and_operators_by_hand(tmp_path):
    found = weightings.compute("numbers", setting(tmp_path, texts(TEXT, "he has 5")))
    np.testing.assert_allclose(found[0], [1, 1, 1, 1, 1, 0.3, 0.3])
    np.testing.assert_allclose(found[1], [0.3, 0.3, 1])


def test_ranks_and_highest_by_hand():
    values = Ragged.from_list([[3.0, 1.0, 2.0, 2.0], [7.0]])
    np.testing.assert_allclose(weightings.ranks(values).values, [1, 0.25, 0.625, 0.625, 1])
    # Excess losses 1, 1, -2, 0, 6: three of five tokens are 60 %.
    kept = weightings.highest(values, np.array([2.0, 0.0, 4.0, 2.0, 1.0]), 0.6)
    assert kept.values.tolist() == [1, 1, 0, 0, 1] and kept.lengths.tolist() == [4, 1]
    assert weightings.highest(values, np.zeros(5), 0.0).values.sum() == 0


def test_surprisal_is_the_rank_of_the_students_loss(tmp_path):
    of = setting(tmp_path)
    losses = of.losses()
    found = weightings.compute("surprisal", of)
    for row, weights in zip(losses, found, strict=True):
        expected = (np.argsort(np.argsort(row)) + 1) / len(row)
        np.testing.assert_allclose(weights, expected)
    # The loss of a token is -log P after those before it.
    module, params = of.student.module, of.student.load(mesh())
    inputs = np.array([[tiny.PAD, 13]])
    hidden = module.apply({"params": params}, np.array([[6, 1]]), np.ones((1, 2), bool), inputs)
    logits = module.apply({"params": params}, hidden, method="logits")
    log_p = jax.nn.log_softmax(logits)[0]  # pyright: ignore
    np.testing.assert_allclose(losses[1], [-log_p[0, 13], -log_p[1, 14]], rtol=1e-4)


def test_the_gradient_is_the_slope_of_the_answers_loss(tmp_path):
    """Of one token each prefix is the whole rationale, so that all have the same gradient."""
    data = tiny.tokenized_set([[5], [6]], [[[20]], [[21]]], [[30], [31]])
    found = weightings.gradient_times_input(data, student(), mesh())
    answerer, params = make_answerer(student()), student().load(mesh())
    rows, step = make_answerer_batch(data, tiny.PAD), 1e-2
    rows = jax.tree.map(np.asarray, rows)

    def losses(keep):
        masks = jnp.full(rows.rationale.shape, keep, jnp.float32)
        return np.asarray(answerer.losses(params, rows, masks, jnp.array([1, 1])))

    slope = (losses(1 + step) - losses(1 - step)) / (2 * step)
    np.testing.assert_allclose(found.values, 16 * np.abs(slope), rtol=2e-2)
    assert weightings.compute("gradient", setting(tmp_path, data)).values.tolist() == [1, 1]


def test_each_half_has_the_reference_that_is_fit_on_the_other(tmp_path, monkeypatch):
    fit = []

    def train(config, student, params, source, length, **options):
        assert (config.batch_size, length.total_steps) == (2, 3)
        assert options["recording"].workdir == tmp_path / f"reference_{len(fit)}"
        fit.append(sorted({int(i) for n in range(2) for i in source.record_ids(n)}))
        return jax.tree.map(lambda leaf: leaf * (1.0 + len(fit)), params)

    monkeypatch.setattr(loop, "train", train)
    of = setting(tmp_path, kept_fraction=0.5)
    found = list(reference.fit_halves(of.student, DATA, of.options, mesh(), tmp_path))
    assert len(found) == 2 and sorted(fit[0] + fit[1]) == [0, 1, 2, 3]
    assert [half.tolist() for half, _ in found] == [fit[1], fit[0]]

    theirs = [np.zeros(0)] * 4
    for half, params in found:
        losses = weightings.token_losses(of.student, _take(half), 2, mesh(), params)
        for i, row in zip(half, losses, strict=True):
            theirs[i] = row
    fit.clear()
    kept = weightings.compute("excess_loss", of)
    excess = of.losses().values - np.concatenate(theirs)
    assert kept.values.sum() == 5
    assert set(np.flatnonzero(kept.values)) == set(np.argsort(-excess)[:5])


def test_a_reference_that_diverges_names_its_learning_rate(tmp_path):
    of = setting(tmp_path, fit_learning_rate=float("inf"))
    with pytest.raises(UserError, match=r"weighting\.fit_learning_rate=inf: .*diverged"):
        weightings.compute("excess_loss", of)


@pytest.mark.slow
def test_the_reference_is_fit_and_resumes(tmp_path):
    of = setting(tmp_path)
    first = weightings.compute("excess_loss", of)
    assert first.values.sum() == 6 and (tmp_path / "reference_1/checkpoints/student/3").is_dir()
    again = weightings.compute("excess_loss", of)
    assert again.values.tolist() == first.values.tolist()


def test_a_given_reference_needs_the_students_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "load_student", lambda *_: student())
    of = setting(tmp_path, reference="a/model", kept_fraction=0.3)
    # Of the same losses none is in excess, and the first ones are taken.
    assert weightings.compute("excess_loss", of).values.tolist() == [1] * 3 + [0] * 7
    monkeypatch.setattr(Student, "tokenize", lambda *_: (_take([1, 0, 2, 3]), []))
    with pytest.raises(UserError, match=r"weighting.reference=.* has another tokenizer"):
        weightings.compute("excess_loss", of)


def of_ones_own(setting):
    return [np.linspace(0, 1, len(spans)) for spans in setting.spans]


def short(setting):
    return [[1.0]] * len(setting.records)


def negative(setting):
    return [np.full(len(spans), -0.5) for spans in setting.spans]


def failing(setting):
    return [1 / 0]


NUMBER = 3


def test_a_weighting_of_ones_own(tmp_path):
    config = defaults.get_config()
    config.weighting.weights = f"{HERE}:of_ones_own"
    checks.check(config)
    weights = weigh.learn_token_weights(config.weighting, student(), Data(DATA), mesh())
    np.testing.assert_allclose(weights[0], [0, 0.5, 1])
    assert str(weights) == f"10 token weights ({HERE}:of_ones_own), mean 0.45"
    assert weights.spans is DATA.rationale_char_spans


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "4 rationales with 4 tokens; expected those of the 4 .* have 10 tokens"),
        ("negative", "expected weights between 0 and 1"),
        ("failing", r"test_weightings\.py.*, line \d+: ZeroDivisionError"),
        ("NUMBER", "is not a function"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_wrong_weighting_is_named(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        weightings.compute(f"{HERE}:{name}", setting(tmp_path))


def test_an_unknown_weighting_is_told_before_anything_begins():
    config = defaults.get_config()
    config.weighting.weights = "surprise"
    with pytest.raises(UserError, match=r"numbers, or a \.npz file or package\.module:function"):
        checks.check(config)


@pytest.mark.parametrize("name", [*weightings.WEIGHTINGS, "examples.results:results"])
def test_a_run_has_the_weights_of_its_weighting(name, tmp_path, capsys):
    changes = {"weighting__weights": name, "weighting__reference_steps": 2}
    for mode in ("rationales", "weigh", "weigh"):
        pipeline.run(small(**changes), tmp_path, mode)
    assert "weigh: up to date" in capsys.readouterr().out
    weights = weigh.TokenWeights.load(tmp_path)
    np.testing.assert_array_equal(weights.lengths, Data.load(tmp_path).train.rationale_lengths)
    assert 0 < weights.values.mean() < 1
    assert summary.read(tmp_path)["weights"] == name
    if name == "numbers":  # The quickest one.
        pipeline.run(small(**changes, weighting__kept_fraction=0.5), tmp_path, "weigh")
        assert "weighting.kept_fraction was 0.6, now 0.5" in capsys.readouterr().out


def test_stages_of_earlier_versions_are_as_if_they_had_the_keys_added_since():
    old = {"weighting.alpha": 0.5, "training": {"weighting.alpha": 0.5}}
    added = {"weighting.reference": "", "weighting.kept_fraction": 0.6}
    assert workdirs.same(old, old | added | {"training": old["training"] | added})
    assert not workdirs.same(old, old | {"weighting.reference": "a/model"})
