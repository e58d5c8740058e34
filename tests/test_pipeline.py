"""The order of training rows: whole epochs, another order in each, and the very same after a resume."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from mean_jax.data.pipeline import padded_batches, plan_epoch, train_dispatches

BATCH_SIZE, EPOCHS, SEED = 32, 3, 7


class NumberedRows:
    """Stands for a split: one word per row, its number."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def gather(self, rows_B):
        assert rows_B.max(initial=0) < self._num_rows
        return rows_B[:, None].astype(np.float32)


@pytest.fixture
def rows():
    return NumberedRows(1000)


def numbers(rows, seed=SEED, epochs=EPOCHS, start=0) -> np.ndarray:
    """Returns the row numbers [dispatches, S * B] that a training would see."""
    dispatches, steps = plan_epoch(len(rows), BATCH_SIZE, 8)
    stream = train_dispatches(rows, BATCH_SIZE, dispatches, steps, epochs, seed, start)
    return np.array([words.ravel() for words in stream]).astype(int)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**5), st.integers(1, 64))
def test_the_plan_of_an_epoch(num_rows, batch_size, max_steps):
    num_rows = max(num_rows, batch_size)
    dispatches, steps = plan_epoch(num_rows, batch_size, max_steps)
    assert 1 <= steps <= max_steps
    assert dispatches * steps * batch_size <= num_rows
    left_out = num_rows - dispatches * steps * batch_size
    assert left_out < dispatches * batch_size  # less than one more step in each dispatch
    assert dispatches == -(-(num_rows // batch_size) // max_steps)  # as few as possible


def test_shapes(store):
    split = store.split("train")
    words = next(train_dispatches(split, BATCH_SIZE, 3, 5, EPOCHS, SEED, 0))
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
