"""The fitted transform: what turns raw columns into the numbers that store, training and scoring share.

The host only casts: numeric columns to float32 with NaN for missing, categorical ones to codes. Standardisation and
the like happen on device from the constants kept here, so one store serves every input encoder.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.schema import Schema, is_numeric, is_text
from mean_jax.errors import UserError
from mean_jax.types import EncoderConstants

UNKNOWN_CODE = 0
MISSING_CODE = 1
FIRST_VALUE_CODE = 2

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
    if is_text(column.type):
        column = _parse_numbers(column, name, place)
    elif not (is_numeric(column.type) or pa.types.is_null(column.type)):
        raise UserError(f"column {name} is of type {column.type}; expected numbers")
    if column.type == pa.bool_():
        column = pc.cast(column, pa.uint8())
    wide = pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    too_large = np.abs(wide) > np.finfo(np.float32).max
    if too_large.any():
        row = int(np.argmax(too_large))
        raise UserError(f"{place(row)}: column {name} is {wide[row]}; expected a finite number below 3.4e38")
    return wide.astype(np.float32)


def _parse_numbers(column: pa.Array, name: str, place: Callable[[int], str]) -> pa.Array:
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


class RowEncoder:
    """Turns record batches of raw columns into the float32 values and int32 codes of the store's rows."""

    def __init__(self, schema: Schema, transform: Transform) -> None:
        self._schema = schema
        self._value_sets = [pa.array(values, pa.string()) for values in transform.vocabularies]

    def __call__(self, batch: pa.RecordBatch, place: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns numeric_BxC float32 and codes_BxD int32.

        Raises:
          UserError: a value that cannot be read as the column's kind; the line names column and row.
        """
        return numeric_block(batch, self._schema.numeric, place), self._codes(batch)

    def _codes(self, batch: pa.RecordBatch) -> np.ndarray:
        codes_BxD = np.empty((batch.num_rows, len(self._value_sets)), np.int32)
        for index, (name, values) in enumerate(zip(self._schema.categorical, self._value_sets, strict=True)):
            texts = category_texts(batch.column(name), name)
            positions = pc.fill_null(pc.index_in(texts, value_set=values), UNKNOWN_CODE - FIRST_VALUE_CODE)
            codes = positions.to_numpy(zero_copy_only=False) + FIRST_VALUE_CODE
            codes_BxD[:, index] = np.where(texts.is_null().to_numpy(zero_copy_only=False), MISSING_CODE, codes)
        return codes_BxD


def numeric_block(batch: pa.RecordBatch, names: tuple[str, ...], place: Callable[[int], str]) -> np.ndarray:
    """Returns the named columns as row-major numeric_BxC float32; see `numeric_values` for the errors."""
    values_CxB = np.empty((len(names), batch.num_rows), np.float32)
    for index, name in enumerate(names):
        values_CxB[index] = numeric_values(batch.column(name), name, place)
    return np.ascontiguousarray(values_CxB.T)
