"""Rows per second and memory of mean-jax-prepare, beside what PyArrow alone needs to decode the same Parquet files.

Command:  python launch/benchmarks/prepare.py [--rows=500000,2000000] [--num_workers=2] [--scratch=/dev/shm]

The decoder reads the same files with as many processes into one row-major float32 array per unit of work (codes for
categories), and keeps nothing: the floor of any preparation. A second one shuffles these arrays as a table beyond
memory must be: it writes them, reads them again, writes them in random order with a checksum and waits until they are
on the disk, around the page cache as prepare does. It checks, fits and encodes nothing, shuffles within units only and
does one thing after the other. prepare reads every feature once, in its pass `read`, and goes over the rows a second
time, as they were spilled, in `sort`, beside which it fits the transform; `check` reads ids and labels only. With
--scratch it runs once more in each round, with that folder for what it spills. Each command is a process of its own and
begins with a disk that has nothing left to write, processes start anew, and rounds are interleaved; the median is
printed with the smallest and the largest. Memory is the sum over processes of the largest resident set of each; what
stands in a folder in memory is not part of it. Disk: about 7 kB per row of 720 features in --folder, 3 kB in --scratch.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
import time

from absl import flags
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.cli import common
from mean_jax.data.buffers import RowPages
from mean_jax.data.direct import open_direct, read, write
from mean_jax.data.passes import ROWS_PER_BATCH
from mean_jax.data.synthetic import CUSTOMERS_FOLDER, SyntheticSpec, write_synthetic
from mean_jax.data.tables import open_tables
from mean_jax.data.units import Unit, split_units
from mean_jax.data.workers import Workers
from mean_jax.errors import UserError
from mean_jax.threads import available_processors

_FLAGS = flags.FlagValues()  # of this command alone
_ROWS = flags.DEFINE_list("rows", ["500000", "2000000"], "Sizes to measure, in customers.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 720, "Features.", flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1, flag_values=_FLAGS)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", None, "Processes of both; by default all.", flag_values=_FLAGS)
_NUMERIC_TYPE = flags.DEFINE_string("numeric_type", "float32", "As of mean-jax-prepare.", flag_values=_FLAGS)
_FOLDER = flags.DEFINE_string("folder", None, "Where the data goes; a temporary folder if none.", flag_values=_FLAGS)
_SCRATCH = flags.DEFINE_string("scratch", None, "As of mean-jax-prepare; none: not measured.", flag_values=_FLAGS)
_DECODE = flags.DEFINE_string("decode", None, "Only decode this table: how the parent runs it.", flag_values=_FLAGS)
_SHUFFLE_IN = flags.DEFINE_string("shuffle_in", None, "Folder to shuffle --decode's rows in.", flag_values=_FLAGS)
_POLL_SECONDS = 0.05
_PASSES = ("check", "read", "sort")


def _decode_unit(unit: Unit, folder: str | None) -> tuple[int, int]:
    """Copies a unit's rows into row-major float32 arrays, and these to a file if asked; returns its index and rows."""
    columns = unit.pieces[0].source.schema.names
    num_rows = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_direct(Path(folder) / str(unit.index), "wb")) if folder else None
        for values_BxC in _arrays(unit, columns):
            num_rows += len(values_BxC)
            if file is not None:
                write(file, values_BxC)
    return unit.index, num_rows


@functools.cache
def _room(name: str, num_columns: int) -> RowPages:
    """Returns memory kept by each process: fresh pages cost as much as reading into them."""
    return RowPages(num_columns)


def _shuffle_unit(written: tuple[int, int], folder: str) -> str:
    """Writes a unit's file again in random order, to the disk, and returns the SHA-256 of what it wrote."""
    index, num_rows = written
    path = Path(folder) / str(index)
    num_bytes = path.stat().st_size
    num_columns = num_bytes // (4 * num_rows)
    read_pages, sorted_pages = _room("read", num_columns), _room("sorted", num_columns)
    values_BxC = read_pages.rows(num_rows)
    with open_direct(path, "rb") as file:
        read(file, 0, num_bytes, read_pages.memory)
    path.unlink()
    order_B = np.random.default_rng(index).permutation(num_rows)
    sorted_BxC = np.take(values_BxC, order_B, axis=0, out=sorted_pages.rows(num_rows), mode="clip")
    with open_direct(path.with_suffix(".shuffled"), "wb") as file:
        write(file, sorted_BxC)
        os.fsync(file.fileno())
    return hashlib.sha256(sorted_BxC.data).hexdigest()


def _arrays(unit: Unit, columns: list[str]) -> Iterator[np.ndarray]:
    for rows in unit.rows(columns):
        values_BxC = _room("decoded", len(columns)).rows(rows.batch.num_rows)
        for start in range(0, len(columns), 16):
            some = [_values(column) for column in rows.batch.columns[start : start + 16]]
            values_BxC[:, start : start + len(some)] = np.stack(some).T
        yield values_BxC


def _values(column: pa.Array) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column.indices, pa.float32())
    return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _decode(path: str, num_workers: int, folder: str | None) -> None:
    with Workers(num_workers) as workers:
        units = split_units(open_tables(path, "--decode"), ROWS_PER_BATCH)
        decoded = list(workers.map(functools.partial(_decode_unit, folder=folder), units))
        if folder is not None:
            list(workers.map(functools.partial(_shuffle_unit, folder=folder), decoded))


def _peak_bytes(pid: int) -> dict[int, int]:
    """Returns the largest resident set so far of a process and of those below it, as Linux tells it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has just ended
        return {}
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    found = {pid: 1024 * int(peak[1])} if peak else {}
    for child in children.split():
        found |= _peak_bytes(int(child))
    return found


def _processor_seconds() -> float:
    """Returns the processor time of all processes that were started from here and have ended."""
    used = os.times()
    return used.children_user + used.children_system


def _measure(command: list[str]) -> tuple[float, float, float, str]:
    """Returns a command's seconds, processor seconds, sum of the processes' peak resident bytes, and standard error."""
    os.sync()
    start, used = time.perf_counter(), _processor_seconds()
    peaks: dict[int, int] = {}
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stderr=errors) as running:
        while running.poll() is None:
            peaks |= _peak_bytes(running.pid)
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
        errors.seek(0)
        text = errors.read()
    if running.returncode:
        raise UserError(f"{' '.join(command)} failed: {text}")
    return seconds, _processor_seconds() - used, float(sum(peaks.values())), text


def _pass_seconds(log: str) -> list[float]:
    """Returns the seconds of each pass, from the last line of the log."""
    return [float(text) for text in re.findall(r"(?:check|read|sort) ([\d.]+) s", log)]


def _spread(values: np.ndarray, digits: int = 0) -> str:
    low, middle, high = (f"{value:,.{digits}f}" for value in (values.min(), np.median(values), values.max()))
    return f"{middle} ({low}-{high})"


def _measure_size(num_rows: int, folder: Path, num_workers: int) -> float:
    """Prints the lines of one size and returns the peak memory of prepare in bytes."""
    data, store = folder / f"synthetic-{num_rows}", folder / "store"
    if not data.exists():
        write_synthetic(SyntheticSpec(num_rows, num_features=_FEATURES.value), data, available_processors())
    table = str(data / CUSTOMERS_FOLDER)
    own = [sys.executable, __file__, f"--num_workers={num_workers}", f"--decode={table}"]
    ours = [sys.executable, "-m", "mean_jax.cli.prepare", f"--num_workers={num_workers}", f"--input={table}"]
    ours += [f"--output={store}", f"--numeric_type={_NUMERIC_TYPE.value}"]
    decoded, shuffled, prepared, scratched, passes, peaks = [], [], [], [], [], []
    for _ in range(_ROUNDS.value):
        decoded.append(_measure(own)[:2])
        with tempfile.TemporaryDirectory(dir=folder) as shuffle_in:
            shuffled.append(_measure([*own, f"--shuffle_in={shuffle_in}"])[0])
        *seconds, peak, log = _measure(ours)
        shutil.rmtree(store)
        prepared.append(seconds)
        passes.append(_pass_seconds(log))
        peaks.append(peak)
        if _SCRATCH.value:
            scratched.append(_measure([*ours, f"--scratch={_SCRATCH.value}"])[0])
            shutil.rmtree(store)
    (decode, decode_cpu), (whole, whole_cpu) = np.array(decoded).T, np.array(prepared).T
    shuffle = np.array(shuffled)
    lines = [("PyArrow alone", decode), ("PyArrow, arrays shuffled on disk", shuffle), ("prepare", whole)]
    lines += [(f"its pass {name}", seconds) for name, seconds in zip(_PASSES, np.array(passes).T, strict=True)]
    lines += [(f"prepare --scratch={_SCRATCH.value}", np.array(scratched))] if scratched else []
    for name, values in lines:
        ratios = f"{_spread(decode / values, 2)} | {_spread(shuffle / values, 2)}"
        print(f"| {num_rows:,} | {name} | {_spread(num_rows / values)} | {ratios} |")
    in_cpu = f"{_spread(num_rows / whole_cpu)} | {_spread(decode_cpu / whole_cpu, 2)}"
    print(f"| {num_rows:,} | prepare, per second of processor time | {in_cpu} | |")
    print(f"| {num_rows:,} | peak memory of prepare, MB | {_spread(np.array(peaks) / 1e6)} | | |")
    return max(peaks)


def _main() -> None:
    num_workers = _NUM_WORKERS.value or available_processors()
    if _DECODE.value:
        _decode(_DECODE.value, num_workers, _SHUFFLE_IN.value)
        return
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        print(f"{num_workers} processes, {_FEATURES.value} features, {_NUMERIC_TYPE.value}\n")
        print("| rows | | rows/s | of PyArrow alone | of PyArrow, shuffled |\n| --- | --- | --- | --- | --- |")
        peaks = [_measure_size(int(rows), Path(folder), num_workers) for rows in _ROWS.value]
    print("\nPeak memory relative to the first size: " + json.dumps([round(peak / peaks[0], 3) for peak in peaks]))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
