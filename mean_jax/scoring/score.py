"""Scoring a customer table of any size into Parquet parts: streamed, atomic per part, resumable.

Part files appear one by one under their final names, `_progress.json` says which are done for which run and input,
and `_SUCCESS` comes last. A second call with the same run and input goes on after the last whole part. The processes of
a job share the parts; each has a progress file of its own, so that a job may go on with more or fewer of them.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
from pathlib import Path
import time
from typing import Any

import jax
import pyarrow.parquet as pq
from tqdm import tqdm

from mean_jax import distributed
from mean_jax.data.ids import count_unique_ids
from mean_jax.data.tables import Rows, TableSource, open_tables
from mean_jax.data.units import Unit, split_units
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, file_sha256, read_json, remove_temporaries, require_free_output, write_json
from mean_jax.log import LOGGER
from mean_jax.scoring.predictor import ROWS_PER_BATCH, Predictor, load
from mean_jax.threads import map_ahead

KIND, VERSION = "mean-jax scores", 1
PROGRESS_NAME, SUCCESS_NAME = "_progress.json", "_SUCCESS"
DEFAULT_ROWS_PER_PART = 1 << 20
_LOOKS, _SECONDS_BETWEEN_LOOKS = 5, 2.0  # for parts that other processes wrote
_METADATA = {"mean-jax": json.dumps({"format": KIND, "version": VERSION})}


def _describe_input(source: TableSource) -> list[list[Any]]:
    stamps = zip(source.files, source.stamps, strict=True)
    return [[file.name, stamp.num_bytes, stamp.mtime_ns] for file, stamp in stamps]


@dataclasses.dataclass
class _Job:
    """What is done of one scoring job; every process keeps a progress file of the parts that it wrote."""

    folder: Path
    identity: dict[str, Any]  # of run, input and part size
    own: dict[int, dict[str, Any]]  # parts by number that are in this process's progress file
    others: dict[int, dict[str, Any]]  # parts that were done when the job was opened and are in other files

    @property
    def parts(self) -> dict[int, dict[str, Any]]:
        return self.own | self.others

    def save(self) -> None:
        content = {"job": self.identity, "parts": [self.own[index] for index in sorted(self.own)]}
        write_json(self.folder / _progress_name(jax.process_index()), KIND, VERSION, content)


def _progress_name(process: int) -> str:
    return f"{PROGRESS_NAME.removesuffix('.json')}-{process:05d}.json" if process else PROGRESS_NAME


def _progress_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PROGRESS_NAME.removesuffix('.json')}*.json"))


def _part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _part_index(part: dict[str, Any]) -> int:
    return int(part["file"].removeprefix("part-").removesuffix(".parquet"))


def _open_job(folder: Path, identity: dict[str, Any]) -> _Job:
    """Returns the job to begin or to go on with.

    Raises:
      UserError: the folder holds something else, a finished job, or the job of another run or input.
    """
    job = _Job(folder, identity, {}, {})
    if not _progress_files(folder) or (folder / SUCCESS_NAME).exists():
        require_free_output(folder)
        return job
    for file in _progress_files(folder):
        progress = read_json(file, KIND, VERSION)
        if progress["job"] != json.loads(json.dumps(identity)):
            raise UserError(
                f"--output: {folder} holds unfinished scores of another run, input or part size; "
                "remove it or choose another --output"
            )
        parts = job.own if file.name == _progress_name(jax.process_index()) else job.others
        for part in progress["parts"]:
            path = folder / part["file"]
            if path.is_file() and file_sha256(path) == part["sha256"]:
                parts[_part_index(part)] = part
            else:
                LOGGER.warning("%s is missing or altered; it is scored again", path)
    return job


class _Reader:
    """Reads ranges of the input's rows in rising order, each row once at most; what can be skipped is not read."""

    def __init__(self, units: list[Unit], columns: list[str]) -> None:
        self._units = iter(units)
        self._columns = columns
        self._batches: Iterator[Rows] = iter(())
        self._rows: Rows | None = None  # read, and reaching beyond the last range
        self._position = 0  # number of its first row, or of the next row to be read

    def between(self, start: int, stop: int) -> Iterator[Rows]:
        """Yields the rows from number `start` to before `stop`; a range is read to its end before the next."""
        while self._position < stop:
            rows = self._rows or self._next(start)
            if rows is None:
                return
            size = rows.batch.num_rows
            first, last = max(start - self._position, 0), min(stop - self._position, size)
            if self._position + size > stop:
                self._rows = rows
                if first < last:
                    yield Rows(rows.batch.slice(first, last - first), rows.file, rows.first_row + first)
                return
            self._rows = None
            self._position += size
            if first < last:
                yield Rows(rows.batch.slice(first, last - first), rows.file, rows.first_row + first)

    def _next(self, start: int) -> Rows | None:
        while (rows := next(self._batches, None)) is None:
            unit = next(self._units, None)
            if unit is None:
                return None
            if unit.num_rows is not None and self._position + unit.num_rows <= start:
                self._position += unit.num_rows
            else:
                self._batches = unit.rows(self._columns)
        return rows


def _write_part(path: Path, predictor: Predictor, part: Iterator[Rows], progress: tqdm) -> int:
    """Writes one Parquet file atomically and returns its number of rows."""
    num_rows = 0
    with atomic_file(path) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for scores in map_ahead(lambda rows: predictor.score(rows.batch, rows.place), part):
                if writer is None:
                    schema = scores.schema.with_metadata(_METADATA)
                    writer = pq.ParquetWriter(temporary, schema, write_page_checksum=True)
                writer.write_batch(scores)
                num_rows += scores.num_rows
                progress.update(scores.num_rows)
        finally:
            if writer is not None:
                writer.close()
    return num_rows


def score(run: str, input_path: str, output: Path, rows_per_part: int = DEFAULT_ROWS_PER_PART) -> int:
    """Writes the scores of every customer in input order and returns their number.

    Args:
      run: a finished run folder.
      input_path: raw customer table: Parquet or CSV file, folder or glob.
      output: a folder of parts, or one file if it ends in .parquet.
      rows_per_part: rows of each part file but the last.

    Raises:
      UserError: the input, a column, a row or an option is not usable; nothing is written then.
    """
    is_one_file = output.suffix == ".parquet"
    if is_one_file or not _progress_files(output):
        require_free_output(output)  # before any work
    predictor = load(run, "--workdir")
    schema = predictor.run.program.schema
    source = open_tables(input_path, "--input", schema.id_name)
    predictor.check_columns(source.schema.names, input_path, "--input")
    columns = [schema.id_name, *schema.numeric, *schema.categorical]
    ignored = [name for name in source.schema.names if name not in (*columns, *schema.labels)]
    if ignored:
        LOGGER.info("ignoring %d columns that the model does not use: %s", len(ignored), ", ".join(ignored[:10]))
    num_rows = count_unique_ids(source, schema.id_name, "--input")
    if is_one_file:
        if distributed.is_lead():
            with tqdm(total=num_rows, desc="score", unit=" rows", unit_scale=True, disable=None) as progress:
                all_rows = _Reader(split_units(source, ROWS_PER_BATCH), columns).between(0, num_rows)
                _write_part(output, predictor, all_rows, progress)
        return num_rows
    identity = {
        "run": predictor.run.identity,
        "input": _describe_input(source),
        "rows_per_part": rows_per_part,
    }
    is_new_folder, is_new_job = not output.exists(), not _progress_files(output)
    job = _open_job(output, identity)
    if job.parts:
        LOGGER.info("going on after %d scored rows", sum(part["rows"] for part in job.parts.values()))
    distributed.barrier("the scoring job is open")
    try:
        _write_parts(job, predictor, split_units(source, ROWS_PER_BATCH), columns, num_rows)
    except BaseException:
        if is_new_job and not job.parts:  # nothing worth keeping: leave no trace of this call
            (output / _progress_name(jax.process_index())).unlink(missing_ok=True)
            if is_new_folder:
                with contextlib.suppress(OSError):  # others may have written there meanwhile
                    output.rmdir()
        raise
    distributed.barrier("all parts are scored")
    if distributed.is_lead():
        _finish(output, identity, num_rows)
    return num_rows


def _write_parts(job: _Job, predictor: Predictor, units: list[Unit], columns: list[str], num_rows: int) -> None:
    """Writes this process's parts that are not there yet: processes take turns, in the order of the parts."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.save()
    size = job.identity["rows_per_part"]
    mine = range(jax.process_index(), -(-num_rows // size), jax.process_count())
    reader = _Reader(units, columns)
    done = sum(part["rows"] for index, part in job.parts.items() if index in mine)
    total = sum(min(size, num_rows - index * size) for index in mine)
    is_quiet = None if distributed.is_lead() else True
    bar = tqdm(total=total, initial=done, desc="score", unit=" rows", unit_scale=True, disable=is_quiet)
    with bar as progress:
        for index in mine:
            if index in job.parts:
                continue
            path = job.folder / _part_name(index)
            count = _write_part(path, predictor, reader.between(index * size, (index + 1) * size), progress)
            job.own[index] = {"file": path.name, "rows": count, "sha256": file_sha256(path)}
            job.save()
            done += count
            LOGGER.info("%d of %d rows scored", done, total)


def _finish(output: Path, identity: dict[str, Any], num_rows: int) -> None:
    """Says that all parts are there, and removes what the processes kept of their progress.

    Raises:
      UserError: this process does not see a part of another one.
    """
    num_parts = -(-num_rows // identity["rows_per_part"])
    for _ in range(_LOOKS):
        job = _open_job(output, identity)
        if len(job.parts) == num_parts:
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)  # a network file system may show the files of others late
    parts = [job.parts[index] for index in sorted(job.parts)]
    if len(parts) != num_parts or sum(part["rows"] for part in parts) != num_rows:
        raise UserError(
            f"--output: {output} shows {len(parts)} of {num_parts} parts; let all processes see one folder and run the "
            "same command again"
        )
    content = {"rows": sum(part["rows"] for part in parts), "run": job.identity["run"], "parts": parts}
    write_json(job.folder / SUCCESS_NAME, KIND, VERSION, content)
    for file in _progress_files(job.folder):
        file.unlink()
    remove_temporaries(job.folder)  # of processes that were killed while they wrote
