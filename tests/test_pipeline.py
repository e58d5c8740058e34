"""The order of training rows: whole epochs, another order in each, and the very same after a resume."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from mean_jax.config import DataConfig
from mean_jax.data.pipeline import EpochPlan, epoch_order, padded_batches, plan_epoch, stream_layout, train_dispatches
from mean_jax.types import RowLayout

BATCH_SIZE, EPOCHS, SEED = 32, 3, 7
GOLDEN_ROWS = [1, 7, 2, 9, 4, 5, 3, 6, 0, 8]
GOLDEN_BLOCKS = [1, 0, 6, 7, 8, 9, 3, 4, 5, 2]


class NumberedRows:
    """Stands for a split: one word per row, its number."""

    layout = RowLayout(1, 0, 0)

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def gather(self, rows_B, words_BxW=None):
        assert rows_B.max(initial=0) < self._num_rows
        words_BxW = np.empty((len(rows_B), 1), np.float32) if words_BxW is None else words_BxW
        words_BxW[:, 0] = rows_B
        return words_BxW

    def read(self, first, words_BxW):
        assert first + len(words_BxW) <= self._num_rows
        words_BxW[:, 0] = first + np.arange(len(words_BxW))


@pytest.fixture
def rows():
    return NumberedRows(1000)


def numbers(rows, seed=SEED, epochs=EPOCHS, start=0) -> np.ndarray:
    """Returns the row numbers [dispatches, S * B] that a training would see."""
    stream = train_dispatches(rows, plan_epoch(len(rows), BATCH_SIZE, 8), epochs, seed, start)
    return np.array([words.ravel() for words in stream]).astype(int)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**5), st.integers(1, 64))
def test_the_plan_of_an_epoch(num_rows, batch_size, max_steps):
    num_rows = max(num_rows, batch_size)
    _, dispatches, steps = plan_epoch(num_rows, batch_size, max_steps)
    assert 1 <= steps <= max_steps
    assert dispatches * steps * batch_size <= num_rows
    left_out = num_rows - dispatches * steps * batch_size
    assert left_out < dispatches * batch_size  # less than one more step in each dispatch
    assert dispatches == -(-(num_rows // batch_size) // max_steps)  # as few as possible


def test_shapes(store):
    split = store.split("train")
    words = next(train_dispatches(split, EpochPlan(BATCH_SIZE, 3, 5), EPOCHS, SEED, 0))
    assert words.shape == (5, BATCH_SIZE, store.schema.layout.num_words)
    assert words.dtype == np.float32


def test_an_epoch_has_each_row_at_most_once(rows):
    for epoch in numbers(rows).reshape(EPOCHS, -1):
        assert len(epoch) == 4 * 7 * BATCH_SIZE
        assert len(np.unique(epoch)) == len(epoch)


def test_full_batches_use_every_row():
    rows = NumberedRows(8 * BATCH_SIZE)
    for epoch in numbers(rows).reshape(EPOCHS, -1):
        assert sorted(epoch) == list(range(len(rows)))


def test_each_epoch_and_each_seed_has_another_order(rows):
    first, second, third = numbers(rows).reshape(EPOCHS, -1)
    other = numbers(rows, seed=SEED + 1).reshape(EPOCHS, -1)[0]
    for a, b in ((first, second), (second, third), (first, other), (second, other)):
        assert (a != b).mean() > 0.9
        assert set(a) != set(b)  # the rows that are left out change too


def test_the_order_is_that_of_the_seed(rows):
    np.testing.assert_array_equal(numbers(rows), numbers(rows))


@pytest.mark.parametrize("start", [1, 3, 4, 5, 11])
def test_a_resume_continues_exactly(rows, start):
    np.testing.assert_array_equal(numbers(rows, start=start), numbers(rows)[start:])


def test_a_resume_after_the_end_has_nothing_to_do(rows):
    assert len(numbers(rows, start=12)) == 0


def test_more_epochs_begin_with_the_same_ones(rows):
    np.testing.assert_array_equal(numbers(rows, epochs=2), numbers(rows)[: 2 * 4])


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_padded_batches_hold_every_row_once(num_rows, batch_size):
    batches = list(padded_batches(NumberedRows(num_rows), batch_size))
    assert all(words.shape == (batch_size, 1) and mask.shape == (batch_size,) for words, mask in batches)
    seen = np.concatenate([words[mask] for words, mask in batches]).ravel()
    np.testing.assert_array_equal(seen, np.arange(num_rows))


def test_own_rows_of_all_processes_make_the_batch(rows):
    plan = plan_epoch(len(rows), BATCH_SIZE, 8)
    whole = list(train_dispatches(rows, plan, 1, SEED, 0))
    halves = [list(train_dispatches(rows, plan, 1, SEED, 0, own=own)) for own in (slice(0, 16), slice(16, 32))]
    for words, first, second in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(words, np.concatenate([first, second], axis=1))
    batches = list(padded_batches(rows, 64, slice(16, 48)))
    np.testing.assert_array_equal(batches[-1][0].ravel(), np.minimum(np.arange(960 + 16, 960 + 48), 999))
    np.testing.assert_array_equal(batches[-1][1], np.arange(64) < 40)


BLOCKS = DataConfig(shuffle="blocks", block_rows=16, window_blocks=4)


@pytest.mark.parametrize("num_rows", [1000, 1024, 40, 10, 1])
def test_a_shuffle_of_blocks_is_a_permutation_in_long_pieces(num_rows):
    order = epoch_order(num_rows, SEED, 0, BLOCKS)
    np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))
    for start in range(0, num_rows, 64):
        # A window of 64 rows reads at most 5 blocks of 16, one of them short.
        assert len(np.unique(order[start : start + 64] // 16)) <= 5
    if num_rows == 1000:
        assert (np.diff(order) == 1).mean() < 0.1
        assert (order != epoch_order(num_rows, SEED, 1, BLOCKS)).mean() > 0.9


def test_the_stream_of_blocks_follows_their_order():
    """Dispatches of 96 rows, windows of 64: some lie in two windows; the last block is short."""
    rows = NumberedRows(1000)
    plan = plan_epoch(len(rows), BATCH_SIZE, 3)
    stream = train_dispatches(rows, plan, 2, SEED, 0, BLOCKS)
    seen = np.concatenate([words.ravel() for words in stream]).astype(int)
    used = plan.epoch_steps * BATCH_SIZE
    expected = [epoch_order(1000, SEED, epoch, BLOCKS)[:used] for epoch in range(2)]
    np.testing.assert_array_equal(seen, np.concatenate(expected))


def test_own_rows_of_blocks_are_those_of_the_batch():
    rows = NumberedRows(1000)
    plan = plan_epoch(len(rows), BATCH_SIZE, 3)
    whole = list(train_dispatches(rows, plan, 1, SEED, 2, BLOCKS))
    own = list(train_dispatches(rows, plan, 1, SEED, 2, BLOCKS, slice(8, 20)))
    np.testing.assert_array_equal(np.stack(own), np.stack(whole)[:, :, 8:20])


@pytest.mark.parametrize("config", [DataConfig(), BLOCKS])
def test_dispatches_that_are_kept_are_not_written_over(config):
    rows = NumberedRows(1000)
    plan = plan_epoch(len(rows), BATCH_SIZE, 3)
    kept = list(train_dispatches(rows, plan, 2, SEED, 0, config))
    again = [words.copy() for words in train_dispatches(rows, plan, 2, SEED, 0, config)]
    np.testing.assert_array_equal(np.stack(kept), np.stack(again))


def test_a_failure_of_reading_reaches_the_training():
    class UnreadableRows(NumberedRows):
        def read(self, first, words_BxW):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(train_dispatches(UnreadableRows(1000), plan_epoch(1000, BATCH_SIZE, 4), 1, SEED, 0, BLOCKS))


def test_two_bytes_are_sent_as_they_are_stored():
    wide = RowLayout(3, 1, 2)
    half = wide._replace(numeric_type="float16", exponents=(0, 1, 2))
    to_bfloat16 = DataConfig(numeric_type="bfloat16")
    assert stream_layout(wide, to_bfloat16) == wide._replace(numeric_type="bfloat16")
    assert stream_layout(half, to_bfloat16) == half
    assert stream_layout(wide, DataConfig()) == wide


def test_the_orders_are_those_of_earlier_versions():
    assert epoch_order(10, SEED, 2, DataConfig()).tolist() == GOLDEN_ROWS
    config = DataConfig(shuffle="blocks", block_rows=3, window_blocks=2)
    assert epoch_order(10, SEED, 2, config).tolist() == GOLDEN_BLOCKS


@pytest.mark.parametrize("config", [DataConfig(), BLOCKS])
def test_an_order_takes_four_bytes_per_row(config):
    assert epoch_order(1000, SEED, 0, config).nbytes == 4000
