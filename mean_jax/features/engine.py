"""What the feature stage needs of a database: DuckDB and Spark each provide it, nothing else differs between them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ibis.expr.types as ir
import pyarrow as pa

from mean_jax.features.files import LogFiles


class Engine(Protocol):
    """A session of a database, in UTC, that runs Ibis expressions over a log."""

    def read_log(self, log: LogFiles) -> ir.Table:
        """Returns the log's rows as `union.union_by_name` unites them; of a CSV log every column is text."""

    def epoch_micros(self, time: ir.Value) -> ir.Value:
        """Returns the microseconds since 1970 of a timestamp expression: the database's own function."""

    def first_row(self, table: ir.Table) -> Sequence[Any]:
        """Runs a query and returns its first row."""

    def materialise(self, table: ir.Table) -> ir.Table:
        """Computes a table once and returns it, to be read several times."""

    def stream(self, table: ir.Table) -> pa.RecordBatchReader:
        """Returns the rows of a table in its order as record batches, in bounded memory."""


def one_row(engine: Engine, table: ir.Table, values: Mapping[str, ir.Value]) -> dict[str, Any]:
    """Runs one aggregation over the table; a sum over no rows is 0."""
    # Positions in place of names: databases differ in which characters a name may hold.
    row = engine.first_row(table.aggregate(**{f"v{i}": value for i, value in enumerate(values.values())}))
    return {name: found or 0 for name, found in zip(values, row, strict=True)}
