"""Mask learning, and the failure that it is built against.

Where masked tokens are replaced by id, or the mask is otherwise cut off from the gradient of the
answer's loss, the generator is trained by the price of its masks alone and keeps nothing.
"""

import dataclasses
import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.training import costs
from kpod_jax.weighting import generator, learn, weigh
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import batches, make_answerer_batch, take
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.objective import MaskLearner, constant_objectives, objective_on
from tests.weighting import tiny

ALPHA = 0.5
ESTIMATORS = ("straight_through", "soft", "score_function")


class CutAnswerer(Answerer):
    """An answerer whose loss has no gradient with respect to the mask, as with replaced ids."""

    def losses(self, params, problems, keep_BxR, prefix_B):
        keep_BxR = jax.lax.stop_gradient(keep_BxR)
        return super().losses(params, problems, keep_BxR, prefix_B)


class LinearAnswerer(Answerer):
    """An answerer whose loss, averaged over all prefixes, is SLOPE times the mean of the mask."""

    SLOPE = 3.0

    def prefix_losses(self, params, problems, keep_BxR, prefix_BxP):
        place = jnp.arange(keep_BxR.shape[1])
        # So many prefixes hold a token.
        holders = jnp.maximum(1, problems.rationale_mask.sum(axis=1)[:, None] - place)
        keep_BxR = jnp.where(problems.rationale_mask, keep_BxR / holders, 0.0)
        seen_BxPxR = place < prefix_BxP[..., None]
        return self.SLOPE * jnp.einsum("br,bpr->bp", keep_BxR, seen_BxPxR.astype(jnp.float32))


def learner(answerer_class=Answerer, estimator="straight_through", **changes) -> MaskLearner:
    table = jax.random.normal(jax.random.key(5), (tiny.CONFIG.vocab_size, 16))
    return MaskLearner(
        answerer_class(tiny.t5(), tiny.MASK, tiny.PAD, tiny.EOS),
        Generator(16, 2),
        table,
        ALPHA,
        estimator=estimator,
        **changes,
    )


def generator_params(of: MaskLearner, problems, seed=0, spread=0.1):
    """Random parameters whose weights differ from token to token."""

    @jax.jit
    def make():
        embeddings = of.embeddings[problems.rationale]
        params = of.generator.init(jax.random.key(seed), embeddings, problems.rationale_mask)
        flat, unravel = jax.flatten_util.ravel_pytree(params["params"])
        return unravel(flat + spread * jax.random.normal(jax.random.key(seed + 1), flat.shape))

    return make()


@pytest.fixture(scope="module")
def random_answerer():
    return tiny.params(tiny.t5(), seed=3)


@pytest.fixture(scope="module")
def problems():
    return jax.tree.map(jnp.asarray, make_answerer_batch(tiny.copying(3, 0), tiny.PAD))


@pytest.fixture(scope="module")
def fitted():
    """An answerer that was fit to read the key token of a rationale."""
    fit = make_answerer_batch(tiny.copying(512, 1), tiny.PAD)
    lines = []
    params = learn.fit_answerer(
        learner(),
        tiny.params(tiny.t5(), seed=3),
        fit,
        settings(fit_unmasked_steps=100, fit_masked_steps=300, fit_learning_rate=1e-2),
        recorder=learn.Recorder(lambda *line: lines.append(line)),
        seed=0,
    )
    assert [step for _, step, _ in lines] == list(range(10, 401, 10))
    return params


def settings(**changes):
    config = defaults.get_config().weighting
    config.update({"batch_size": 32, "clip_norm": 1.0, "eval_every": 0, "patience": 1} | changes)
    return config


def learned_weights(
    of, answerer_params, data, steps, judge=lambda *_: 0.0, log=lambda *_: None, **changes
):
    rows = make_answerer_batch(data, tiny.PAD)
    temperatures = {"temperature_start": 1.0, "temperature_end": 0.5}
    base = {"alpha_warmup": 0.25, "learning_rate": 1e-2, "steps": steps} | temperatures
    params, _ = learn.learn_masks(
        of,
        answerer_params,
        rows,
        settings(**base | changes),
        joint_examples=rows,
        judge=judge,
        recorder=learn.Recorder(log),
        seed=0,
    )
    return learn.compute_weights(of, params, rows, 32)


def test_a_fitted_answerer_has_a_gap_and_its_masks_find_the_keypoints(fitted):
    held_out = make_answerer_batch(tiny.copying(64, 2), tiny.PAD)
    gap = learn.measure_gap(learner(), fitted, held_out, 32)
    assert gap["none_masked"] < 0.7
    assert gap["gap"] > 1.0
    assert gap["gap"] == pytest.approx(gap["all_masked"] - gap["none_masked"])
    assert len(gap["by_prefix"]["none_masked"]) == 10
    data, seen = tiny.copying(128, 4), []
    of = learner(estimator="score_function", exploration=0.1, prefix_samples=4)
    objective = objective_on(of, held_out, 32, 0)
    options = {"judge": lambda *params: seen.append(objective(*params)) or 0.0, "eval_every": 200}
    weights = learned_weights(of, fitted, data, 200, alpha_warmup=0.0, **options)
    auc = weigh.keypoint_auc(weights.values, data, len(data))
    assert auc is not None
    assert auc > 0.99
    assert seen[-1] < min(constant_objectives(of, fitted, held_out, 32, 0)) - 0.2
    keys = np.concatenate(
        [
            np.isin(data.targets[i][:n], tiny.KEYS)
            for i, n in enumerate(data.rationale_lengths.tolist())
        ]
    )
    assert weights.values[keys].mean() > 10 * weights.values[~keys].mean()


def test_the_generator_of_the_lowest_held_out_objective_is_taken_and_training_ends_early(
    random_answerer,
):
    data, lines, seen = tiny.copying(8, 4), [], []
    values = iter([3.0, 1.0, 2.0, 1.5, 0.5])

    def judge(params, answerer_params):
        assert answerer_params is random_answerer
        seen.append(jax.tree.map(jnp.copy, params))
        return next(values)

    options = {
        "judge": judge,
        "eval_every": 2,
        "patience": 2,
        "log": lambda *line: lines.append(line),
    }
    of, rows = learner(), make_answerer_batch(data, tiny.PAD)
    weights = learned_weights(of, random_answerer, data, 20, **options)
    best = learn.compute_weights(of, seen[1], rows, 32)
    np.testing.assert_array_equal(weights.values, best.values)
    assert [step for _, step, _ in lines] == [2, 4, 6, 8]  # Of 20: two looks without a lower one.
    assert [parts["held_out_objective"] for *_, parts in lines] == [3.0, 1.0, 2.0, 1.5]
    assert all(0 < parts["mask_entropy"] < 0.7 for *_, parts in lines)


def test_masks_that_are_cut_off_from_the_answer_collapse(fitted):
    data = tiny.copying(128, 4)
    weights = learned_weights(learner(CutAnswerer), fitted, data, 100)
    assert weights.values.max() < 0.05


def test_cut_off_masks_are_trained_by_their_price_alone(random_answerer, problems):
    cut, ours = learner(CutAnswerer), learner()
    params = generator_params(ours, problems)

    def gradients(of):
        """Of the objective with the price of ALPHA, and without a price."""

        @jax.jit
        def gradient(alpha):
            arguments = random_answerer, problems, jax.random.key(0), alpha, 1.0
            tree = jax.grad(lambda params: of.objective(params, *arguments)[0])(params)
            return jax.flatten_util.ravel_pytree(tree)[0]

        return gradient(ALPHA), gradient(0.0)

    def price(params):
        logits = ours.logits(params, problems)
        keep = generator.gumbel_mask(jax.random.split(jax.random.key(0))[1], logits, 1.0, True)
        return ALPHA * jnp.mean(jnp.mean(keep, axis=1, where=problems.rationale_mask))

    of_price = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(price))(params))[0]
    with_price, without = gradients(cut)
    np.testing.assert_allclose(with_price, of_price, atol=1e-7)
    np.testing.assert_array_equal(without, 0)
    with_price, without = gradients(ours)
    assert jnp.linalg.norm(without) > 1e-3
    np.testing.assert_allclose(with_price, without + of_price, atol=1e-6)


def test_the_gradient_for_soft_masks_is_that_of_finite_differences(random_answerer, problems):
    of = learner(estimator="soft", prefixes="all")
    flat, unravel = jax.flatten_util.ravel_pytree(generator_params(of, problems))

    @jax.jit
    def value(flat):
        return of.objective(unravel(flat), random_answerer, problems, jax.random.key(1), 0.0, 1.0)[
            0
        ]

    gradient = jax.jit(jax.grad(value))(flat)
    directions = [gradient / jnp.linalg.norm(gradient)]
    directions += list(0.2 * jax.random.normal(jax.random.key(2), (3, len(flat))))
    for direction in directions:
        step = 2e-3
        difference = (value(flat + step * direction) - value(flat - step * direction)) / (2 * step)
        np.testing.assert_allclose(direction @ gradient, difference, rtol=0.03, atol=1e-3)


def test_all_prefixes_is_the_mean_over_a_loop_of_single_ones(random_answerer, problems):
    of = learner(estimator="soft", prefixes="all")
    params, key = generator_params(of, problems), jax.random.key(3)
    objective = jax.jit(of.objective)
    value, parts = objective(params, random_answerer, problems, key, ALPHA, 0.8)
    logits = of.logits(params, problems)
    keep = generator.gumbel_mask(jax.random.split(key)[1], logits, 0.8, False)
    n = np.asarray(problems.rationale_mask.sum(axis=1))
    assert len(set(n.tolist())) > 1
    sums, answer_losses = np.zeros(len(n)), jax.jit(of.answerer.losses)
    for k in range(1, n.max() + 1):
        losses = answer_losses(random_answerer, problems, keep, jnp.full(len(n), k))
        sums += np.where(k <= n, losses, 0)
    answer_loss = (sums / n).mean()
    weight, price = (
        np.mean([values[i, :m].mean() for i, m in enumerate(n)])
        for values in (jax.nn.sigmoid(logits), keep)
    )
    np.testing.assert_allclose(parts["answer_loss"], answer_loss, rtol=1e-5)
    np.testing.assert_allclose(parts["mean_weight"], weight, rtol=1e-5)
    np.testing.assert_allclose(value, answer_loss + ALPHA * price, rtol=1e-5)


def test_sampled_prefixes_agree_with_all_of_them_in_expectation(random_answerer, problems):
    every, sampled = learner(prefixes="all"), learner(prefix_samples=2)
    params = generator_params(every, problems)

    def samples(of, count, seed):
        """[count, 1 + parameters] objectives and gradients, each with its own noise."""

        def one(key):
            value, gradient = jax.value_and_grad(
                lambda p: of.objective(p, random_answerer, problems, key, ALPHA, 1.0)[0]
            )(params)
            return jnp.append(jax.flatten_util.ravel_pytree(gradient)[0], value)

        keys = jax.random.split(jax.random.key(seed), count)
        return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys))

    a, b = samples(every, 1500, 0), samples(sampled, 3000, 1)
    error = a.var(axis=0) / len(a) + b.var(axis=0) / len(b)  # Of the difference of two means.
    difference = a.mean(axis=0) - b.mean(axis=0)
    assert abs(difference[-1]) < 4 * np.sqrt(error[-1])
    assert (difference**2).sum() < 6 * error.sum()
    # The bound is no empty one: it is well below the gradient itself.
    assert 6 * error[:-1].sum() < 0.1 * (a.mean(axis=0)[:-1] ** 2).sum()


@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_the_score_functions_gradient_is_that_of_the_expectation_over_all_masks(
    random_answerer, problems, exploration
):
    of = learner(
        prefixes="all", estimator="score_function", mask_samples=4, exploration=exploration
    )
    params = generator_params(of, problems)
    width = int(problems.rationale_mask.sum(axis=1).max())
    problems = problems.replace(
        rationale=problems.rationale[:, :width],
        rationale_mask=problems.rationale_mask[:, :width],
        step_ends=problems.step_ends[:, :width],
    )
    masks_MxR = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=width)))
    rows, alpha = len(problems.question), 0.4
    every = jax.tree.map(lambda array: jnp.repeat(array, len(masks_MxR), axis=0), problems)
    prefix, share = of._sample_prefixes(jax.random.key(0), problems)
    losses = jax.jit(of.answerer.prefix_losses)(
        random_answerer,
        every,
        jnp.tile(masks_MxR, (rows, 1)),
        jnp.repeat(prefix, len(masks_MxR), axis=0),
    ).reshape(rows, len(masks_MxR), -1)
    w = jax.nn.sigmoid(of.logits(params, problems))
    assert exploration == 0 or ((w > 1 - exploration) & problems.rationale_mask).any()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def expected(params):
        """Where masks explore, their logits are the weights' own, moved by a constant."""
        logits = of.logits(params, problems)
        w = jax.nn.sigmoid(logits)
        q = jnp.clip(w, exploration, 1 - exploration)
        moved = jax.nn.sigmoid(logits + jax.lax.stop_gradient(jax.scipy.special.logit(q) - logits))
        q_Bx1xR = moved[:, None]
        probability_BxM = jnp.prod(jnp.where(masks_MxR == 1, q_Bx1xR, 1 - q_Bx1xR), axis=-1)
        answer_loss = jnp.einsum("bmp,bp,bm->b", losses, share, probability_BxM).mean()
        price = alpha * jnp.mean(moved, axis=1, where=problems.rationale_mask).mean()
        weight = alpha * jnp.mean(w, axis=1, where=problems.rationale_mask).mean()
        return answer_loss + price, answer_loss + weight

    def one(key):
        def objective(params):
            return of.objective(params, random_answerer, problems, key, alpha, 1.0)[0]

        value, gradient = jax.value_and_grad(objective)(params)
        return jnp.append(jax.flatten_util.ravel_pytree(gradient)[0], value)

    (_, value), gradient = expected(params)
    exact = np.append(jax.flatten_util.ravel_pytree(gradient)[0], value)
    keys = jax.random.split(jax.random.key(1), 3000)
    found = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys))
    error, difference = found.var(axis=0) / len(found), found.mean(axis=0) - exact
    assert abs(difference[-1]) < 4 * np.sqrt(error[-1])
    assert (difference[:-1] ** 2).sum() < 6 * error[:-1].sum()
    # The bound is no empty one: it is well below the gradient itself.
    assert 6 * error[:-1].sum() < 0.2 * (exact[:-1] ** 2).sum()


@pytest.mark.parametrize("exploration", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loss_and_price_are_in_the_same_proportion_under_every_estimator(
    problems, estimator, exploration
):
    """A loss of SLOPE · mean of m is nothing but a price of SLOPE."""
    of = learner(
        LinearAnswerer,
        prefixes="all",
        estimator=estimator,
        exploration=exploration,
        mask_samples=4,
    )
    params = generator_params(of, problems)
    # A weight that exploration changes, and one that it does not.
    params["mlp_out"]["bias"] += 0.5

    def gradient(key, alpha):
        tree = jax.grad(lambda p: of.objective(p, {}, problems, key, alpha, 0.7)[0])(params)
        return jax.flatten_util.ravel_pytree(tree)[0]

    @jax.jit
    def both(key):
        of_loss = gradient(key, 0.0)
        return of_loss, gradient(key, ALPHA) - of_loss

    keys = jax.random.split(jax.random.key(2), 4000 if estimator == "score_function" else 3)
    of_loss, of_price = map(np.asarray, jax.lax.map(both, keys, batch_size=500))
    expected = LinearAnswerer.SLOPE / ALPHA * of_price
    if estimator != "score_function":  # Of every sample.
        np.testing.assert_allclose(of_loss, expected, rtol=1e-3, atol=1e-5)
        return
    np.testing.assert_allclose(expected, expected[:1].repeat(len(keys), axis=0), atol=1e-5)
    error, difference = of_loss.var(axis=0) / len(keys), of_loss.mean(axis=0) - expected[0]
    assert (difference**2).sum() < 6 * error.sum()
    assert 6 * error.sum() < 0.05 * (expected[0] ** 2).sum()  # No empty bound.


def test_frozen_the_answerer_of_the_score_function_has_no_backward_pass(random_answerer, problems):
    of = learner(estimator="score_function", mask_samples=2)
    params = generator_params(of, problems)

    def value(params):
        arguments = random_answerer, problems, jax.random.key(0), ALPHA, 1.0
        return of.objective(params, *arguments)[0]

    def answers():
        prefix = jnp.ones((2 * len(problems.question), 1), jnp.int32)
        keep = jnp.ones((len(prefix), problems.rationale.shape[1]))
        return of.answerer.prefix_losses(random_answerer, problems.repeat(2), keep, prefix)

    forward, answering = (
        costs.flops(jax.make_jaxpr(f)(*arguments))
        for f, arguments in ((value, (params,)), (answers, ()))
    )
    both = costs.flops(jax.make_jaxpr(jax.value_and_grad(value))(params))
    generating = forward - answering
    assert 0 < both - forward < 3 * generating < answering


def test_batches_of_prefixes_and_masks_for_fitting(problems):
    of, masked = learner(), jnp.array(True)
    n = np.asarray(problems.rationale_mask.sum(axis=1))
    keep, prefix = of.random_masks(jax.random.key(0), problems, jnp.array(False))
    np.testing.assert_array_equal(prefix, n)
    np.testing.assert_array_equal(keep, 1)
    many = problems.repeat(300)
    keep, prefix = map(np.asarray, of.random_masks(jax.random.key(0), many, masked))
    n = np.repeat(n, 300)
    assert ((prefix >= 1) & (prefix <= n)).all()
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert 0.45 < (keep.min(axis=1) == 1).mean() < 0.65
    assert set(prefix[n == n.max()].tolist()) == set(range(1, n.max() + 1))


def test_problems_and_rows_of_them():
    data = tiny.tokenized_set([[5, 6], [7]], [[[20, 21], [22]], [[23] * 20]], [[30], [31, 32]])
    rows = make_answerer_batch(data, tiny.PAD)
    assert rows.question.shape == (2, 8)
    assert rows.rationale.shape == (2, 24)
    # Questions end together, without EOS; the others start together.
    assert rows.question[0, -2:].tolist() == [5, 6]
    assert rows.question_mask.sum(axis=1).tolist() == [2, 1]
    assert rows.rationale[0, :3].tolist() == [20, 21, 22]
    assert rows.answer[1, :3].tolist() == [31, 32, tiny.EOS]
    short = take(rows, np.array([0]))
    assert short.rationale.shape == (1, 8)
    assert short.rationale[0, :3].tolist() == [20, 21, 22]
    assert short.question[0, -2:].tolist() == [5, 6]
    assert short.answer.shape == rows.answer[:1].shape


def test_batches_have_few_shapes_and_hold_their_longest_row():
    lengths = range(1, 101)
    data = tiny.tokenized_set(
        [[5] * n for n in lengths], [[[20] * (101 - n)] for n in lengths], [[30]] * 100
    )
    rows = make_answerer_batch(data, tiny.PAD)
    found = {n: take(rows, np.array([n - 1])) for n in lengths}
    shapes = {(row.question.shape[1], row.rationale.shape[1]) for row in found.values()}
    assert shapes == {(56, 56), (80, 80), (104, 104)}
    for n, row in found.items():
        assert (row.question_mask.sum(), row.rationale_mask.sum()) == (n, 101 - n)


def test_batches_have_every_example_once_a_pass():
    drawn = batches(5, 3, seed=0)
    indices = np.concatenate([next(drawn) for _ in range(10)])
    assert len(indices) == 30
    for start in range(0, 30, 5):
        assert sorted(indices[start : start + 5].tolist()) == list(range(5))
    again = batches(5, 3, seed=0)
    np.testing.assert_array_equal(np.concatenate([next(again) for _ in range(10)]), indices)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_joint_training_moves_the_answerer_and_the_objective_falls(random_answerer, estimator):
    of, data = learner(estimator=estimator), tiny.copying(16, 6)
    rows, before = make_answerer_batch(data, tiny.PAD), jax.tree.map(np.array, random_answerer)
    objective, seen = objective_on(of, rows, 16, 0), []

    def judge(params, answerer_params):
        answerer_params = jax.tree.map(jnp.copy, answerer_params)
        seen.append((objective(params, answerer_params), answerer_params))
        return seen[-1][0]

    rate = {"joint_learning_rate": 1e-2, "judge": judge, "eval_every": 10, "patience": 99}
    weights = learned_weights(of, random_answerer, data, 30, **rate)
    np.testing.assert_array_equal(weights.lengths, data.rationale_lengths)
    jax.tree.map(np.testing.assert_array_equal, before, random_answerer)  # Those given.
    (first, early), *_, (last, late) = seen
    assert last < first - 0.1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), early, late)
    assert max(jax.tree.leaves(moved)) > 1e-2
    gaps = [learn.measure_gap(of, a, rows, 16)["none_masked"] for a in (random_answerer, late)]
    assert gaps[1] < gaps[0] - 0.2


def test_the_temperature_falls_and_alpha_rises(random_answerer, monkeypatch):
    of, seen = learner(), []

    def make_learn_step(learner, optimizer):
        def step(params, state, answerer_params, embeddings, problems, key, alpha, temperature):
            seen.append((alpha, temperature))
            return params, state, {}

        return step

    monkeypatch.setattr(learn, "make_learn_step", make_learn_step)
    learned_weights(of, random_answerer, tiny.copying(4, 0), 8, alpha_warmup=0.5)
    alphas, temperatures = zip(*seen, strict=True)
    assert alphas == pytest.approx([ALPHA / 4, ALPHA / 2, ALPHA * 3 / 4, *[ALPHA] * 5])
    assert temperatures == pytest.approx([0.5 ** (step / 8) for step in range(8)])


def test_weights_do_not_depend_on_the_batch(problems):
    of, data = learner(), tiny.random_set(7, 8)
    rows = make_answerer_batch(data, tiny.PAD)
    params = generator_params(of, problems)
    whole, single = (learn.compute_weights(of, params, rows, size) for size in (7, 1))
    np.testing.assert_array_equal(whole.lengths, data.rationale_lengths)
    np.testing.assert_allclose(whole.values, single.values, atol=1e-6)
    assert ((whole.values > 0) & (whole.values < 1)).all()


def test_the_objective_on_examples_is_the_mean_over_examples(
    random_answerer, problems, monkeypatch
):
    # With weights next to 1 there is nothing random but the prefixes, and these are all taken.
    monkeypatch.setattr(generator, "_BOUND", 1000.0)
    of = dataclasses.replace(learner(), prefixes="all")
    params = generator_params(of, problems, spread=0.0)
    params["mlp_out"]["bias"] += 100.0
    rows = make_answerer_batch(tiny.random_set(3, 9), tiny.PAD)

    def on(rows, batch_size):
        return objective_on(of, rows, batch_size, 0)(params, random_answerer)

    found = on(rows, 2)
    single = [on(take(rows, np.array([i])), 1) for i in range(3)]
    assert found == pytest.approx(np.mean(single), rel=1e-5)
    keep_all, _ = constant_objectives(of, random_answerer, rows, 2, 0)
    assert found == pytest.approx(keep_all, rel=1e-5)
    params["mlp_out"]["bias"] -= 200.0
    _, keep_none = constant_objectives(of, random_answerer, rows, 2, 0)
    assert on(rows, 2) == pytest.approx(keep_none, rel=1e-5)
    assert keep_all != pytest.approx(keep_none, rel=1e-4)


def test_the_objective_on_examples_is_the_same_for_every_estimator(random_answerer, problems):
    of = learner(prefixes="all", estimator="score_function", mask_samples=4)
    exploring = dataclasses.replace(of, exploration=0.4)
    others = [exploring, *(dataclasses.replace(of, estimator=name) for name in ESTIMATORS)]
    params = generator_params(of, problems)
    plain, *found = (
        objective_on(one, problems, 2, 0)(params, random_answerer) for one in (of, *others)
    )
    assert found == [plain] * len(others)
    explore = jax.jit(exploring.objective)
    explored = explore(params, random_answerer, problems, jax.random.key(0), ALPHA, 1.0)
    assert plain != pytest.approx(float(explored[0]), rel=1e-3)


def test_late_prefixes_come_the_more_often_the_longer_they_are(problems):
    row = jax.tree.map(lambda array: array[:1], problems)
    n = int(row.rationale_mask.sum())
    places = (jnp.arange(n**4) + 0.5)[None] / n**4
    prefix = learner(prefixes="late").nth_prefix(row, places)
    counts = np.bincount(np.asarray(prefix[0]))
    np.testing.assert_allclose(np.cumsum(counts), np.arange(n + 1) ** 4, atol=1)


def test_step_ends_are_the_only_prefixes_looked_at_where_asked_for(random_answerer):
    data = tiny.tokenized_set([[5, 6]], [[[20, 21], [22, 23, 24], [25]]], [[30]])
    rows = jax.tree.map(jnp.asarray, make_answerer_batch(data, tiny.PAD))
    places = jnp.array([[0.0, 0.3, 0.34, 0.6, 0.67, 0.99]])
    ends = learner(prefixes="step_ends").nth_prefix(rows, places)
    assert ends.tolist() == [[2, 2, 5, 5, 6, 6]]
    assert learner().nth_prefix(rows, places).tolist() == [[1, 2, 3, 4, 5, 6]]
    masked = jnp.array(True)
    many = rows.repeat(200)
    _, prefix = learner(prefixes="step_ends").random_masks(jax.random.key(0), many, masked)
    assert set(prefix.tolist()) == {2, 5, 6}
    gap = learn.measure_gap(learner(prefixes="step_ends"), random_answerer, rows, 1)
    assert len(set(gap["by_prefix"]["none_masked"])) == 3
