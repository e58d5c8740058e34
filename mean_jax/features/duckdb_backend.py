"""DuckDB, embedded: runs the feature stage's expressions in a session of its own and words its errors for users."""

from collections.abc import Iterator, Sequence
import contextlib
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa

from mean_jax.errors import UserError
from mean_jax.features.files import LogFiles, parquet_parts
from mean_jax.features.union import union_by_name

# Types of DuckDB 2 that Ibis 12 does not know: zoned times in nanoseconds, and columns without any value.
_KNOWN_TYPES = {"TIMESTAMPTZ_NS": "TIMESTAMPTZ", '"NULL"': "VARCHAR"}


@ibis.udf.scalar.builtin(name="epoch_us")
def _epoch_us(time: dt.timestamp) -> dt.int64:
    """DuckDB's own function under its own name."""


class DuckDB:
    """The engine on an open connection."""

    def __init__(self, connection: ibis.BaseBackend, scratch: Path) -> None:
        self._connection = connection
        self._scratch = scratch

    def read_log(self, log: LogFiles) -> ir.Table:
        tables = []
        for number, part in enumerate(parquet_parts(log, self._scratch)):
            files = [_escape_glob(file) for file in part.files]
            # Parquet's minimum and maximum leave NaN out; by default DuckDB 2 takes them for proof that there is none.
            options = {"union_by_name": True, "hive_partitioning": False, "can_have_nan": True}
            rows = self._connection.con.table(self._connection.read_parquet(files, **options).get_name())
            columns = [
                f"{_quote(name)}::{_KNOWN_TYPES.get(str(kind), kind)} AS {_quote(name)}"
                for name, kind in zip(rows.columns, rows.types, strict=True)
            ]
            rows.project(", ".join(columns)).create_view(f"log_{number}")
            tables.append(self._connection.table(f"log_{number}"))
        return union_by_name(log, tables)

    def epoch_micros(self, time: ir.Value) -> ir.Value:
        return _epoch_us(time)

    def first_row(self, table: ir.Table) -> Sequence[Any]:
        return self._connection.con.execute(self._connection.compile(table)).fetchall()[0]

    def materialise(self, table: ir.Table) -> ir.Table:
        return self._connection.create_table("customers", table, temp=True)

    def stream(self, table: ir.Table) -> pa.RecordBatchReader:
        # Ibis's own to_pyarrow_batches calls a method that DuckDB 2 no longer has; the Arrow stream protocol stays.
        return pa.RecordBatchReader.from_stream(self._connection.con.sql(self._connection.compile(table)))


@contextlib.contextmanager
def session(scratch: Path, memory_limit: str | None) -> Iterator[DuckDB]:
    """Yields an engine whose intermediate results spill into `scratch` beyond the memory limit.

    Raises:
      UserError: a memory limit that DuckDB does not understand, or any of DuckDB's errors that a user can mend.
    """
    config = {
        "temp_directory": str(scratch / "spill"),
        "autoinstall_known_extensions": False,  # they would come from the network; nothing here needs one
        "preserve_insertion_order": False,  # the one order that matters is asked for, and keeping others costs memory
    }
    try:
        connection = ibis.duckdb.connect(**config, **({} if memory_limit is None else {"memory_limit": memory_limit}))
    except duckdb.Error as error:
        raise UserError(f"--memory_limit={memory_limit}: {error}; give a size such as 4GB") from error
    try:
        yield DuckDB(connection, scratch)
    except duckdb.OutOfMemoryException as error:
        raise UserError(f"--memory_limit: DuckDB needs more memory or more disk to spill to: {_line(error)}") from error
    except duckdb.IOException as error:
        raise UserError(f"the log cannot be read or the disk is full: {_line(error)}") from error
    except duckdb.Error as error:
        if isinstance(error, duckdb.DataError | duckdb.InvalidInputException) or type(error) is duckdb.Error:
            raise UserError(
                f"--transactions: a damaged file, or a value too large: {_line(error)}; mend the log"
            ) from error
        raise  # a defect in an expression
    finally:
        connection.disconnect()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _escape_glob(file: Path) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
