"""New rows for a store that is there: under its transform, schema and split, as shards of their own.

The new shards are written in a folder inside the store, moved beside the old ones, and named by the manifest last.
Until then the store is the old one; what a killed append leaves is no part of it, and the next one removes it.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.hashing import hash_ids
from mean_jax.data.ownership import lock, scratch_folder
from mean_jax.data.passes import Passes, Plan
from mean_jax.data.prepare import SHARD_BYTES, log_rows, manifest_splits
from mean_jax.data.schema import check_id_type
from mean_jax.data.stability import SAMPLE_ROWS, Reference, log_stability
from mean_jax.data.store import ID_COLUMN, KIND, MANIFEST_NAME, SPLITS, VERSION, Shard, Store
from mean_jax.data.tables import TableSource, missing_column, open_tables
from mean_jax.data.workers import Workers
from mean_jax.errors import UserError
from mean_jax.fileio import naming, remove_temporaries, sync, write_json
from mean_jax.log import LOGGER

_FOLDER_NAME = ".append"
_IDS_PER_BATCH = 1 << 16  # of the store, hashed at a time
_SHARD_FILE = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5,}}(?:\.bin|-ids\.parquet)")


def _remove_strays(store: Store) -> None:
    """Removes what an append that was killed left in the store."""
    remove_temporaries(store.folder, MANIFEST_NAME)
    shutil.rmtree(store.folder / _FOLDER_NAME, ignore_errors=True)
    shards = [shard for split in SPLITS for shard in store.shards[split]]
    named = {name for shard in shards for name in (shard.file, shard.ids_file)}
    for path in store.folder.iterdir():
        if _SHARD_FILE.fullmatch(path.name) and path.name not in named:
            LOGGER.info("%s: removed, an append that was killed had left it", path)
            path.unlink()


def _stored_ids(store: Store, shard: Shard) -> Iterator[pa.Array]:
    with pq.ParquetFile(store.folder / shard.ids_file) as file:
        for batch in file.iter_batches(_IDS_PER_BATCH):
            yield batch.column(ID_COLUMN)


def _write_hashes(store: Store, path: Path) -> None:
    """Writes the hash of every id of the store."""
    with naming(path), open(path, "wb") as file:
        for split in SPLITS:
            for shard in store.shards[split]:
                for ids in _stored_ids(store, shard):
                    file.write(hash_ids(ids).data)


def _stored_places(store: Store, suspects: np.ndarray) -> dict[str, str]:
    """Returns, by their text, the ids of the store whose hashes are among the suspects."""
    found = {}
    for split in SPLITS:
        for shard in store.shards[split]:
            for ids in _stored_ids(store, shard):
                for row in np.flatnonzero(np.isin(hash_ids(ids), suspects)):
                    found[str(ids[int(row)].as_py())] = f"the store already ({shard.ids_file})"
    return found


def _open_input(input_path: str, store: Store) -> tuple[TableSource, pa.DataType]:
    """Returns the input and the type of the store's ids; raises UserError if its columns are not the store's."""
    schema = store.schema
    first = next(shard for split in SPLITS for shard in store.shards[split])
    stored = pq.read_schema(store.folder / first.ids_file).field(ID_COLUMN).type
    # The ids of a CSV file are text beside a store's text, even where digits are all that they hold this time.
    source = open_tables(input_path, "--input", schema.id_name if pa.types.is_integer(stored) else None)
    needed = [schema.id_name, *schema.labels, *schema.numeric, *schema.categorical]
    for name in needed + ([schema.split_column] if schema.split_column else []):
        if name not in source.schema.names:
            raise missing_column(name, "--input", source.schema.names, input_path, "the store")
    given = source.schema.field(schema.id_name).type
    given = given.value_type if pa.types.is_dictionary(given) else given
    check_id_type(given, schema.id_name)
    if pa.types.is_integer(given) != pa.types.is_integer(stored):
        raise UserError(
            f"--input: column {schema.id_name} is of type {given}, the ids of the store are {stored}; write it as these"
        )
    return source, stored


def _write(passes: Passes, store: Store, folder: Path, scratch: Path) -> tuple[dict[str, list[Shard]], dict[str, Any]]:
    """Writes the new shards and returns them with the manifest's entry of this append."""
    checked = passes.check()
    hashes = scratch / "store"
    _write_hashes(store, hashes)
    passes.check_ids([hashes], lambda suspects: _stored_places(store, suspects))
    num_rows = int(checked.rows_per_split.sum())
    if not num_rows:
        raise UserError("--input: no row has a known label; there is nothing to append")
    last = [max((int(shard.file[:-4].split("-")[1]) for shard in store.shards[split]), default=-1) for split in SPLITS]
    plan = Plan.of(checked.rows_per_split, 4 * store.layout.num_words, SHARD_BYTES, [number + 1 for number in last])
    spilled = passes.spill(plan)
    occupancy = (Reference.of(store.schema, store.transform), -(-num_rows // SAMPLE_ROWS))
    shards, counts = passes.sort(spilled, store.layout, store.transform.vocabularies, folder, occupancy)
    assert counts is not None
    indices = counts.indices()
    log_stability(indices, store.schema.labels, counts.num_rows)
    entry = {
        "rows": num_rows,
        "rows_without_label": checked.num_unlabelled,
        "rows_per_split": dict(zip(SPLITS, checked.rows_per_split.tolist(), strict=True)),
        "stability": indices,
    }
    return shards, entry


def append(input_path: str, output: Path, num_workers: int = 1, scratch: Path | None = None) -> None:
    """Adds the rows of a customer table to a store.

    Args:
      input_path: Parquet or CSV file, folder or glob, with the store's columns; others are ignored.
      output: the store.
      num_workers: processes, see `PrepareOptions`.
      scratch: see `PrepareOptions`.

    Raises:
      UserError: not a whole store, another command works on it, a column or row is not usable, or an id is in the store
        already; the store stays as it was.
    """
    store = Store(output, "--output", verify=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(store.folder))
        except BlockingIOError:
            raise UserError(f"--output: another append to {output} is running; wait for it") from None
        store = Store(output, "--output", verify=False)  # as the last append left it
        _remove_strays(store)
        source, id_type = _open_input(input_path, store)
        folder = store.folder / _FOLDER_NAME
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        spill = stack.enter_context(scratch_folder(folder, output, scratch))
        workers = stack.enter_context(Workers(num_workers))
        passes = Passes(source, store.schema, id_type, spill, workers)
        new, entry = _write(passes, store, folder, spill)
        for shards in new.values():
            for shard in shards:
                for name in (shard.file, shard.ids_file):
                    (folder / name).rename(store.folder / name)
        sync(store.folder)
        manifest = store.manifest
        content = manifest | {
            "rows": manifest["rows"] + entry["rows"],
            "rows_without_label": manifest["rows_without_label"] + entry["rows_without_label"],
            "splits": manifest_splits({split: [*store.shards[split], *new[split]] for split in SPLITS}),
            "appends": [*manifest["appends"], entry],
        }
        write_json(store.folder / MANIFEST_NAME, KIND, VERSION, content)
    log_rows(list(entry["rows_per_split"].values()), entry["rows_without_label"], passes.seconds)
