"""From the files of a transaction log to the customer table on disk, with a summary of what was done."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import tempfile

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.features import duckdb_backend, spark_backend
from mean_jax.features.engine import Engine
from mean_jax.features.expressions import clip_labels, customer_table
from mean_jax.features.files import LogFiles, open_log
from mean_jax.features.spec import FeatureSpec
from mean_jax.features.summary import FeatureSummary, check_summary, summarise
from mean_jax.features.transactions import (
    LogColumns,
    LogSpan,
    assign_roles,
    canonical_log,
    check_rows,
    measure_span,
    type_text_columns,
)
from mean_jax.fileio import atomic_file, atomic_folder, require_free_output

ROWS_PER_PART = 1_000_000


def build_customer_table(
    transactions: str,
    output: Path,
    spec: FeatureSpec,
    memory_limit: str | None = None,
    backend: str = "duckdb",
    spark_master: str | None = None,
) -> FeatureSummary:
    """Computes the customer table and writes it sorted by id, whole or not at all.

    Args:
      transactions: a Parquet or CSV file, a folder of them, or a glob.
      output: one file if it ends in .parquet, else a folder of part files of at most ROWS_PER_PART rows.
      spec: what to compute.
      memory_limit: of DuckDB or of Spark's driver, such as 4GB; beyond it, intermediate results go to disk (DuckDB's
        beside the output).
      backend: duckdb or pyspark.
      spark_master: Spark's master URL; None for that of Spark's settings, local[*] where these name none.

    Raises:
      UserError: the log cannot be used or changed while it was read, no customer or no label is left, the output
        exists, or the backend cannot be had.
    """
    require_free_output(output)
    files = open_log(transactions)
    try:
        with _scratch_beside(output) as scratch, _session(backend, scratch, memory_limit, spark_master) as engine:
            table, span, columns = define_table(engine, engine.read_log(files), spec, files)
            customers = engine.materialise(table)
            summary = summarise(engine, customers, spec, span, columns)
            check_summary(summary, spec)
            batches = engine.stream(clip_labels(customers, spec).order_by(spec.id_column))
            files.require_unchanged()
            _write(batches, output)
    except UserError:
        files.require_unchanged()  # where that fails, it says why a file seemed damaged
        raise
    return summary


def _session(
    backend: str, scratch: Path, memory_limit: str | None, spark_master: str | None
) -> contextlib.AbstractContextManager[Engine]:
    if backend == "pyspark":
        return spark_backend.session(scratch, memory_limit, spark_master)
    if spark_master is not None:
        raise UserError(f"--spark_master={spark_master}: is for Spark alone; add --backend=pyspark or leave it out")
    return duckdb_backend.session(scratch, memory_limit)


def define_table(
    engine: Engine, raw: ir.Table, spec: FeatureSpec, files: LogFiles
) -> tuple[ir.Table, LogSpan, LogColumns]:
    """Checks a log and returns the expression of its customer table (`expressions.customer_table`), on any engine.

    Raises:
      UserError: a column or a row cannot be used, or `spec.as_of` lies after the log.
    """
    if files.is_csv:
        raw = type_text_columns(engine, raw, spec)
    columns = assign_roles(raw.schema(), spec, files.path)
    check_rows(engine, raw, spec, columns, files.path)
    log = canonical_log(engine, raw, spec, columns)
    span = measure_span(engine, log, spec, files.path)
    if spec.as_of_micros is not None and spec.as_of_micros > span.end_micros:
        raise UserError(f"--as_of={spec.as_of}: lies after the log, which ends at {span.last}; choose an earlier date")
    return customer_table(log, spec, span, columns), span, columns


@contextlib.contextmanager
def _scratch_beside(output: Path) -> Iterator[Path]:
    """Yields a temporary folder on the output's disk, which has room where the system's own may be small."""
    folder = next(parent for parent in output.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=folder) as scratch:
        yield Path(scratch)


def _write(batches: pa.RecordBatchReader, output: Path) -> None:
    if output.suffix == ".parquet":
        with atomic_file(output) as file, pq.ParquetWriter(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return
    with atomic_folder(output) as folder:
        part, rows_left = 0, True
        while rows_left:
            rows_left = _write_part(batches, folder / f"part-{part:05d}.parquet")
            part += 1


def _write_part(batches: pa.RecordBatchReader, file: Path) -> bool:
    """Writes the next batches into one part file; returns whether rows may be left."""
    rows = 0
    with pq.ParquetWriter(file, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
            if rows >= ROWS_PER_PART:
                return True
    return False
