"""Scoring a customer table of any size into Parquet parts: streamed, atomic per part, resumable.

Part files appear one by one under their final names, `_progress.json` says which are done for which run and input,
and `_SUCCESS` comes last. A second call with the same run and input goes on after the last whole part.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from mean_jax.data.ids import count_unique_ids
from mean_jax.data.tables import Rows, TableSource, open_tables
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, file_sha256, read_json, require_free_output, write_json
from mean_jax.log import LOGGER
from mean_jax.scoring.predictor import Predictor, load

KIND, VERSION = "mean-jax scores", 1
PROGRESS_NAME, SUCCESS_NAME = "_progress.json", "_SUCCESS"
DEFAULT_ROWS_PER_PART = 1 << 20
_METADATA = {"mean-jax": json.dumps({"format": KIND, "version": VERSION})}


def _describe_input(source: TableSource) -> list[list[Any]]:
    stats = [(file.name, file.stat()) for file in source.files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@dataclasses.dataclass
class _Job:
    """What is done of one scoring job, as `_progress.json` keeps it."""

    folder: Path
    identity: dict[str, Any]  # of run, input and part size
    parts: list[dict[str, Any]]

    @property
    def num_rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    def save(self) -> None:
        write_json(self.folder / PROGRESS_NAME, KIND, VERSION, {"job": self.identity, "parts": self.parts})


def _open_job(folder: Path, identity: dict[str, Any]) -> _Job:
    """Returns the job to begin or to go on with.

    Raises:
      UserError: the folder holds something else, a finished job, or the job of another run or input.
    """
    if not (folder / PROGRESS_NAME).is_file() or (folder / SUCCESS_NAME).exists():
        require_free_output(folder)
        return _Job(folder, identity, [])
    progress = read_json(folder / PROGRESS_NAME, KIND, VERSION)
    if progress["job"] != json.loads(json.dumps(identity)):
        raise UserError(
            f"--output: {folder} holds unfinished scores of another run, input or part size; "
            "remove it or choose another --output"
        )
    parts = []
    for part in progress["parts"]:
        path = folder / part["file"]
        if not path.is_file() or file_sha256(path) != part["sha256"]:
            LOGGER.warning("%s is missing or altered; scoring again from there", path)
            break
        parts.append(part)
    for stale in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        stale.unlink()
    job = _Job(folder, identity, parts)
    LOGGER.info("going on after %d scored rows", job.num_rows)
    return job


def _part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _skip(stream: Iterator[Rows], num_rows: int) -> Iterator[Rows]:
    """Yields the stream without its first rows."""
    for rows in stream:
        size = rows.batch.num_rows
        if num_rows >= size:
            num_rows -= size
            continue
        yield Rows(rows.batch.slice(num_rows), rows.file, rows.first_row + num_rows)
        num_rows = 0


def _parts(stream: Iterator[Rows], rows_per_part: int) -> Iterator[Iterator[Rows]]:
    """Yields one stream per part; each must be read to its end before the next is asked for."""
    pending: list[Rows] = []

    def part() -> Iterator[Rows]:
        room = rows_per_part
        while room:
            rows = pending.pop() if pending else next(stream, None)
            if rows is None:
                return
            size = rows.batch.num_rows
            if size > room:
                pending.append(Rows(rows.batch.slice(room), rows.file, rows.first_row + room))
                rows = Rows(rows.batch.slice(0, room), rows.file, rows.first_row)
            room -= rows.batch.num_rows
            yield rows

    while True:
        first = pending.pop() if pending else next(stream, None)
        if first is None:
            return
        pending.append(first)
        yield part()


def _write_part(path: Path, predictor: Predictor, part: Iterator[Rows], progress: tqdm) -> int:
    """Writes one Parquet file atomically and returns its number of rows."""
    num_rows = 0
    with atomic_file(path) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for rows in part:
                scores = predictor.score(rows.batch, rows.place)
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
    if is_one_file or not (output / PROGRESS_NAME).exists():
        require_free_output(output)  # before any work
    predictor = load(run, "--workdir")
    schema = predictor.run.program.schema
    source = open_tables(input_path, "--input", schema.id_name)
    predictor.check_columns(source.schema.names, input_path)
    columns = [schema.id_name, *schema.numeric, *schema.categorical]
    ignored = [name for name in source.schema.names if name not in (*columns, *schema.labels)]
    if ignored:
        LOGGER.info("ignoring %d columns that the model does not use: %s", len(ignored), ", ".join(ignored[:10]))
    if is_one_file:
        num_rows = count_unique_ids(source, schema.id_name, "--input")
        with tqdm(total=num_rows, desc="score", unit=" rows", unit_scale=True, disable=None) as progress:
            return _write_part(output, predictor, source.rows(columns), progress)
    identity = {
        "run": predictor.run.identity,
        "input": _describe_input(source),
        "rows_per_part": rows_per_part,
    }
    is_new_folder, is_new_job = not output.exists(), not (output / PROGRESS_NAME).exists()
    job = _open_job(output, identity)
    num_rows = count_unique_ids(source, schema.id_name, "--input")
    try:
        _write_parts(job, predictor, source, columns, num_rows, rows_per_part)
    except BaseException:
        if is_new_job and not job.parts:  # nothing worth keeping: leave no trace of this call
            for name in (PROGRESS_NAME, _part_name(0)):
                (output / name).unlink(missing_ok=True)
            if is_new_folder:
                with contextlib.suppress(OSError):  # others may have written there meanwhile
                    output.rmdir()
        raise
    return num_rows


def _write_parts(
    job: _Job, predictor: Predictor, source: TableSource, columns: list[str], num_rows: int, rows_per_part: int
) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    job.save()
    stream = _skip(source.rows(columns), job.num_rows)
    bar = tqdm(total=num_rows, initial=job.num_rows, desc="score", unit=" rows", unit_scale=True, disable=None)
    with bar as progress:
        for part in _parts(stream, rows_per_part):
            path = job.folder / _part_name(len(job.parts))
            count = _write_part(path, predictor, part, progress)
            job.parts.append({"file": path.name, "rows": count, "sha256": file_sha256(path)})
            job.save()
            LOGGER.info("%d of %d rows scored", job.num_rows, num_rows)
    success = {"rows": job.num_rows, "run": predictor.run.identity, "parts": job.parts}
    write_json(job.folder / SUCCESS_NAME, KIND, VERSION, success)
    (job.folder / PROGRESS_NAME).unlink()
