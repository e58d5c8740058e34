"""Predictions for raw customer tables: the one path that scoring files and the Python API share."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.ids import require_ids
from mean_jax.data.tables import missing_column, without_views
from mean_jax.data.transform import RowEncoder
from mean_jax.errors import UserError
from mean_jax.run import Run, load_run
from mean_jax.sharding import local_mesh
from mean_jax.threads import map_ahead
from mean_jax.training.predictions import RowPredictor, seed_predictions
from mean_jax.training.step import make_predict
from mean_jax.types import RowLayout

ROWS_PER_BATCH = 1 << 13  # encoded at a time by each thread


def _in_a_table(row: int) -> str:
    return f"row {row + 1}"


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A finished run, ready to score customers."""

    run: Run

    @property
    def id_column(self) -> str:
        """The name of the id column that a table must have."""
        return self.run.program.schema.id_name

    @functools.cached_property
    def _layout(self) -> RowLayout:
        return self.run.program.schema.layout._replace(num_labels=0)

    @functools.cached_property
    def _predict_rows(self) -> RowPredictor:
        return RowPredictor(make_predict(self.run.program.model, self._layout, local_mesh()), self.run.variables)

    @functools.cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.run.program.schema, self.run.program.transform)

    def predict(self, table: Any) -> pa.Table:
        """Returns the scores of a customer table, with the columns of the score files, in the table's row order.

        Args:
          table: raw columns as in the training table, as a pyarrow table or anything with the Arrow interchange
            (pandas, polars). Labels and further columns are ignored; a null is a missing value; a category that
            training never saw is the unknown one.

        Raises:
          UserError: not a table, a feature column or the id is missing, ids are null or repeated, or a value cannot be
            read.
        """
        if not isinstance(table, pa.Table):
            try:
                table = pa.table(table)
            except (TypeError, ValueError, pa.ArrowException) as error:
                raise UserError(f"the table cannot be read: {error}; give a pyarrow, pandas or polars table") from error
        names = [self.id_column, *self.run.program.schema.numeric, *self.run.program.schema.categorical]
        self.check_columns(table.column_names, "the table")
        if not len(table):
            raise UserError("the table has no rows")
        table = table.select(names)
        batch = table.cast(without_views(table.schema)).combine_chunks().to_batches()[0]
        self._check_ids(batch.column(self.id_column))

        def score_from(start: int) -> pa.RecordBatch:
            return self.score(batch.slice(start, ROWS_PER_BATCH), lambda row: _in_a_table(start + row))

        return pa.Table.from_batches(map_ahead(score_from, range(0, len(batch), ROWS_PER_BATCH))).combine_chunks()

    def _check_ids(self, ids: pa.Array) -> None:
        require_ids(ids, self.id_column, _in_a_table)
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            value, count = repeated[0].values()
            raise UserError(
                f"{self.id_column} {value.as_py()!r} stands in {count} rows; one row per customer is needed"
            )

    def check_columns(self, available: list[str], where: str, flag: str = "") -> None:
        """Raises UserError unless the id and all features are among the available columns, each once.

        Args:
          available: the columns of a table.
          where: the table, for error lines.
          flag: where its name came from, if from one.
        """
        schema = self.run.program.schema
        for name in (schema.id_name, *schema.numeric, *schema.categorical):
            if name not in available:
                raise missing_column(name, flag, available, where, "the model")
            if available.count(name) > 1:
                raise UserError(f"{where}: column {name} stands there {available.count(name)} times; rename one")

    def score(self, batch: pa.RecordBatch, place: Callable[[int], str]) -> pa.RecordBatch:
        """Returns the scores of one record batch.

        Args:
          batch: id, which the caller has checked, and raw features.
          place: names a row of the batch, for error lines.
        """
        program = self.run.program
        numeric_BxC, codes_BxD = self._encoder(batch, place)
        outputs = self._predict_rows(self._layout.pack(numeric_BxC, codes_BxD, np.zeros((len(codes_BxD), 0))))
        scaled_RxBxK, buckets = outputs["scaled"], outputs.get("buckets")
        columns: dict[str, pa.Array] = {self.id_column: batch.column(self.id_column)}
        for horizon, label in enumerate(program.schema.labels):
            raw_B = seed_predictions(program, scaled_RxBxK, horizon).mean(axis=0)
            calibration = self.run.calibrations[horizon]
            columns[label] = pa.array(calibration.ensemble(raw_B))
            columns[f"{label}_raw"] = pa.array(raw_B)
            columns[f"{label}_percentile"] = pa.array(calibration.percentile(raw_B))
            if buckets is not None:
                chosen = [buckets[r, :, k] for r, k in program.replica_of(horizon)]
                columns[f"{label}_buckets"] = _list_column(np.mean(chosen, axis=0))
        return pa.RecordBatch.from_pydict(columns)


def _list_column(probability_BxN: np.ndarray) -> pa.Array:
    flat = pa.array(probability_BxN.astype(np.float32).ravel())
    offsets = pa.array(np.arange(len(probability_BxN) + 1, dtype=np.int32) * probability_BxN.shape[1])
    return pa.ListArray.from_arrays(offsets, flat)


def load(run: str | Path, flag: str = "run") -> Predictor:
    """Opens a run folder for scoring; see `Predictor.predict`.

    Args:
      run: the folder.
      flag: where its name came from, for error lines.

    Raises:
      UserError: not a finished run, another version, or a file that is missing, cut or altered.
    """
    return Predictor(load_run(run, flag))
