"""Streaming a labelled customer table: rows with checked labels, id hashes and splits."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mean_jax.data import hashing
from mean_jax.data.ids import require_ids
from mean_jax.data.schema import Schema
from mean_jax.data.store import SPLITS
from mean_jax.data.tables import Rows, TableSource
from mean_jax.data.transform import category_texts, numeric_values
from mean_jax.errors import UserError


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


class LabelledReader:
    """Streams the input with id hashes, split numbers and checked labels."""

    def __init__(self, source: TableSource, schema: Schema) -> None:
        self._source = source
        self._schema = schema
        self._edges = np.cumsum(schema.split)[:2]
        self._split_salt = 2 * schema.split_seed  # odd salts are for other uses

    def _split_B(self, rows: Rows, hashes_B: np.ndarray) -> np.ndarray:
        name = self._schema.split_column
        if name is None:
            unit_B = hashing.to_unit_interval(hashing.remix(hashes_B, self._split_salt))
            return np.searchsorted(self._edges, unit_B, "right")
        texts = category_texts(rows.batch.column(name), name).to_pylist()
        for row, text in enumerate(texts):
            if text not in SPLITS:
                raise UserError(f"{rows.place(row)}: column {name} is {text!r}; expected one of {', '.join(SPLITS)}")
        return np.array([SPLITS.index(text) for text in texts], np.int64)

    def __call__(self, description: str) -> Iterator[tuple[Rows, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows, hashes_B, split_B, labels_BxT); the description is that of the progress bar."""
        schema = self._schema
        columns = [schema.id_name, *schema.labels, *schema.numeric, *schema.categorical]
        columns += [self._schema.split_column] if self._schema.split_column else []
        with tqdm(desc=description, unit=" rows", unit_scale=True, disable=None) as progress:
            for rows in self._source.rows(columns):
                ids = rows.batch.column(schema.id_name)
                require_ids(ids, schema.id_name, rows.place)
                labels_BxT = known_labels(rows.batch, schema.labels, rows)
                hashes_B = hashing.hash_ids(ids)
                progress.update(rows.batch.num_rows)
                yield rows, hashes_B, self._split_B(rows, hashes_B), labels_BxT
