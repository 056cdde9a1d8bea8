import collections
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data import packing, tokens
from kpod_jax.data.buckets import batch_rows, length_buckets, padded
from kpod_jax.data.records import Ragged, Record
from kpod_jax.utils.errors import UserError
from tests.conftest import TEMPLATES
from tests.tools import batch_source

PAD, START = 0, 7


@pytest.fixture(scope="module")
def tokenized(byte_tokenizer):
    records = [
        Record(str(i), "q" * (1 + 5 * i), ("One. ", "Two" * (i % 5) + ". ", "End."), str(i))
        for i in range(11)
    ]
    result, rejected = tokens.tokenize(
        records, byte_tokenizer, **TEMPLATES, max_question_tokens=500, max_target_tokens=500
    )
    assert not rejected
    return result


def make(tokenized, batch_size=4, seed=0, **options):
    return batch_source(tokenized, batch_size, seed, pad_id=PAD, decoder_start_id=START, **options)


def epoch_of(source, epoch):
    steps = source.steps_per_epoch
    return [source[step] for step in range(epoch * steps, (epoch + 1) * steps)]


def indices(items):
    return [int(i) for batch in items for i in batch["index"] if i >= 0]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("step_starts", [False, True])
def test_batch_is_what_its_examples_say(tokenized, step_starts):
    generator = np.random.default_rng(0)
    weights = Ragged.from_list(
        [generator.random(n, np.float32) for n in tokenized.rationale_lengths]
    )
    start_steps = np.arange(len(tokenized)) % 4
    source = make(
        tokenized,
        weights=weights,
        start_steps=lambda stage: start_steps,
        step_starts=step_starts,
    )
    for batch in epoch_of(source, 0):
        for row, i in enumerate(batch["index"]):
            length, target_length = int(batch["input_mask"][row].sum()), 0
            if i >= 0:
                question, target, n = (
                    tokenized.questions[i],
                    tokenized.targets[i],
                    tokenized.rationale_lengths[i],
                )
                target_length = len(target)
                assert batch["input_ids"][row, :length].tolist() == question.tolist()
                assert batch["targets"][row, :target_length].tolist() == target.tolist()
                shifted = [START, *target[:-1]]
                assert batch["decoder_input_ids"][row, :target_length].tolist() == shifted
                steps = tokenized.steps[i].tolist()
                begins = [step_starts and step not in steps[:j] for j, step in enumerate(steps)]
                supervised = [
                    step >= start_steps[i] or first
                    for step, first in zip(steps, begins, strict=True)
                ]
                expected = [
                    counts * (weights[i][j] if j < n else 1) for j, counts in enumerate(supervised)
                ]
                assert batch["loss_weights"][row, :target_length].tolist() == expected
                assert batch["supervised"][row, :target_length].tolist() == supervised
                # The answer sentence and EOS are supervised whatever the schedule says.
                assert batch["supervised"][row, n:target_length].all()
            assert (batch["input_ids"][row, length:] == PAD).all()
            assert not batch["input_mask"][row, length:].any()
            assert (batch["targets"][row, target_length:] == PAD).all()
            assert not batch["loss_weights"][row, target_length:].any()
            assert not batch["supervised"][row, target_length:].any()
        kinds = {key: value.dtype for key, value in batch.items()}
        assert kinds == {
            "input_ids": np.int32,
            "input_mask": bool,
            "decoder_input_ids": np.int32,
            "targets": np.int32,
            "loss_weights": np.float32,
            "supervised": bool,
            "divisor": np.float32,
            "index": np.int32,
        }


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("buckets", [1, 2, 4])
def test_every_epoch_has_every_example_once_in_few_shapes(tokenized, batch_size, buckets):
    source = make(tokenized, batch_size, buckets=buckets)
    orders = []
    for epoch in range(3):
        items = epoch_of(source, epoch)
        orders.append(indices(items))
        assert sorted(orders[-1]) == list(range(len(tokenized)))
        shapes = {
            (item["input_ids"].shape[1], item["targets"].shape[1])
            for item in items
            if len(item["index"]) == batch_size
        }
        assert shapes == set(source.shapes)
        assert len(shapes) <= buckets
        assert all(size % 8 == 0 for shape in shapes for size in shape)
    assert orders[0] != orders[1] != orders[2]


def test_batches_are_a_function_of_seed_and_step(tokenized):
    source, again = make(tokenized), make(tokenized)
    steps = [9, 0, 5, 9, 1000]
    for step in steps:  # Whatever was asked before.
        assert_same(source[step], again[step])
    assert indices(epoch_of(source, 0)) != indices(epoch_of(make(tokenized, seed=1), 0))


def test_iterator_resumes_exactly(tokenized):
    source = make(tokenized)
    expected = [source[step] for step in range(3, 12)]
    iterator = source.iterate(3, 12, threads=2, prefetch=4)
    for item in expected[:4]:
        assert_same(next(iterator), item)
    state = iterator.get_state()
    rest = list(iterator)
    assert len(rest) == 5
    resumed = make(tokenized).iterate(3, 12)
    resumed.set_state(state)
    for one, other, item in zip(rest, resumed, expected[4:], strict=True):
        assert_same(one, item)
        assert_same(other, item)


def test_stages_are_asked_by_step(tokenized):
    asked = []

    def start_steps(stage):
        asked.append(stage)
        return np.full(len(tokenized), 3 - stage)

    source = make(tokenized, start_steps=start_steps, phase_of_step=lambda step: step // 2)
    sizes = [source[step]["loss_weights"] for step in range(6)]
    assert asked == [0, 0, 1, 1, 2, 2]
    plain = make(tokenized)
    for step, loss_weights in enumerate(sizes):  # The mask moves; the batches do not.
        assert loss_weights.shape == plain[step]["loss_weights"].shape
        assert ((loss_weights > 0) <= (plain[step]["loss_weights"] > 0)).all()


def test_a_stage_that_leaves_examples_out_is_filled_with_the_others(tokenized):
    part = [0, 3, 4, 9]
    left_out = tokenized.num_steps + 1
    left_out[part] = 0
    whole = np.zeros(len(tokenized), np.int32)
    options = {
        "buckets": 2,
        "start_steps": lambda stage: whole if stage else left_out,
        "phase_of_step": lambda step: step // 6,
    }
    source, plain = make(tokenized, **options), make(tokenized, buckets=2)
    assert source.steps_per_epoch == plain.steps_per_epoch == 3
    for epoch in range(2):
        items = epoch_of(source, epoch)
        seen = collections.Counter(indices(items))
        # 12 rows without padding; members of a bucket occur as often as each other, or once more.
        assert seen.total() == 12 and set(seen) == set(part)
        shapes = collections.defaultdict(set)
        for item in items:
            shape = item["input_ids"].shape[1], item["targets"].shape[1]
            assert shape in source.shapes and item["supervised"].any(axis=1).all()
            for i in item["index"].tolist():
                shapes[shape].add(seen[i])
        assert all(max(counts) - min(counts) <= 1 for counts in shapes.values())
        for one, other in zip(items, epoch_of(make(tokenized, **options), epoch), strict=True):
            assert_same(one, other)
    assert indices(epoch_of(source, 0)) != indices(epoch_of(source, 1))
    for one, other in zip(epoch_of(source, 2), epoch_of(plain, 2), strict=True):
        assert_same(one, other)
    # Where all are left out there is nothing to fill steps with.
    none = make(tokenized, start_steps=lambda stage: tokenized.num_steps + 1)
    assert not any(item["supervised"].any() for item in epoch_of(none, 0))


def test_packed_rows_without_anything_to_learn_are_passed_over(tokenized):
    plain = make(tokenized, 2, pack_length=160)
    row = plain[0]["index"].tolist()[0]  # The first of a row's examples.
    left_out = tokenized.num_steps + 1
    left_out[row] = 0
    source = make(tokenized, 2, pack_length=160, start_steps=lambda stage: left_out)
    assert source.steps_per_epoch == plain.steps_per_epoch > 1
    assert set(indices(epoch_of(source, 0))) == {row}


def test_default_stage_is_the_epoch(tokenized):
    asked = []
    source = make(tokenized, start_steps=lambda t: asked.append(t) or np.zeros(len(tokenized)))
    for step in range(2 * source.steps_per_epoch):
        source[step]
    assert asked == [0] * source.steps_per_epoch + [1] * source.steps_per_epoch


def test_in_order_is_whole_and_once(tokenized):
    source = make(tokenized, start_steps=lambda stage: tokenized.num_steps)
    items = list(source.in_order(3))
    assert sorted(indices(items)) == list(range(len(tokenized)))
    total = sum(int(item["supervised"].sum()) for item in items)
    assert total == len(tokenized.targets.values)
    for one, other in zip(items, source.in_order(3), strict=True):
        assert_same(one, other)


def test_weights_of_other_records_are_refused(tokenized):
    lengths = tokenized.rationale_lengths[::-1]
    weights = Ragged.from_list([np.ones(n, np.float32) for n in lengths])
    with pytest.raises(UserError, match="other records"):
        make(tokenized, weights=weights)
    with pytest.raises(UserError, match="other records"):
        make(tokenized, start_steps=lambda stage: np.zeros(3))[0]


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"seed": -1}, {"buckets": 0}])
def test_impossible_setting(tokenized, option):
    with pytest.raises(UserError, match=next(iter(option))):
        make(tokenized, **option)


def test_no_examples(byte_tokenizer):
    empty, _ = tokens.tokenize(
        [], byte_tokenizer, **TEMPLATES, max_question_tokens=9, max_target_tokens=9
    )
    with pytest.raises(UserError, match=r"rejected\.jsonl"):
        make(empty)


LENGTHS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=10)


@given(lengths=LENGTHS, count=st.integers(1, 4), batch_size=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_buckets_are_the_best_cuts_of_the_sorted_row(lengths, count, batch_size):
    lengths = np.array(lengths)
    rounded = -(-np.maximum(lengths, 1) // 8) * 8

    def cost(groups):
        return sum(
            -(-len(members) // batch_size) * batch_size * rounded[members].max(axis=0).sum()
            for members in groups
        )

    found = length_buckets(lengths, count, batch_size)
    members = [m.tolist() for m, _ in found]
    assert sorted(itertools.chain(*members)) == list(range(len(lengths)))
    for m, shape in found:
        assert shape.tolist() == rounded[m].max(axis=0).tolist()

    levels = collections.defaultdict(list)
    for i, size in enumerate(rounded.max(axis=1)):
        levels[int(size)].append(i)
    row = [levels[size] for size in sorted(levels)]
    best = min(
        cost(
            [list(itertools.chain(*row[a:b])) for a, b in itertools.pairwise((0, *cuts, len(row)))]
        )
        for k in range(min(count, len(row)))
        for cuts in itertools.combinations(range(1, len(row)), k)
    )
    assert cost(members) == best


def test_padded_and_rows():
    ragged = Ragged.from_list([[1, 2], [], [3]], np.int32)
    values, mask = padded(ragged, np.array([2, -1, 0, 1]), 2, 9)
    assert values.tolist() == [[3, 9], [9, 9], [1, 2], [9, 9]]
    assert mask.tolist() == [[True, False], [False, False], [True, True], [False, False]]
    assert batch_rows(np.array([5, 6, 7]), 2).tolist() == [[5, 6], [7, -1]]


def test_input_steps_move_to_the_encoder(tokenized):
    """Nothing is lost or doubled: prompt, input steps, EOS; the rest is the decoder's."""
    start, rng = np.minimum(1, tokenized.num_steps), np.random.default_rng(0)
    weights = Ragged.from_list([rng.random(n) for n in tokenized.rationale_lengths], np.float32)
    plain = make(tokenized, weights=weights, start_steps=lambda stage: start)
    moved = make(tokenized, weights=weights, start_steps=lambda stage: start, input_steps="encoder")
    for step in range(plain.steps_per_epoch):
        a, b = plain[step], moved[step]
        assert b["input_ids"].shape[1] == a["input_ids"].shape[1] + a["targets"].shape[1]
        for row, i in enumerate(a["index"]):
            if i < 0:
                assert not b["input_mask"][row].any()
                assert not b["supervised"][row].any()
                continue
            question, target = tokenized.questions[i], tokenized.targets[i]
            count = int((tokenized.steps[i] < start[i]).sum())
            expected = [*question[:-1], *target[:count], question[-1]]
            assert b["input_ids"][row][b["input_mask"][row]].tolist() == expected
            assert b["targets"][row][b["supervised"][row]].tolist() == target[count:].tolist()
            assert b["decoder_input_ids"][row, 1] == b["targets"][row, 0]
            weight = a["loss_weights"][row][a["supervised"][row]]
            assert b["loss_weights"][row][b["supervised"][row]].tolist() == weight.tolist()
            assert len(set(weight.tolist())) > 1 and not b["loss_weights"][row][len(weight) :].any()


def test_first_tokens_of_steps_in_the_encoder_are_not_supervised(tokenized):
    options = {"input_steps": "encoder", "start_steps": lambda stage: tokenized.num_steps - 1}
    assert_same(make(tokenized, **options)[0], make(tokenized, step_starts=True, **options)[0])


def test_an_example_that_is_left_out_has_no_first_tokens(tokenized):
    out = tokenized.num_steps + (np.arange(len(tokenized)) > 0)
    source = make(tokenized, 1, start_steps=lambda stage: out, step_starts=True)
    assert set(indices(epoch_of(source, 0))) == {0}


@given(
    hosts=st.sampled_from([1, 2, 4, 8]),
    buckets=st.integers(1, 3),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
    input_steps=st.sampled_from(["decoder", "encoder"]),
)
@settings(max_examples=40)
def test_the_hosts_parts_are_the_batch(tokenized, hosts, buckets, seed, epoch, input_steps):
    options = {"batch_size": 8, "buckets": buckets, "seed": seed, "input_steps": input_steps}
    whole = make(tokenized, **options)
    parts = [make(tokenized, host=(i, hosts), **options) for i in range(hosts)]
    for step in range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch):
        made = [part[step] for part in parts]
        joined = {key: np.concatenate([m[key] for m in made]) for key in made[0]}
        assert_same(joined, whole[step])


def test_a_batch_that_hosts_cannot_divide_is_named(tokenized):
    with pytest.raises(UserError, match="batch of 4 rows evenly among 3 hosts"):
        make(tokenized, host=(0, 3))


def test_padding_fraction_by_hand(tokenized):
    source = make(tokenized, buckets=2)
    items = epoch_of(source, 0)
    used = sum(int(b["input_mask"].sum()) for b in items)
    used += int(tokenized.targets.lengths.sum())
    total = sum(b["input_ids"].size + b["targets"].size for b in items)
    assert source.padding_fraction == pytest.approx(1 - used / total)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30), capacity=st.integers(20, 50))
def test_bins_hold_each_example_once_and_no_row_too_much(lengths, capacity):
    lengths = np.array(lengths)
    rows = packing.pack_bins(lengths, capacity)
    assert sorted(rows.values.tolist()) == list(range(len(lengths)))
    fills = [int(lengths[rows[i]].sum()) for i in range(len(rows))]
    assert max(fills) <= capacity
    # No two rows could have been one.
    assert all(a + b > capacity for a, b in itertools.combinations(fills, 2))


@pytest.mark.parametrize("step_starts", [False, True])
def test_a_packed_row_holds_what_its_examples_rows_hold(tokenized, step_starts):
    weights = [
        np.random.default_rng(i).random(n) for i, n in enumerate(tokenized.rationale_lengths)
    ]
    options: dict[str, Any] = {
        "start_steps": lambda stage: np.arange(len(tokenized)) % 4,
        "weights": Ragged.from_list(weights, np.float32),
        "step_starts": step_starts,
    }
    plain, packed = make(tokenized, **options), make(tokenized, pack_length=160, **options)
    rows = {
        int(i): (batch, row)
        for batch in epoch_of(plain, 0)
        for row, i in enumerate(batch["index"])
        if i >= 0
    }
    assert packed.shapes == [(0, 160)]
    used = [batch["segments"] > 0 for batch in epoch_of(packed, 0)]
    assert packed.padding_fraction == pytest.approx(1 - np.mean(used))
    seen = []
    for batch in epoch_of(packed, 0):
        for row, first in enumerate(batch["index"]):
            for segment in range(1, 1 + batch["segments"][row].max()):
                mine = batch["segments"][row] == segment
                inputs = batch["decoder_input_ids"][row][mine]
                targets = batch["targets"][row][mine]
                (i,) = [
                    i
                    for i in range(len(tokenized))
                    if inputs.tolist()
                    == [*tokenized.questions[i], START, *tokenized.targets[i][:-1]]
                ]
                assert segment > 1 or i == first
                seen.append(i)
                single, at = rows[i]
                size = len(tokenized.targets[i])
                for key in ("targets", "loss_weights", "supervised"):
                    np.testing.assert_array_equal(
                        batch[key][row][mine][-size:], single[key][at][:size]
                    )
                assert not batch["supervised"][row][mine][:-size].any()
                assert (targets[:-size] == PAD).all()
    assert sorted(seen) == list(range(len(tokenized)))
    with pytest.raises(
        UserError, match=r"Record 9 has 131 tokens, more than distill\.pack_length=30"
    ):
        make(tokenized, pack_length=30)


GROUPS = Ragged.from_list([[0, 1], [2, 3, 4], [5, 5], [6, 7, 8, 9, 10]])


def group_of(example):
    return next(g for g in range(len(GROUPS)) if example in GROUPS[g])


def test_pairs_of_one_group_stand_side_by_side_and_each_group_once_an_epoch(tokenized):
    source = make(tokenized, groups=GROUPS, buckets=2)
    drawn = []
    for epoch in range(6):
        groups = []
        for batch in epoch_of(source, epoch):
            assert batch["index"].shape == (4,)
            for one, other in batch["index"].reshape(-1, 2).tolist():
                assert (one < 0) == (other < 0)
                if one < 0:
                    continue
                assert group_of(one) == group_of(other)
                assert one != other or one == 5
                groups.append(group_of(one))
                drawn.append((one, other))
        assert sorted(groups) == [0, 1, 2, 3]
    assert len({pair for pair in drawn if group_of(pair[0]) == 3}) > 2  # Drawn anew.
    # A batch is a function of seed and step alone, and hosts share it.
    for step in (0, 7):
        whole = make(tokenized, groups=GROUPS, buckets=2)[step]
        assert_same(whole, source[step])
        parts = [make(tokenized, groups=GROUPS, buckets=2, host=(i, 2))[step] for i in (0, 1)]
        for key, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


def test_pairs_need_whole_pairs_of_rows_and_rows_that_stand_still(tokenized):
    with pytest.raises(UserError, match=r"batch_size=3: .* expected a multiple of 2"):
        make(tokenized, batch_size=3, groups=GROUPS)
    with pytest.raises(UserError, match="expected 0 and decoder"):
        make(tokenized, groups=GROUPS, input_steps="encoder")


def test_a_loss_of_ones_own_has_arrays_of_its_own(tokenized):
    source = make(tokenized, arrays=lambda rows, size: {"sizes": np.full(len(rows), size)})
    batch = source[0]
    assert (batch["sizes"] == batch["targets"].shape[1]).all() and batch["sizes"].shape == (4,)


@pytest.mark.parametrize("pack", [0, 160])
@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 11).astype(np.float32)])
def test_a_token_counts_the_same_in_full_batches_and_in_the_rests(tokenized, weights, pack):
    """11 examples in batches of 4: each bucket's last batch has padding rows."""
    start_steps = np.arange(len(tokenized)) % 4
    source = make(
        tokenized,
        buckets=3,
        pack_length=pack,
        example_weights=weights,
        start_steps=lambda stage: np.minimum(stage, start_steps),
    )
    for stage in (0, 2):  # A stage is an epoch.
        found = collections.Counter()
        for batch in epoch_of(source, stage):
            assert len(set(batch["divisor"].tolist())) == 1
            share = batch["loss_weights"] / batch["divisor"][:, None]
            found.update(share[batch["supervised"]].tolist())
        counts_N = [
            int((tokenized.steps[i] >= min(stage, start_steps[i])).sum())
            for i in range(len(tokenized))
        ]
        mean = np.float32(sum(counts_N) / source.steps_per_epoch)
        expected = collections.Counter()
        for i, count in enumerate(counts_N):
            expected[float((np.float32(1) if weights is None else weights[i]) / mean)] += count
        assert found == expected  # To the last bit.


def test_pairs_count_the_same_whatever_is_drawn(tokenized):
    source = make(tokenized, groups=GROUPS, buckets=2)
    divisors = {float(d) for epoch in (0, 1) for b in epoch_of(source, epoch) for d in b["divisor"]}
    lengths = tokenized.targets.lengths
    mean = sum(2 * lengths[GROUPS[g]].mean() for g in range(4)) / source.steps_per_epoch
    assert divisors == {float(np.float32(mean))}


@pytest.mark.parametrize(
    "options", [{}, {"pack_length": 160}, {"groups": GROUPS}, {"step_starts": True}]
)
def test_supervised_tokens_are_those_of_the_batches(tokenized, options):
    source = make(
        tokenized,
        buckets=2,
        start_steps=lambda stage: np.maximum(0, tokenized.num_steps + 1 - stage),
        host=(1, 2),
        **options,
    )
    steps = 4 * source.steps_per_epoch + 1
    found = source.supervised_tokens(steps)
    whole = make(
        tokenized,
        buckets=2,
        # Tokens of rationales alone have a weight.
        weights=Ragged.from_list([np.full(n, 0.5) for n in tokenized.rationale_lengths]),
        start_steps=lambda stage: np.maximum(0, tokenized.num_steps + 1 - stage),
        **options,
    )
    for step in range(steps):
        weight = whole[step]["loss_weights"]
        assert found[step].tolist() == [int((weight == 0.5).sum()), int((weight == 1).sum())]
    assert not found[0].any() and found[-1].all()  # At first everything is left out.
