"""The rows of an experiment: one per system, sweep point, seed, horizon and split, as plain values.

A cell is what is run whole: a network or one fit of a peer. Its rows are kept in a file of their own, so a finished one
is never run again. All rows together are `results.parquet`.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, read_json, write_json

KIND, VERSION = "mean-jax experiment results", 1
RESULTS_NAME = "results.parquet"
DETERMINISTIC = -1  # in place of a seed: the system has nothing random

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CellFile:
    """Where the rows of a finished cell are kept, and for what they were computed."""

    path: Path
    fingerprint: dict[str, Any]  # what decides the rows, but for the version of mean-jax: an upgrade needs a new folder

    def load(self) -> list[Row] | None:
        """Returns the rows, or None if the cell is not finished.

        Raises:
          UserError: the file is damaged, or of another configuration or store.
        """
        if not self.path.is_file():
            return None
        content = read_json(self.path, KIND, VERSION)
        if content["fingerprint"] != json.loads(json.dumps(self.fingerprint)):
            raise UserError(f"{self.path}: holds results of another configuration or store; choose another --output")
        return content["rows"]

    def save(self, rows: Sequence[Row]) -> list[Row]:
        """Keeps the rows and returns them as `load` will: a value that is not finite is null."""
        rows = [_json_ready(row) for row in rows]
        write_json(self.path, KIND, VERSION, {"fingerprint": self.fingerprint, "rows": rows})
        return rows


def _json_ready(row: Row) -> Row:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Writes all rows as one Parquet table, atomically; columns that a row lacks are null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    metadata = {"mean-jax": json.dumps({"format": KIND, "version": VERSION})}
    table = pa.table({name: [row.get(name) for row in rows] for name in names}).replace_schema_metadata(metadata)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


@dataclasses.dataclass(frozen=True)
class Results:
    """Rows to be asked for the values of a system."""

    rows: tuple[Row, ...]

    def values(self, column: str, **wanted: Any) -> dict[int, float]:
        """Returns one value per seed of the rows with the wanted fields; NaN where a metric is undefined."""
        chosen = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        seeds = [row["seed"] for row in chosen]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{wanted} does not tell the rows of one seed apart")
        return {row["seed"]: math.nan if row.get(column) is None else float(row[column]) for row in chosen}

    def distinct(self, column: str) -> list[Any]:
        """Returns the different values of a column in the order of the rows."""
        return list(dict.fromkeys(row.get(column) for row in self.rows))
