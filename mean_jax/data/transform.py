"""The fitted transform: what turns raw columns into the numbers that store, training and scoring share.

The host only casts: numeric columns to float32 with NaN for missing, categorical ones to codes. Standardisation and
the like happen on device from the constants kept here, so one store serves every input encoder.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.schema import Schema, is_numeric
from mean_jax.data.tables import is_utf8, require_utf8
from mean_jax.data.unify import is_text
from mean_jax.errors import UserError
from mean_jax.types import EncoderConstants

UNKNOWN_CODE = 0
MISSING_CODE = 1
FIRST_VALUE_CODE = 2
_FLOATS_PER_LINE = 16  # float32 values in the 64 bytes of a cache line
_COLUMNS_PER_TILE = 2 * _FLOATS_PER_LINE
# For every byte of null bits, [256, 8] uint32: the bits of a float32 value that stay, and those that a null gets.
_KEPT_BITS = np.uint32(0xFFFFFFFF) * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_NAN_BITS = ~_KEPT_BITS & np.float32(np.nan).view(np.uint32)

# Levels of the stored quantiles: knots of numeric columns, and positive labels finely enough for the 99.9 % quantile.
KNOT_LEVELS = np.linspace(0.0, 1.0, 65)
LABEL_LEVELS = np.linspace(0.0, 1.0, 1001)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Constants fitted on the training split; every array is listed per column in the order of the schema."""

    is_log: np.ndarray  # [C] bool
    mean: np.ndarray  # [C] float32, after the signed log where is_log
    std: np.ndarray  # [C] float32
    missing_rate: np.ndarray  # [C] float32, share of training rows
    knots: np.ndarray  # [C, 65] float32, quantiles of the raw values
    vocabularies: tuple[tuple[str, ...], ...]  # [D], values by falling frequency; value i has code i + 2
    category_counts: tuple[tuple[int, ...], ...]  # [D], training rows per code: unknown, missing, values
    positive_quantiles: np.ndarray  # [T, 1001] float64, currency, of the positive labels
    positive_rate: np.ndarray  # [T] float64, share of positive among the known labels
    label_mean: np.ndarray  # [T] float64, currency

    def to_dict(self) -> dict[str, Any]:
        """Returns the constants as JSON-ready lists."""
        return {
            key: value.tolist() if isinstance(value, np.ndarray) else [list(item) for item in value]
            for key, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Transform":
        """Returns the transform of `to_dict`."""
        dtypes = {"is_log": bool, "positive_quantiles": float, "positive_rate": float, "label_mean": float}
        tuples: dict[str, Any] = {
            key: tuple(tuple(values) for values in content[key]) for key in ("vocabularies", "category_counts")
        }
        arrays: dict[str, Any] = {
            key: np.asarray(value, dtypes.get(key, np.float32)) for key, value in content.items() if key not in tuples
        }
        arrays["knots"] = arrays["knots"].reshape(-1, len(KNOT_LEVELS))
        return cls(**tuples, **arrays)

    def encoder_constants(self) -> EncoderConstants:
        """Returns what the models' input encoder needs."""
        counts = tuple(np.array(values, np.int64) for values in self.category_counts)
        return EncoderConstants(self.is_log, self.mean, self.std, self.missing_rate > 0, self.knots, counts)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _stored(column: pa.Array) -> np.ndarray:
    """Returns the values of a column of numbers as they stand in memory; those of nulls mean nothing."""
    values = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())
    return values[column.offset : column.offset + len(column)]


def _null_bits(column: pa.Array) -> tuple[np.ndarray, int]:
    """Returns bytes whose bits, from the lowest on, are 0 where a column that has nulls is null; and bits to skip."""
    first, skipped = divmod(column.offset, 8)
    return np.frombuffer(column.buffers()[0], np.uint8)[first : first - (-(skipped + len(column)) // 8)], skipped


def _nulls(column: pa.Array) -> np.ndarray:
    """Returns is_null [rows] bool of a column that has nulls; a quarter of the time that Arrow's own takes."""
    bits, skipped = _null_bits(column)
    return np.unpackbits(bits, count=skipped + len(column), bitorder="little")[skipped:] == 0


def _with_nan(values_B: np.ndarray, column: pa.Array) -> np.ndarray:
    """Returns float32 values of a column that has nulls, NaN where it is null; a third of a mask's time for 32,768."""
    bits, skipped = _null_bits(column)
    own = slice(skipped, skipped + len(column))
    # Bytes are in range by construction; any mode but "raise" skips the check.
    kept_B, nan_B = (np.take(table, bits, axis=0, mode="clip").reshape(-1)[own] for table in (_KEPT_BITS, _NAN_BITS))
    np.bitwise_and(values_B.view(np.uint32), kept_B, out=kept_B)
    return np.bitwise_or(kept_B, nan_B, out=kept_B).view(np.float32)


def _exact_values(column: pa.Array) -> np.ndarray | None:
    """Returns float32 values [rows] of a plain type that float32 or float64 holds exactly; None for other types.

    They may be those of the column itself, not to be changed.
    """
    kind = column.type
    is_small = pa.types.is_integer(kind) and kind.bit_width <= 32
    if not (is_small or kind in (pa.float32(), pa.float64())) or not len(column):
        return None
    values = _stored(column).astype(np.float32, copy=False)
    return _with_nan(values, column) if column.null_count else values


def numeric_values(column: pa.Array, name: str, place: Callable[[int], str]) -> np.ndarray:
    """Returns float32 values [rows] of a numeric, boolean or numeric-text column; NaN where missing.

    Args:
      column: the column of one record batch.
      name: the column's name, for error lines.
      place: gives 'FILE row N' for a row of the batch.

    Raises:
      UserError: a text that is no number, an infinite value, or a value beyond the range of float32.
    """
    column = _decoded(column)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused below
        values = _exact_values(column)
        if values is None:
            values = _wide_values(column, name, place).astype(np.float32)
    is_infinite = np.isinf(values)
    if is_infinite.any():
        row = int(np.argmax(is_infinite))
        is_written = is_text(column.type)
        shown = repr(column[row].as_py()) if is_written else _wide_values(column.slice(row, 1), name, place)[0]
        raise UserError(f"{place(row)}: column {name} is {shown}; expected a finite number below 3.4e38")
    return values


def _wide_values(column: pa.Array, name: str, place: Callable[[int], str]) -> np.ndarray:
    """Returns float64 values of a column of any kind that can be read as numbers; NaN where missing."""
    if is_text(column.type):
        column = _parse_numbers(column, name, place)
    elif not (is_numeric(column.type) or pa.types.is_null(column.type)):
        raise UserError(f"column {name} is of type {column.type}; expected numbers")
    if column.type == pa.bool_():
        column = pc.cast(column, pa.uint8())
    return pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)


def _parse_numbers(column: pa.Array, name: str, place: Callable[[int], str]) -> pa.Array:
    require_utf8(column, name, place)
    texts = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    for kind in (pa.float64(), pa.bool_()):
        try:
            return pc.cast(texts, kind)
        except pa.ArrowInvalid:
            continue
    for row, text in enumerate(texts):
        try:
            pc.cast(text, pa.float64())
        except pa.ArrowInvalid:
            raise UserError(f"{place(row)}: column {name} is {text.as_py()!r}; expected a number") from None
    raise AssertionError("a column whose every text is a number was not parsed")


def category_texts(column: pa.Array, name: str) -> pa.Array:
    """Returns a categorical column as text; numbers and booleans are written out, so that 7 and "7" are one value."""
    column = _decoded(column)
    if not (is_text(column.type) or is_numeric(column.type) or pa.types.is_null(column.type)):
        raise UserError(f"column {name} is of type {column.type}; expected text")
    return pc.cast(column, pa.string())


def category_indices(column: pa.Array, name: str) -> tuple[pa.Array, np.ndarray]:
    """Returns the texts of a categorical column and the index [rows] of each row's text; -1 where missing.

    A dictionary is taken as it comes, so texts may stand there that no row has, or twice.
    """
    if not (pa.types.is_dictionary(column.type) and is_text(column.type)) or column.dictionary.null_count:
        column = category_texts(column, name).dictionary_encode()
    indices_B = np.empty(0, np.int64)
    if len(column):
        indices_B = _stored(column.indices).astype(np.int64)
    if column.indices.null_count:
        np.putmask(indices_B, _nulls(column.indices), -1)
    texts = column.dictionary
    return texts if texts.type == pa.string() else pc.cast(texts, pa.string()), indices_B


def is_same_texts(a: pa.Array, b: pa.Array) -> bool:
    """Tells whether two arrays that exist at the same time are equal, at once if they are one piece of memory."""
    places = ((array.offset, len(array), [part and part.address for part in array.buffers()]) for array in (a, b))
    return next(places) == next(places) or a.equals(b)


def category_codes(texts: pa.Array, values: pa.Array) -> np.ndarray:
    """Returns the int32 codes of texts, given the values of the vocabulary."""
    positions = pc.fill_null(pc.index_in(texts, value_set=values), UNKNOWN_CODE - FIRST_VALUE_CODE)
    codes: np.ndarray = positions.to_numpy(zero_copy_only=False) + np.int32(FIRST_VALUE_CODE)
    return codes


class CategoryEncoder:
    """Turns categorical columns into the int32 codes of the store's rows."""

    def __init__(self, names: tuple[str, ...], vocabularies: Sequence[Sequence[str]]) -> None:
        self._names = names
        self._value_sets = [pa.array(values, pa.string()) for values in vocabularies]
        self._known: dict[str, tuple[pa.Array, np.ndarray, bool]] = {}  # a column's last dictionary, codes, is UTF-8

    def __call__(self, batch: pa.RecordBatch, place: Callable[[int], str]) -> np.ndarray:
        """Returns codes_BxD int32. What else a dictionary holds than the texts of rows is not looked at.

        Raises:
          UserError: a column is no text, or the text of a row is not UTF-8.
        """
        codes_DxB = np.empty((len(self._value_sets), batch.num_rows), np.int32)
        for codes_B, name, values in zip(codes_DxB, self._names, self._value_sets, strict=True):
            texts, indices_B = category_indices(batch.column(name), name)
            known = self._known.get(name)  # once: other threads may encode other batches meanwhile
            if known is None or not is_same_texts(known[0], texts):
                codes = np.append(category_codes(texts, values), np.int32(MISSING_CODE))  # where -1 finds it
                known = self._known[name] = texts, codes, is_utf8(texts)
            _, codes, is_valid = known
            if not is_valid:
                require_utf8(batch.column(name), name, place)
            codes_B[:] = codes[indices_B]
        return codes_DxB.T


class RowEncoder:
    """Turns record batches of raw columns into the float32 values and int32 codes of the store's rows."""

    def __init__(self, schema: Schema, transform: Transform) -> None:
        self._schema = schema
        self._categories = CategoryEncoder(schema.categorical, transform.vocabularies)

    def __call__(self, batch: pa.RecordBatch, place: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns numeric_BxC float32 and codes_BxD int32.

        Raises:
          UserError: a value that cannot be read as the column's kind; the line names column and row.
        """
        return numeric_block(batch, self._schema.numeric, place), self._categories(batch, place)


def numeric_tiles(
    batch: pa.RecordBatch, names: Sequence[str], place: Callable[[int], str], order_B: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the named columns two cache lines of a row at a time, as row-major arrays are best written.

    Args:
      batch: the rows.
      names: of the columns.
      place: see `numeric_values`.
      order_B: indices of all rows, as the values are to stand; if none, as they come.

    Yields:
      The number of the first column and values_CxB float32 of some columns, to be used before the next.

    Raises:
      UserError: see `numeric_values`.
    """
    # The room between columns keeps them from sharing few lines of the first cache where B is a power of two.
    room_CxB = np.empty((_COLUMNS_PER_TILE, batch.num_rows + _FLOATS_PER_LINE), np.float32)[:, : batch.num_rows]
    for start in range(0, len(names), _COLUMNS_PER_TILE):
        some = names[start : start + _COLUMNS_PER_TILE]
        values_CxB = room_CxB[: len(some)]
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused below
            for name, values_B in zip(some, values_CxB, strict=True):
                column = batch.column(name)
                found = _exact_values(column)
                if found is None:
                    found = numeric_values(column, name, place)
                if order_B is None:
                    values_B[:] = found
                else:  # in range by construction; any mode but "raise" lets NumPy write into `out` unbuffered
                    np.take(found, order_B, out=values_B, mode="clip")
        if np.isinf(values_CxB).any():
            for name in some:  # says which value of which it is
                numeric_values(batch.column(name), name, place)
        yield start, values_CxB


def numeric_block(batch: pa.RecordBatch, names: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """Returns the named columns as row-major numeric_BxC float32; see `numeric_values`."""
    numeric_BxC = np.empty((batch.num_rows, len(names)), np.float32)
    for start, values_CxB in numeric_tiles(batch, names, place):
        numeric_BxC[:, start : start + len(values_CxB)] = values_CxB.T
    return numeric_BxC
