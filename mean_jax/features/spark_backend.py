"""Spark: runs the feature stage's expressions in local mode or on a cluster and words its errors for users.

Log and output are paths of a file system that the driver and all executors share; in local mode any disk is one.
PySpark (the extra `spark`) and Java are needed, and imported or started when a session is asked for, not before.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
import re
import sys
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.features.files import LogFiles, LogPart, parquet_parts
from mean_jax.features.union import union_by_name

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_ROWS_PER_BATCH = 65_536
# Of the log's files per task. Spark's 200 tasks in each stage take a minute where there is next to nothing to do.
_BYTES_PER_TASK = 16 << 20
# What Spark writes in front of an error when it starts.
_CHATTER = re.compile(r"^\s*$|^WARNING|\bWARN\b|log4j|log level|setLogLevel")
_NUM_TASKS = "spark.sql.shuffle.partitions"
# What the expressions rely on, whatever the cluster's defaults are. Ibis sets the time zone, UTC.
_SETTINGS = {
    "spark.sql.ansi.enabled": "true",  # an overflow is an error, not another number
    "spark.sql.caseSensitive": "false",
    "spark.sql.parquet.inferTimestampNTZ.enabled": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # Spark knows no nanoseconds; see _plain_columns
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}


@ibis.udf.scalar.builtin(name="unix_micros")
def _unix_micros(time: dt.Timestamp(timezone="UTC")) -> dt.int64:  # type: ignore[valid-type]
    """Spark's own function under its own name."""


class Spark:
    """The engine on a running session."""

    def __init__(self, spark: "SparkSession", scratch: Path) -> None:
        self._spark = spark
        self._connection = ibis.pyspark.connect(spark, **_SETTINGS)
        self._scratch = scratch
        self._kept: list[DataFrame] = []

    def release(self) -> None:
        """Frees what `materialise` keeps on the executors."""
        while self._kept:
            self._kept.pop().unpersist()

    def read_log(self, log: LogFiles) -> ir.Table:
        log_bytes = sum(stamp.num_bytes for stamp in log.stamps.values())
        enough = max(self._spark.sparkContext.defaultParallelism, log_bytes // _BYTES_PER_TASK + 1)
        if enough < int(self._spark.conf.get(_NUM_TASKS, "200") or 0):
            self._spark.conf.set(_NUM_TASKS, enough)
        links = self._scratch / "log"
        links.mkdir()
        tables = []
        for number, part in enumerate(parquet_parts(log, self._scratch)):
            # Under names of ours: Spark takes an underscore in front for a hidden file, and believes .crc files beside.
            paths = []
            for i, file in enumerate(part.files):
                paths.append(links / f"{number:05d}-{i:05d}.parquet")
                paths[-1].symlink_to(file.absolute())
            frame = self._spark.read.parquet(*map(_escape_glob, paths))
            _plain_columns(frame, part).createOrReplaceTempView(f"log_{number}")
            tables.append(self._connection.table(f"log_{number}"))
        return union_by_name(log, tables)

    def epoch_micros(self, time: ir.Value) -> ir.Value:
        return _unix_micros(time.cast(dt.Timestamp(timezone="UTC")))

    def first_row(self, table: ir.Table) -> Sequence[Any]:
        return self._frame(table).collect()[0]

    def materialise(self, table: ir.Table) -> ir.Table:
        from pyspark import StorageLevel

        self._kept.append(self._frame(table).persist(StorageLevel.DISK_ONLY))
        self._kept[-1].createOrReplaceTempView("customers")
        return self._connection.table("customers")

    def stream(self, table: ir.Table) -> pa.RecordBatchReader:
        # The executors write what the driver then reads in order: no collecting in its memory.
        folder = self._scratch / "ordered"
        self._frame(table).write.parquet(f"file:{folder.absolute()}")
        schema = table.schema().to_pyarrow()

        def batches() -> Iterator[pa.RecordBatch]:
            for file in sorted(folder.glob("part-*.parquet")):
                with pq.ParquetFile(file) as parquet:
                    for batch in parquet.iter_batches(_ROWS_PER_BATCH):
                        yield batch.cast(schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _frame(self, table: ir.Table) -> "DataFrame":
        # Not through Ibis, whose every result goes through pandas.
        return self._spark.sql(self._connection.compile(table))


def _plain_columns(frame: "DataFrame", part: LogPart) -> "DataFrame":
    """Returns the rows as DuckDB reads them: times as naive UTC in microseconds, no integers wider than 64 bits."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    stored = {field.name: field.type for field in pq.read_schema(part.files[0])}
    columns = []
    for field in frame.schema.fields:
        column = F.col("`" + field.name.replace("`", "``") + "`")
        kind = stored[field.name]
        if pa.types.is_timestamp(kind) and isinstance(field.dataType, T.LongType):
            # To the nearest microsecond, halves away from zero; the quotient of integers is cut towards it.
            nearest = F.call_function("div", column + F.when(column < 0, -500).otherwise(500), F.lit(1000))
            column = F.timestamp_micros(nearest)
        if pa.types.is_timestamp(kind):
            column = column.cast(T.TimestampNTZType())
        elif pa.types.is_uint64(kind):
            column = column.cast(T.LongType())
        columns.append(column.alias(field.name))
    return frame.select(*columns)


@contextlib.contextmanager
def session(scratch: Path, memory_limit: str | None, master: str | None) -> Iterator[Spark]:
    """Yields an engine on a Spark session of its own, in a Spark that runs already or else is started and stopped.

    Args:
      scratch: a folder on the shared file system.
      memory_limit: of the driver's heap, such as 4GB; None for Spark's own setting.
      master: Spark's master URL; None for that of its settings, local[*] where these name none.

    Raises:
      UserError: PySpark or Java is missing, Spark does not start, or fails in a way that a user can mend.
    """
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import AnalysisException, PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UserError(
            f"--backend=pyspark: {error}; pip install 'mean-jax[spark]', or leave --backend=duckdb"
        ) from error
    running = SparkSession.getActiveSession()
    spark = running or _start(scratch, memory_limit, master)
    engine = Spark(spark.newSession(), scratch)
    try:
        yield engine
    except AnalysisException as error:
        if "PARQUET_TYPE" not in str(error):
            raise  # a defect in an expression
        raise UserError(
            f"--transactions: Spark cannot read a column: {_line(error)}; write it as another type"
        ) from error
    except (PySparkException, Py4JError, ConnectionError) as error:
        raise UserError(
            f"--backend=pyspark: Spark failed: {_line(error)}; mend the log if it is damaged, else give Spark more "
            "memory (--memory_limit) or disk (spark.local.dir)"
        ) from error
    finally:
        with contextlib.suppress(Py4JError, ConnectionError):  # Spark died, and the error says so
            engine.release()
            if running is None:
                spark.stop()


def _start(scratch: Path, memory_limit: str | None, master: str | None) -> "SparkSession":
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("mean-jax-features")
    if master is not None:
        builder = builder.master(master)
    if memory_limit is not None:
        builder = builder.config("spark.driver.memory", _java_size(memory_limit))
    log = scratch / "spark.log"
    try:
        with _standard_error_in(log):
            return builder.getOrCreate()
    except (PySparkException, Py4JError) as error:
        said = [line for line in log.read_text(errors="replace").splitlines() if not _CHATTER.search(line)]
        raise UserError(
            f"--backend=pyspark: Spark does not start: {said[0] if said else _line(error)}; install a Java runtime "
            "(17 or newer for Spark 4) and set JAVA_HOME to its folder, or mend --spark_master or Spark's settings"
        ) from error


@contextlib.contextmanager
def _standard_error_in(file: Path) -> Iterator[None]:
    """Points standard error to a file; a program started meanwhile, such as Spark's, keeps its log there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(file, "wb") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _escape_glob(file: Path) -> str:
    return "file:" + re.sub(r"([\\{}\[\]*?])", r"\\\1", str(file.absolute()))


def _java_size(memory_limit: str) -> str:
    match = re.fullmatch(r"\s*(\d+)\s*([kmgt])i?b?\s*", memory_limit, re.IGNORECASE)
    if match is None:
        raise UserError(f"--memory_limit={memory_limit}: is no size that Spark understands; give one such as 4GB")
    return "".join(match.groups()).lower()


def _line(error: BaseException) -> str:
    """Returns an error's first line, of a Java exception its own and not that of the call that met it."""
    text = str(getattr(error, "java_exception", None) or error)
    return text.strip().split("\n")[0]
