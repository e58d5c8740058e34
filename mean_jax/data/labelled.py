"""Streaming a labelled customer table: rows with checked labels, id hashes and splits."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from mean_jax.data import hashing
from mean_jax.data.ids import require_ids
from mean_jax.data.schema import Schema
from mean_jax.data.store import SPLITS
from mean_jax.data.tables import Rows, require_utf8
from mean_jax.data.transform import category_texts, numeric_values
from mean_jax.errors import UserError
from mean_jax.progress import Progress


class LabelledRows(NamedTuple):
    """Some rows of the input."""

    rows: Rows
    hashes: np.ndarray  # [B] uint64, of the ids
    split: np.ndarray  # [B] index into SPLITS
    labels: np.ndarray  # [B, T] float64, currency; NaN where unknown

    @property
    def has_label(self) -> np.ndarray:
        """[B] bool; a row without any known label is left out of a store."""
        return ~np.isnan(self.labels).all(axis=1)

    @property
    def is_train(self) -> np.ndarray:
        """[B] bool; rows with a label that are trained on."""
        return self.has_label & (self.split == SPLITS.index("train"))


def known_labels(batch: pa.RecordBatch, names: Sequence[str], rows: Rows) -> np.ndarray:
    """Returns labels_BxT float64 in currency, NaN where the label is null (horizon not fully observed).

    Raises:
      UserError: a label that is negative, NaN or infinite; the line names column and row.
    """
    labels_BxT = np.empty((batch.num_rows, len(names)))
    for index, name in enumerate(names):
        column = batch.column(name)
        values = numeric_values(column, f"{name} (label)", rows.place)
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        for what, is_bad in (("NaN", np.isnan(values) & ~is_null), ("negative", values < 0)):
            if is_bad.any():
                row = int(np.argmax(is_bad))
                raise UserError(
                    f"{rows.place(row)}: label {name} is {what} ({values[row]:g}); labels are amounts >= 0, "
                    "or null where the horizon is not fully observed"
                )
        labels_BxT[:, index] = values
    return labels_BxT


class RowSource(Protocol):
    """What rows can be read from: a `TableSource` or a `Unit` of it."""

    def rows(self, columns: Iterable[str]) -> Iterator[Rows]:
        """Yields the rows with the named columns."""


class LabelledReader:
    """Streams the input with id hashes, split numbers and checked labels."""

    def __init__(self, source: RowSource, schema: Schema) -> None:
        self._source = source
        self._schema = schema
        self._edges = np.cumsum(schema.split)[:2]
        self._split_salt = 2 * schema.split_seed  # odd salts are for other uses

    def _split_B(self, rows: Rows, hashes_B: np.ndarray) -> np.ndarray:
        name = self._schema.split_column
        if name is None:
            unit_B = hashing.to_unit_interval(hashing.remix(hashes_B, self._split_salt))
            return np.searchsorted(self._edges, unit_B, "right")
        column = rows.batch.column(name)
        require_utf8(column, name, rows.place)
        texts = category_texts(column, name).to_pylist()
        for row, text in enumerate(texts):
            if text not in SPLITS:
                raise UserError(f"{rows.place(row)}: column {name} is {text!r}; expected one of {', '.join(SPLITS)}")
        return np.array([SPLITS.index(text) for text in texts], np.int64)

    def __call__(self, description: str) -> Iterator[LabelledRows]:
        """Yields all rows with their features; the description is that of the progress."""
        with Progress(description) as progress:
            for found in self.read((*self._schema.numeric, *self._schema.categorical)):
                progress.update(found.rows.batch.num_rows)
                yield found

    def read(self, features: Sequence[str]) -> Iterator[LabelledRows]:
        """Yields all rows with the named features.

        Raises:
          UserError: a null id, a label that is no amount, or a split column that names no split.
        """
        schema = self._schema
        columns = [schema.id_name, *schema.labels, *features]
        columns += [schema.split_column] if schema.split_column else []
        for rows in self._source.rows(columns):
            ids = rows.batch.column(schema.id_name)
            require_ids(ids, schema.id_name, rows.place)
            labels_BxT = known_labels(rows.batch, schema.labels, rows)
            hashes_B = hashing.hash_ids(ids)
            yield LabelledRows(rows, hashes_B, self._split_B(rows, hashes_B), labels_BxT)
