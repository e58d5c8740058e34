"""Rows per second, memory and disk of mean-jax-features on a made-up log larger than its memory limit.

Command:  python launch/benchmarks/features.py [--transactions=50000000] [--customers=2000000] [--memory_limit=4GB]

The log is made anew from the seed, in Parquet parts in order of time, and deleted at the end with the customer table;
10 GB of disk do for 50 million transactions. Each transaction has an amount, of which 5 % are returns, a quantity and
one of 12 channels; customers join evenly over the three years, few of them buy often and many seldom.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import time

from absl import flags
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.cli import common
from mean_jax.errors import UserError

_FLAGS = flags.FlagValues()  # of this command alone
_TRANSACTIONS = flags.DEFINE_integer("transactions", 50_000_000, "Rows.", lower_bound=1, flag_values=_FLAGS)
_CUSTOMERS = flags.DEFINE_integer("customers", 2_000_000, "Customers.", lower_bound=1, flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the log.", lower_bound=0, flag_values=_FLAGS)
_MEMORY_LIMIT = flags.DEFINE_string("memory_limit", "4GB", "As of mean-jax-features.", flag_values=_FLAGS)
_BACKEND = flags.DEFINE_enum("backend", "duckdb", ["duckdb", "pyspark"], "Engine.", flag_values=_FLAGS)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder for log, output and spilled data. Default: the system's temporary one.", flag_values=_FLAGS
)

ROWS_PER_PART = 1_000_000
_FIRST = np.datetime64("2021-01-01", "us")
_SPAN_MICROS = 3 * 365 * 86_400_000_000
_POLL_SECONDS = 0.25


def log_parts(num_transactions: int, num_customers: int, seed: int) -> Iterator[pa.Table]:
    """Yields the log in parts of at most ROWS_PER_PART rows, each a later slice of three years."""
    starts = range(0, num_transactions, ROWS_PER_PART)
    for part, start in enumerate(starts):
        rng = np.random.default_rng((seed, part))
        rows = min(ROWS_PER_PART, num_transactions - start)
        slice_micros = _SPAN_MICROS // len(starts)
        joined = num_customers * (part + 1) / len(starts)
        cents = np.ceil(100 * rng.lognormal(3.0, 1.0, rows)) * np.where(rng.random(rows) < 0.05, -1, 1)
        yield pa.table(
            {
                "customer_id": (joined * rng.random(rows) ** 2).astype(np.int64),
                "timestamp": _FIRST + part * slice_micros + np.sort(rng.integers(0, slice_micros, rows)),
                "amount": cents / 100,
                "quantity": rng.geometric(0.5, rows).astype(np.int32),
                "channel": pa.array([f"channel {i}" for i in range(12)]).take(pa.array(rng.integers(0, 12, rows))),
            }
        )


def _folder_bytes(folders: Iterator[Path]) -> int:
    total = 0
    for folder in folders:
        for file in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                total += file.stat().st_size
    return total


def _run(log: Path, output: Path) -> tuple[float, int]:
    """Runs the command; returns its seconds and the most bytes that its temporary folder held."""
    command = [sys.executable, "-m", "mean_jax.cli.features", f"--transactions={log}", f"--output={output}"]
    command += [f"--memory_limit={_MEMORY_LIMIT.value}", f"--backend={_BACKEND.value}"]
    start, spilled = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            spilled = max(spilled, _folder_bytes(output.parent.glob(f".{output.name}.*.tmp")))
            time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise UserError(f"mean-jax-features left with exit code {process.returncode}, see above")
    return time.perf_counter() - start, spilled


def _main() -> None:
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        log, output = Path(folder) / "log", Path(folder) / "customers.parquet"
        log.mkdir()
        for part, table in enumerate(log_parts(_TRANSACTIONS.value, _CUSTOMERS.value, _SEED.value)):
            pq.write_table(table, log / f"part-{part:05d}.parquet")
        log_bytes = _folder_bytes(iter([log]))
        seconds, spilled = _run(log, output)
        # Of the largest child process; in kilobytes on Linux.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        rows, columns = pq.read_metadata(output).num_rows, len(pq.read_schema(output))
    print("| log | seconds | transactions/s | peak memory | peak temporary files | customer table |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {_TRANSACTIONS.value:,} transactions, {log_bytes / 1e9:.2f} GB | {seconds:.0f} "
        f"| {_TRANSACTIONS.value / seconds:,.0f} | {peak:.2f} GB, limit {_MEMORY_LIMIT.value} | {spilled / 1e9:.2f} GB "
        f"| {rows:,} rows, {columns} columns |"
    )


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
