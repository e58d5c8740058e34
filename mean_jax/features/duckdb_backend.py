"""DuckDB, embedded: opens a log as an Ibis table in a session of its own and words DuckDB's errors for users."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa

from mean_jax.errors import UserError
from mean_jax.features.files import LogFiles, csv_to_parquet

# Types of DuckDB 2 that Ibis 12 does not know: zoned times in nanoseconds, and columns without any value.
_KNOWN_TYPES = {"TIMESTAMPTZ_NS": "TIMESTAMPTZ", '"NULL"': "VARCHAR"}


@ibis.udf.scalar.builtin(name="epoch_us")
def epoch_micros(time: dt.timestamp) -> dt.int64:
    """Microseconds since 1970 of a timestamp: DuckDB's own function under its own name."""


@contextlib.contextmanager
def session(scratch: Path, memory_limit: str | None) -> Iterator[ibis.BaseBackend]:
    """Yields a connection whose intermediate results spill into `scratch` beyond the memory limit.

    Raises:
      UserError: a memory limit that DuckDB does not understand, or any of DuckDB's errors that a user can mend.
    """
    # Extensions would come from the network; nothing here needs one.
    config = {"temp_directory": str(scratch / "spill"), "autoinstall_known_extensions": False}
    try:
        connection = ibis.duckdb.connect(**config, **({} if memory_limit is None else {"memory_limit": memory_limit}))
    except duckdb.Error as error:
        raise UserError(f"--memory_limit={memory_limit}: {error}; give a size such as 4GB") from error
    try:
        yield connection
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


def read_log(connection: ibis.BaseBackend, log: LogFiles, scratch: Path) -> ir.Table:
    """Returns the log's rows; a CSV log, all its columns text, goes through a Parquet file in `scratch`.

    Columns are matched by name; one that a file lacks is null in its rows.
    """
    files = log.files
    if log.is_csv:
        files = tuple(scratch / f"log-{i:05d}.parquet" for i in range(len(log.files)))
        for file, target in zip(log.files, files, strict=True):
            csv_to_parquet(file, target)
    # Parquet's minimum and maximum leave NaN out; by default DuckDB 2 takes them for proof that there is none.
    options = {"union_by_name": True, "can_have_nan": True}
    read = connection.read_parquet([_escape_glob(file) for file in files], **options)
    rows = connection.con.table(read.get_name())
    columns = [
        f"{_quote(name)}::{_KNOWN_TYPES.get(str(kind), kind)} AS {_quote(name)}"
        for name, kind in zip(rows.columns, rows.types, strict=True)
    ]
    rows.project(", ".join(columns)).create_view("log")
    return connection.table("log")


def stream(connection: ibis.BaseBackend, table: ir.Table) -> pa.RecordBatchReader:
    """Returns the rows of a table expression as a stream of record batches, in the table's order."""
    # Ibis's own to_pyarrow_batches calls a method that DuckDB 2 no longer has; the Arrow stream protocol stays.
    return pa.RecordBatchReader.from_stream(connection.con.sql(connection.compile(table)))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _escape_glob(file: Path) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
