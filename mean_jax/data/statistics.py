"""One-pass statistics of the training split, from which the transform is fitted.

Every statistic here can be updated block by block and does not depend on the order of the rows (moments up to
rounding): samples are the rows with the smallest id hashes, which is a uniform sample and exact while it holds all.
"""

from collections import Counter
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.schema import Schema
from mean_jax.data.transform import KNOT_LEVELS, LABEL_LEVELS, Transform
from mean_jax.errors import UserError

FEATURE_SAMPLE_ROWS = 100_000
LABEL_SAMPLE_ROWS = 1_000_000
# Above the kurtosis of an exponential distribution a column counts as heavy-tailed and gets the signed log.
_HEAVY_TAIL_KURTOSIS = 9.0


def signed_log1p(values: np.ndarray) -> np.ndarray:
    """Returns sign(x) * log1p(|x|)."""
    return np.sign(values) * np.log1p(np.abs(values))


class Moments:
    """Count, mean and variance per column over the values that are not NaN (Chan et al. 1979 pairwise update)."""

    def __init__(self, num_columns: int) -> None:
        self.count = np.zeros(num_columns)
        self.mean = np.zeros(num_columns)
        self._squares = np.zeros(num_columns)

    def update(self, values_BxC: np.ndarray) -> None:
        """Adds the rows of a float64 block; NaN is missing."""
        is_known_BxC = ~np.isnan(values_BxC)
        count = is_known_BxC.sum(axis=0)
        mean = np.where(is_known_BxC, values_BxC, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(is_known_BxC, values_BxC - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        delta = mean - self.mean
        self._squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count += count

    @property
    def std(self) -> np.ndarray:
        """The population standard deviation per column."""
        return np.sqrt(self._squares / np.maximum(self.count, 1))


class RowSample:
    """The rows with the smallest hashes, at most `capacity` of them."""

    def __init__(self, capacity: int, num_columns: int, dtype: type) -> None:
        self._capacity = capacity
        self._hashes = np.zeros(0, np.uint64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_pending = 0
        self._rows: np.ndarray = np.zeros((0, num_columns), dtype)

    def update(self, hashes_B: np.ndarray, rows_BxC: np.ndarray) -> None:
        if len(self._hashes) == self._capacity:
            is_small_B = hashes_B < self._hashes.max()
            hashes_B, rows_BxC = hashes_B[is_small_B], rows_BxC[is_small_B]
        self._pending.append((hashes_B, rows_BxC.astype(self._rows.dtype)))
        self._num_pending += len(hashes_B)
        if self._num_pending >= self._capacity:
            self._compact()

    def _compact(self) -> None:
        hashes = np.concatenate([self._hashes, *(block for block, _ in self._pending)])
        rows = np.concatenate([self._rows, *(block for _, block in self._pending)])
        if len(hashes) > self._capacity:
            keep = np.argpartition(hashes, self._capacity)[: self._capacity]
            hashes, rows = hashes[keep], rows[keep]
        self._hashes, self._rows, self._pending, self._num_pending = hashes, rows, [], 0

    @property
    def rows(self) -> np.ndarray:
        """The sampled rows, in no particular order."""
        self._compact()
        return self._rows


def useless_label(label: str, problem: str, split: str) -> UserError:
    """Returns the error for a label that cannot be learned or watched in a split."""
    return UserError(
        f"--label_columns: {label} {problem} in the {split} split; "
        f"drop it from --label_columns and add --exclude={label}"
    )


class Statistics:
    """All that is fitted on the training split."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        num_columns = len(schema.numeric)
        self.num_rows = 0
        self._raw = Moments(num_columns)
        self._log = Moments(num_columns)
        self._low = np.full(num_columns, np.inf)
        self._high = np.full(num_columns, -np.inf)
        self._features = RowSample(FEATURE_SAMPLE_ROWS, num_columns, np.float32)
        self._positive_labels = [RowSample(LABEL_SAMPLE_ROWS, 1, np.float64) for _ in schema.labels]
        self._label_moments = Moments(len(schema.labels))
        self._positive = np.zeros(len(schema.labels))
        self._categories: list[Counter[str | None]] = [Counter() for _ in schema.categorical]

    def update(
        self, hashes_B: np.ndarray, numeric_BxC: np.ndarray, texts: list[pa.Array], labels_BxT: np.ndarray
    ) -> None:
        """Adds training rows: numeric values with NaN for missing, category texts per column, labels in currency."""
        if not len(hashes_B):
            return
        self.num_rows += len(hashes_B)
        wide_BxC = numeric_BxC.astype(np.float64)
        self._raw.update(wide_BxC)
        self._log.update(signed_log1p(wide_BxC))
        self._low = np.fmin(self._low, np.fmin.reduce(wide_BxC, axis=0))
        self._high = np.fmax(self._high, np.fmax.reduce(wide_BxC, axis=0))
        self._features.update(hashes_B, numeric_BxC)
        for sample, label_B in zip(self._positive_labels, labels_BxT.T, strict=True):
            is_positive_B = label_B > 0
            sample.update(hashes_B[is_positive_B], label_B[is_positive_B, None])
        self._label_moments.update(labels_BxT)
        self._positive += (labels_BxT > 0).sum(axis=0)
        for counter, column in zip(self._categories, texts, strict=True):
            counts = pc.value_counts(column)
            counter.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))

    def _check(self, min_category_count: int) -> None:
        for label, known, positive in zip(self._schema.labels, self._label_moments.count, self._positive, strict=True):
            if known == 0:
                raise useless_label(label, "has no value", "training")
            if positive == 0:
                raise useless_label(label, "is never above zero", "training")
        empty = [name for name, count in zip(self._schema.numeric, self._raw.count, strict=True) if count == 0]
        is_flat = (self._low == self._high) & (self._raw.count == self.num_rows)
        constant = [name for name, flat in zip(self._schema.numeric, is_flat, strict=True) if flat]
        for name, counter in zip(self._schema.categorical, self._categories, strict=True):
            if set(counter) == {None}:
                empty.append(name)
            elif len(counter) == 1:
                constant.append(name)
        problems = [(empty, "without any value"), (constant, "constant")]
        texts = [f"column {', '.join(names)} {what}" for names, what in problems if names]
        if texts:
            raise UserError(
                f"{' and '.join(texts)} in the training split; leave out with --exclude={','.join(empty + constant)}"
            )
        rare = [
            name
            for name, counter in zip(self._schema.categorical, self._categories, strict=True)
            if max(count for value, count in counter.items() if value is not None) < min_category_count
        ]
        if rare:
            raise UserError(
                f"column {', '.join(rare)} has no value that stands in {min_category_count} training rows; leave out "
                f"with --exclude={','.join(rare)} or lower --min_category_count={min_category_count}"
            )

    def fit(self, min_category_count: int) -> Transform:
        """Returns the fitted transform.

        Args:
          min_category_count: values seen less often share the unknown entry, which so gets trained.

        Raises:
          UserError: a column is constant, without values or without a frequent one, or a label has no positive value.
        """
        self._check(min_category_count)
        sample_PxC = self._features.rows.astype(np.float64)
        is_log = _kurtosis(sample_PxC) > _HEAVY_TAIL_KURTOSIS
        std = np.where(is_log, self._log.std, self._raw.std)
        quantiles = [np.quantile(sample.rows, LABEL_LEVELS) for sample in self._positive_labels]
        vocabularies, category_counts = [], []
        for counter in self._categories:
            frequent = [
                (value, count) for value, count in counter.items() if value is not None and count >= min_category_count
            ]
            frequent.sort(key=lambda item: (-item[1], item[0]))
            vocabularies.append(tuple(value for value, _ in frequent))
            counts = [count for _, count in frequent]
            num_missing = counter[None]
            category_counts.append((counter.total() - num_missing - sum(counts), num_missing, *counts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column whose values all lie outside the sample
            knots = np.nan_to_num(np.nanquantile(sample_PxC, KNOT_LEVELS, axis=0).T)
        knots = knots.reshape(len(is_log), len(KNOT_LEVELS))  # also where no column is numeric
        return Transform(
            is_log=is_log,
            mean=np.where(is_log, self._log.mean, self._raw.mean).astype(np.float32),
            std=np.where(std > 0, std, 1.0).astype(np.float32),
            missing_rate=(1.0 - self._raw.count / self.num_rows).astype(np.float32),
            knots=knots.astype(np.float32),
            vocabularies=tuple(vocabularies),
            category_counts=tuple(category_counts),
            positive_quantiles=np.stack(quantiles),
            positive_rate=self._positive / self._label_moments.count,
            label_mean=self._label_moments.mean,
        )


def _kurtosis(values_PxC: np.ndarray) -> np.ndarray:
    """Returns the kurtosis per column over the values that are not NaN; 0 for columns without spread."""
    moments = Moments(values_PxC.shape[1])
    moments.update(values_PxC)
    std = np.where(moments.std > 0, moments.std, np.inf)
    fourth = np.where(np.isnan(values_PxC), 0.0, ((values_PxC - moments.mean) / std) ** 4)
    return fourth.sum(axis=0) / np.maximum(moments.count, 1)
