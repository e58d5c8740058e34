"""Statistics of the training split, from which the transform is fitted: collected unit by unit, then merged.

What is merged in the order of the units gives the same bits whoever collected it. Samples are the rows with the
smallest id hashes, which is a uniform sample, whatever the order, and exact while it holds all. Counts, ranges, raw
means and raw standard deviations are of all training rows; the quantile knots, the choice of the signed log and the
mean and standard deviation under it are of a sample of 100,000 rows: their error is about 1/300 of a standard
deviation, which a standardisation does not feel, and the logarithm of every value of every row would be the most
expensive part of the pass.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mean_jax.data.categories import CategoryCounts
from mean_jax.data.schema import Schema
from mean_jax.data.transform import KNOT_LEVELS, LABEL_LEVELS, Transform
from mean_jax.errors import UserError

FEATURE_SAMPLE_ROWS = 100_000
LABEL_SAMPLE_ROWS = 1_000_000
# Above the kurtosis of an exponential distribution a column counts as heavy-tailed and gets the signed log.
_HEAVY_TAIL_KURTOSIS = 9.0
_MAX_HASH = np.iinfo(np.uint64).max
_COLUMNS_PER_BLOCK = 48
_ROWS_PER_TILE = 512


def signed_log1p(values: np.ndarray) -> np.ndarray:
    """Returns sign(x) * log1p(|x|)."""
    return np.sign(values) * np.log1p(np.abs(values))


class Moments:
    """Count, mean and variance per column over the values that are not NaN.

    Sums are taken in the type of the values, about the mean of these, and put together in float64 by the pairwise
    update of Chan et al. (1979): float32 values so cost no copy in float64 and keep six digits; deviations below 1e-19
    count as none.
    """

    def __init__(self, num_columns: int) -> None:
        self.count = np.zeros(num_columns)
        self.mean = np.zeros(num_columns)
        self._squares = np.zeros(num_columns)

    def update(self, values_CxB: np.ndarray, start: int = 0) -> None:
        """Adds float32 or float64 values of the columns from `start` on, best contiguous by column; NaN is missing."""
        if not values_CxB.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            parts = _block_moments(values_CxB)
        if not np.isfinite(parts[2]).all():  # squares beyond the range of float32
            parts = _block_moments(values_CxB.astype(np.float64))
        self._add(*parts, slice(start, start + len(values_CxB)))

    def merge(self, other: "Moments") -> None:
        """Adds the rows of another."""
        self._add(other.count, other.mean, other._squares)

    def _add(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray, columns: slice = slice(None)) -> None:
        own_count = self.count[columns]  # a view, as all of these
        total = np.maximum(own_count + count, 1)
        delta = mean - self.mean[columns]
        self._squares[columns] += squares + delta**2 * own_count * count / total
        self.mean[columns] += delta * count / total
        own_count += count

    @property
    def std(self) -> np.ndarray:
        """The population standard deviation per column."""
        return np.sqrt(self._squares / np.maximum(self.count, 1))


def _block_moments(values_CxB: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns count, mean and sum of squared deviations per column in float64."""
    integer = np.dtype(f"i{values_CxB.dtype.itemsize}")
    is_known_CxB = values_CxB == values_CxB
    if is_known_CxB.all():
        count = np.full(len(values_CxB), values_CxB.shape[1], np.float64)
        pivot = (np.add.reduce(values_CxB, axis=1) / count).astype(values_CxB.dtype)
        deviation_CxB = values_CxB - pivot[:, None]
    else:
        mask_CxB = np.negative(is_known_CxB.view(np.int8)).astype(integer)  # all bits of the values that are known
        count = -np.add.reduce(mask_CxB, axis=1).astype(np.float64)
        known_CxB = np.bitwise_and(values_CxB.view(integer), mask_CxB).view(values_CxB.dtype)
        pivot = (np.add.reduce(known_CxB, axis=1) / np.maximum(count, 1)).astype(values_CxB.dtype)
        deviation_CxB = np.subtract(known_CxB, pivot[:, None], out=known_CxB)
        bits_CxB = deviation_CxB.view(integer)
        np.bitwise_and(bits_CxB, mask_CxB, out=bits_CxB)
    at_least_1 = np.maximum(count, 1)
    rest = np.add.reduce(deviation_CxB, axis=1).astype(np.float64)
    np.multiply(deviation_CxB, deviation_CxB, out=deviation_CxB)
    squares = np.add.reduce(deviation_CxB, axis=1).astype(np.float64)
    return count, pivot + rest / at_least_1, np.maximum(squares - rest**2 / at_least_1, 0.0)


class RowSample:
    """The rows with the smallest hashes, at most `capacity` of them, and none with a hash beyond `bound`."""

    def __init__(self, capacity: int, num_columns: int, dtype: type, bound: int = _MAX_HASH) -> None:
        self._capacity = capacity
        self._bound = np.uint64(bound)
        self._parts: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.uint64), np.zeros((0, num_columns), dtype))]
        self._num_rows = 0

    def update(self, hashes_B: np.ndarray, rows_BxC: np.ndarray) -> None:
        """Adds rows; a bound that is known beforehand keeps what a unit holds small."""
        is_small_B = hashes_B <= self._bound
        if is_small_B.any():
            self._append(hashes_B[is_small_B], rows_BxC[is_small_B].astype(self._parts[0][1].dtype, copy=False))

    def merge(self, other: "RowSample") -> None:
        """Adds the rows of another."""
        for hashes, rows in other._parts:
            self._append(hashes, rows)

    def _append(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        self._parts.append((hashes, rows))
        self._num_rows += len(hashes)
        if self._num_rows >= 2 * self._capacity:
            self._shrink()

    def _shrink(self) -> None:
        hashes = np.concatenate([part for part, _ in self._parts])
        rows = np.concatenate([part for _, part in self._parts])
        if len(hashes) > self._capacity:
            keep = np.argpartition(hashes, self._capacity)[: self._capacity]
            hashes, rows = hashes[keep], rows[keep]
        self._parts, self._num_rows = [(hashes, rows)], len(hashes)

    @property
    def rows(self) -> np.ndarray:
        """The sampled rows, in no particular order."""
        self._shrink()
        return self._parts[0][1]

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Returns a copy of some columns of the sample, [stop - start, rows], without one of the whole."""
        if self._num_rows > self._capacity:
            self._shrink()
        columns_CxP = np.empty((stop - start, self._num_rows), self._parts[0][1].dtype)
        end = 0
        for _, rows in self._parts:
            for tile in range(0, len(rows), _ROWS_PER_TILE):  # what is read of them stays in the second cache
                part = rows[tile : tile + _ROWS_PER_TILE, start:stop]
                columns_CxP[:, end : end + len(part)] = part.T
                end += len(part)
        return columns_CxP


def useless_label(label: str, problem: str, split: str) -> UserError:
    """Returns the error for a label that cannot be learned or watched in a split."""
    return UserError(
        f"label {label} {problem} in the {split} split; leave it out with --exclude={label} and, if given, "
        "take it out of --label_columns"
    )


class LabelStatistics:
    """Labels of the training rows: how many are known and positive, their mean, a sample of the positive ones."""

    def __init__(self, num_labels: int) -> None:
        self._moments = Moments(num_labels)
        self._positive = np.zeros(num_labels)
        self._samples = [RowSample(LABEL_SAMPLE_ROWS, 1, np.float64) for _ in range(num_labels)]

    def update(self, hashes_B: np.ndarray, labels_BxT: np.ndarray) -> None:
        """Adds training rows; float64 labels in currency, NaN where unknown."""
        self._moments.update(labels_BxT.T)
        self._positive += (labels_BxT > 0).sum(axis=0)
        for sample, label_B in zip(self._samples, labels_BxT.T, strict=True):
            is_positive_B = label_B > 0
            sample.update(hashes_B[is_positive_B], label_B[is_positive_B, None])

    def merge(self, other: "LabelStatistics") -> None:
        """Adds the rows of another."""
        self._moments.merge(other._moments)
        self._positive += other._positive
        for sample, more in zip(self._samples, other._samples, strict=True):
            sample.merge(more)

    def check(self, names: Sequence[str]) -> None:
        """Raises UserError if a label has no value or no positive one."""
        for name, known, positive in zip(names, self._moments.count, self._positive, strict=True):
            if positive == 0:
                raise useless_label(name, "is never above zero" if known else "has no value", "training")

    def constants(self) -> dict[str, np.ndarray]:
        """Returns what the transform keeps of the labels."""
        return {
            "positive_quantiles": np.stack([np.quantile(sample.rows, LABEL_LEVELS) for sample in self._samples]),
            "positive_rate": self._positive / self._moments.count,
            "label_mean": self._moments.mean,
        }


class NumericStatistics:
    """Numeric columns of the training rows."""

    def __init__(self, num_columns: int, hash_bound: int = _MAX_HASH) -> None:
        """Starts empty.

        Args:
          num_columns: C.
          hash_bound: the largest id hash that can be among the sampled ones, if that is known.
        """
        self.num_rows = 0
        self._raw = Moments(num_columns)
        self._low = np.full(num_columns, np.inf, np.float32)
        self._high = np.full(num_columns, -np.inf, np.float32)
        self._sample = RowSample(FEATURE_SAMPLE_ROWS, num_columns, np.float32, hash_bound)

    def update(self, values_CxB: np.ndarray, start: int) -> None:
        """Adds the values of training rows in the columns from `start` on, float32 with NaN for missing."""
        if not values_CxB.size:
            return
        self._raw.update(values_CxB, start)
        low, high = (bound[start : start + len(values_CxB)] for bound in (self._low, self._high))
        np.fmin(low, np.fmin.reduce(values_CxB, axis=1), out=low)
        np.fmax(high, np.fmax.reduce(values_CxB, axis=1), out=high)

    def sample(self, hashes_B: np.ndarray, numeric_BxC: np.ndarray) -> None:
        """Counts training rows, of which every column is or will be given to `update`, and samples them."""
        self.num_rows += len(hashes_B)
        self._sample.update(hashes_B, numeric_BxC)

    def merge(self, other: "NumericStatistics") -> None:
        """Adds the rows of another."""
        self.num_rows += other.num_rows
        self._raw.merge(other._raw)
        self._low = np.fmin(self._low, other._low)
        self._high = np.fmax(self._high, other._high)
        self._sample.merge(other._sample)

    @property
    def is_empty(self) -> np.ndarray:
        """True for columns without any value."""
        return self._raw.count == 0

    @property
    def is_constant(self) -> np.ndarray:
        """True for columns of one value that is never missing."""
        return (self._low == self._high) & (self._raw.count == self.num_rows)

    def exponents(self) -> tuple[int, ...]:
        """Returns the powers of two by which float16 values are divided: 16 times the largest value still fits.

        With frexp's e, the largest |x| is below 2 ** e and becomes less than 2 ** 12; float16 ends at 65504. What is
        2 ** 26 times smaller than the largest value loses digits, and twice as small again by another 2 ** 10 is zero.
        """
        largest = np.where(self.is_empty, 0.0, np.maximum(np.abs(self._low), np.abs(self._high)))
        return tuple(int(e) - 12 if top > 0 else 0 for top, e in zip(largest, np.frexp(largest)[1], strict=True))

    def constants(self, num_threads: int) -> dict[str, np.ndarray]:
        """Returns what the transform keeps of the numeric columns."""
        num_columns = len(self._low)
        fitted: list[tuple[bool, float, float, np.ndarray]] = []
        with ThreadPoolExecutor(num_threads) as threads:  # NumPy sorts without holding the interpreter
            for start in range(0, num_columns, _COLUMNS_PER_BLOCK):
                columns_CxP = self._sample.columns(start, min(start + _COLUMNS_PER_BLOCK, num_columns))
                fitted += threads.map(_fit_column, columns_CxP)
        is_log = np.array([column[0] for column in fitted], bool)
        log_mean, log_std = np.array([column[1:3] for column in fitted]).reshape(num_columns, 2).T
        std = np.where(is_log, log_std, self._raw.std)
        return {
            "is_log": is_log,
            "mean": np.where(is_log, log_mean, self._raw.mean).astype(np.float32),
            "std": np.where(std > 0, std, 1.0).astype(np.float32),
            "missing_rate": (1.0 - self._raw.count / self.num_rows).astype(np.float32),
            "knots": np.array([column[3] for column in fitted], np.float32).reshape(num_columns, len(KNOT_LEVELS)),
        }


def _fit_column(values_P: np.ndarray) -> tuple[bool, float, float, np.ndarray]:
    """Returns (is_log, mean and std under the signed log, knots) of the sampled values of a column; NaN is missing.

    The values are sorted where they stand: whatever order they come in, sums have the same bits.
    """
    values_P.sort()  # NaN goes last
    known_P = values_P[: np.searchsorted(values_P, np.float32(np.nan))].astype(np.float64)
    if not len(known_P):  # all values of the column lie outside the sample
        return False, 0.0, 1.0, np.zeros(len(KNOT_LEVELS))
    knots = np.interp(KNOT_LEVELS * (len(known_P) - 1), np.arange(len(known_P)), known_P)
    square_P = np.square(known_P - known_P.mean())
    variance = square_P.mean()
    if not (variance > 0 and np.mean(np.square(square_P / variance)) > _HEAVY_TAIL_KURTOSIS):
        return False, 0.0, 1.0, knots
    log_P = signed_log1p(known_P)
    return True, float(log_P.mean()), float(log_P.std()), knots


def check_features(
    schema: Schema, numeric: NumericStatistics, categories: Sequence[CategoryCounts], min_category_count: int
) -> None:
    """Raises UserError if a column is constant, without values or without a frequent one; the line names all such."""
    texts = list(zip(schema.categorical, categories, strict=True))
    empty = [name for name, flag in zip(schema.numeric, numeric.is_empty, strict=True) if flag]
    empty += [name for name, counts in texts if not counts.num_values]
    constant = [name for name, flag in zip(schema.numeric, numeric.is_constant, strict=True) if flag]
    constant += [name for name, counts in texts if counts.num_values == 1 and not counts.num_missing]
    problems = [
        f"column {', '.join(names)} {what}"
        for names, what in ((empty, "without any value"), (constant, "constant"))
        if names
    ]
    if problems:
        raise UserError(
            f"{' and '.join(problems)} in the training split; leave out with --exclude={','.join(empty + constant)}"
        )
    rare = [name for name, counts in texts if counts.largest < min_category_count]
    if rare:
        raise UserError(
            f"column {', '.join(rare)} has no value that stands in {min_category_count} training rows; leave out "
            f"with --exclude={','.join(rare)} or lower --min_category_count={min_category_count}"
        )


def fit_transform(
    numeric: NumericStatistics,
    categories: Sequence[CategoryCounts],
    labels: LabelStatistics,
    min_category_count: int,
    num_threads: int = 1,
) -> Transform:
    """Returns the transform fitted on the training rows.

    Args:
      numeric: of the numeric columns, as `check_features` lets them pass.
      categories: of each categorical column, likewise.
      labels: of the labels, each with a positive one.
      min_category_count: values seen less often share the unknown entry, which so gets trained.
      num_threads: that share the columns.
    """
    fitted = [counts.vocabulary(min_category_count) for counts in categories]
    return Transform(
        vocabularies=tuple(vocabulary for vocabulary, _ in fitted),
        category_counts=tuple(counts for _, counts in fitted),
        **numeric.constants(num_threads),
        **labels.constants(),
    )
