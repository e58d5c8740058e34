"""Counts of categorical values: exact while they fit, bounded and honest about the rest beyond."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mean_jax.data import categories
from mean_jax.data.categories import CategoryCounts


def counted(values, capacity=1000, num_parts=1) -> CategoryCounts:
    total = CategoryCounts(capacity)
    for part in np.array_split(np.array(values, object), num_parts):
        own = CategoryCounts(capacity)
        encoded = pa.array(part, pa.string()).dictionary_encode()
        indices = encoded.indices.drop_null().to_numpy()
        own.update(encoded.dictionary, np.bincount(indices, minlength=len(encoded.dictionary)), encoded.null_count)
        total.merge(own)
    return total


@pytest.mark.parametrize("num_parts", [1, 3, 40])
def test_counts_are_those_of_a_counter(num_parts):
    rng = np.random.default_rng(0)
    values = [None if value == 0 else f"v{value}" for value in rng.zipf(1.5, 3000) % 50]
    counts = counted(values, num_parts=num_parts)
    expected = Counter(value for value in values if value is not None)
    frequent = sorted((value for value in expected if expected[value] >= 5), key=lambda v: (-expected[v], v))
    vocabulary, per_code = counts.vocabulary(min_count=5)
    assert list(vocabulary) == frequent
    assert list(per_code[2:]) == [expected[value] for value in frequent]
    assert per_code[1] == values.count(None)
    assert sum(per_code) == counts.num_rows == len(values)
    assert counts.largest == max(expected.values())
    assert not counts.is_pruned


def test_a_text_that_no_training_row_has_is_no_value():
    counts = CategoryCounts(10)
    counts.update(pa.array(["a", "b", "a"]), np.array([2, 0, 1]), 0)
    assert counts.vocabulary(1) == (("a",), (0, 0, 3))
    assert counts.num_values == 1


def test_a_million_values_are_held_by_the_capacity_and_the_frequent_ones_survive(monkeypatch):
    monkeypatch.setattr(categories, "_MIN_HELD", 0)
    rng = np.random.default_rng(1)
    values = np.concatenate([[f"often{i % 20}" for i in range(4000)], [f"once{i}" for i in range(20_000)]])
    rng.shuffle(values)
    counts = counted(values, capacity=100, num_parts=50)
    assert counts.num_values <= 200
    assert counts.is_pruned and counts.is_cut(min_count=5)
    vocabulary, per_code = counts.vocabulary(min_count=5)
    assert set(vocabulary) == {f"often{i}" for i in range(20)}
    assert sum(per_code) == counts.num_rows == len(values)  # what was dropped is unknown


def test_values_that_become_frequent_late_enter_a_small_vocabulary():
    """The first rows have 30 values three times each; the next 20 tables have ten others once each, among 90 more."""
    early = np.repeat([f"early{i}" for i in range(30)], 3)
    tables = [[*(f"late{i}" for i in range(10)), *(f"once{table}-{i}" for i in range(90))] for table in range(20)]
    total = CategoryCounts(10)
    for values in (early, *tables):
        total.merge(counted(values, capacity=10))
    vocabulary, per_code = total.vocabulary(min_count=1)
    assert vocabulary == tuple(f"late{i}" for i in range(10))
    assert per_code == (90 + 20 * 90, 0, *[20] * 10)
    assert total.is_cut(min_count=1) and not total.is_pruned


def test_the_capacity_bounds_the_vocabulary():
    counts = counted(["a"] * 3 + ["b"] * 2 + ["c"] * 2, capacity=2)
    assert counts.vocabulary(1) == (("a", "b"), (2, 0, 3, 2))
    assert counts.is_cut(1) and not counts.is_cut(3)
    assert not counts.is_pruned
