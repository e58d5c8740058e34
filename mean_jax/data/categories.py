"""Counts of the values of a categorical column, in memory that is bounded however many values there are."""

from collections import Counter

import numpy as np
import pyarrow as pa

MAX_CATEGORIES = 100_000
# Distinct values held before the rarest are dropped: for each that the vocabulary may have, and at the least, so that
# values that become frequent late are still counted where the vocabulary is small.
_SLACK = 2
_MIN_HELD = 200_000


class CategoryCounts:
    """How often each value of a column stands in the training rows; mergeable in a fixed order.

    Once more than twice `capacity` values are held, and more than 200,000, all but the more frequent half are dropped:
    exact as long as that never happens. A value that is dropped and comes back counts from there on, so what survives
    may be counted short, and `num_rows` keeps what was dropped: it counts as unknown.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self.num_rows = 0
        self.num_missing = 0
        self.is_pruned = False

    def update(self, texts: pa.Array, counts: np.ndarray, num_missing: int) -> None:
        """Adds the counts of texts (some may be 0, and a text may stand there twice) and of missing values."""
        self.num_rows += int(counts.sum()) + num_missing
        self.num_missing += num_missing
        for text, count in zip(texts.to_pylist(), counts.tolist(), strict=True):
            if count:
                self._counts[text] += count
        self._prune()

    def merge(self, other: "CategoryCounts") -> None:
        """Adds the rows of another table."""
        self.num_rows += other.num_rows
        self.num_missing += other.num_missing
        self.is_pruned |= other.is_pruned
        for text, count in other._counts.items():
            self._counts[text] += count
        self._prune()

    def _prune(self) -> None:
        num_held = max(_SLACK * self._capacity, _MIN_HELD)
        if len(self._counts) > num_held:
            self._counts = Counter(dict(self._by_frequency()[: num_held // 2]))
            self.is_pruned = True

    def _by_frequency(self) -> list[tuple[str, int]]:
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))

    @property
    def num_values(self) -> int:
        """Distinct values held."""
        return len(self._counts)

    @property
    def largest(self) -> int:
        """The count of the most frequent value; 0 if every row is missing."""
        return max(self._counts.values(), default=0)

    def is_cut(self, min_count: int) -> bool:
        """Tells whether the capacity, and not `min_count`, decides which values are left out."""
        return self.is_pruned or sum(count >= min_count for count in self._counts.values()) > self._capacity

    def vocabulary(self, min_count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Returns the values by falling frequency, and training rows per code: unknown, missing, values.

        Args:
          min_count: values seen less often are left out, as are those beyond the capacity.
        """
        frequent = [(text, count) for text, count in self._by_frequency() if count >= min_count][: self._capacity]
        counts = [count for _, count in frequent]
        unknown = self.num_rows - self.num_missing - sum(counts)
        return tuple(text for text, _ in frequent), (unknown, self.num_missing, *counts)
