"""The first pass of prepare and append: all that can be refused or counted without the features."""

import dataclasses
from pathlib import Path

import numpy as np

from mean_jax.data import statistics
from mean_jax.data.labelled import LabelledReader, LabelledRows
from mean_jax.data.schema import Schema
from mean_jax.data.statistics import LabelStatistics
from mean_jax.data.store import SPLITS
from mean_jax.data.units import Unit
from mean_jax.fileio import naming

_VALIDATION = SPLITS.index("validation")


def _smallest(hashes: np.ndarray) -> np.ndarray:
    capacity = statistics.FEATURE_SAMPLE_ROWS
    return np.partition(hashes, capacity)[:capacity] if len(hashes) > capacity else hashes


class Checked:
    """What the first pass learns of the rows."""

    def __init__(self, num_labels: int) -> None:
        self.num_rows = 0
        self.rows_per_split = np.zeros(len(SPLITS), np.int64)  # with a known label
        self.num_unlabelled = 0
        self.known_in_validation, self.positive_in_validation = np.zeros((2, num_labels), np.int64)
        self.labels = LabelStatistics(num_labels)
        self._smallest = np.zeros(0, np.uint64)  # hashes of the training rows that are to be sampled

    def update(self, found: LabelledRows) -> None:
        """Adds rows."""
        has_label_B = found.has_label
        self.num_rows += len(has_label_B)
        self.num_unlabelled += int((~has_label_B).sum())
        self.rows_per_split += np.bincount(found.split[has_label_B], minlength=len(SPLITS))
        validation_VxT = found.labels[found.split == _VALIDATION]
        self.known_in_validation += (~np.isnan(validation_VxT)).sum(axis=0)
        self.positive_in_validation += (validation_VxT > 0).sum(axis=0)
        is_train_B = found.is_train
        self.labels.update(found.hashes[is_train_B], found.labels[is_train_B])
        self._smallest = _smallest(np.concatenate([self._smallest, found.hashes[is_train_B]]))

    def merge(self, other: "Checked") -> None:
        """Adds the rows of the next unit."""
        self.num_rows += other.num_rows
        self.rows_per_split += other.rows_per_split
        self.num_unlabelled += other.num_unlabelled
        self.known_in_validation += other.known_in_validation
        self.positive_in_validation += other.positive_in_validation
        self.labels.merge(other.labels)
        self._smallest = _smallest(np.concatenate([self._smallest, other._smallest]))

    @property
    def hash_bound(self) -> int:
        """The largest id hash among the training rows that are sampled."""
        return int(self._smallest.max(initial=0))


@dataclasses.dataclass(frozen=True)
class CheckUnit:
    """The pass over one unit; also writes the hashes of its ids."""

    schema: Schema
    scratch: Path

    def __call__(self, unit: Unit) -> Checked:
        checked = Checked(len(self.schema.labels))
        path = self.scratch / f"{unit.index:08d}.hashes"
        with naming(path), open(path, "wb") as file:
            for found in LabelledReader(unit, self.schema).read(()):
                checked.update(found)
                file.write(found.hashes.data)
        return checked
