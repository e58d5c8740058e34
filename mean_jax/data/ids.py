"""Customer ids: never null, and each in one row only."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.hashing import hash_ids
from mean_jax.data.tables import TableSource, require_utf8
from mean_jax.errors import UserError

# Id hashes looked at together when searching for duplicates: 64 MiB of them.
_HASHES_PER_PASS = 1 << 23
_READ_BYTES = 8 << 20
# Repeated hashes that are looked up in the input: two ids may share one by chance, but not a thousand pairs of them.
_MAX_SUSPECTS = 1000


def require_ids(ids: pa.Array, name: str, place: Callable[[int], str]) -> None:
    """Raises UserError if ids are nested, or an id is null or text that is not UTF-8.

    Args:
      ids: the id column of one record batch.
      name: the column's name.
      place: names a row of the batch.
    """
    values = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
    if pa.types.is_nested(values.type):
        raise UserError(f"{place(0)}: column {name} is of type {values.type}; ids are integers or text")
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise UserError(f"{place(row)}: column {name} is null; every row needs an id")
    require_utf8(values, name, place)


def cast_ids(ids: pa.Array, kind: pa.DataType, name: str, place: Callable[[int], str]) -> pa.Array:
    """Returns the ids in the type of the store; raises UserError, which names the row, if one does not fit it."""
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid:
        for row in range(len(ids)):
            try:
                ids.slice(row, 1).cast(kind)
            except pa.ArrowInvalid:
                value = ids[row].as_py()
                raise UserError(
                    f"{place(row)}: {name} {value!r} does not fit {kind}, the type of the store's ids; "
                    "leave the row out or make a new store of all rows"
                ) from None
        raise


def count_unique_ids(source: TableSource, name: str, flag: str) -> int:
    """Returns the number of rows after reading the ids alone, in memory that does not grow with them.

    Raises:
      UserError: no rows, a null id, or an id that stands there twice.
    """
    with tempfile.NamedTemporaryFile() as spill:
        num_rows = 0
        for rows in source.rows([name]):
            ids = rows.batch.column(0)
            require_ids(ids, name, rows.place)
            spill.write(hash_ids(ids).tobytes())
            num_rows += len(ids)
        if not num_rows:
            raise UserError(f"{flag}: {source.files[0]} has no rows")
        spill.flush()
        suspects = repeated_hashes([Path(spill.name)])
    if len(suspects):
        refuse_repeated(source, name, flag, suspects)
    return num_rows


def repeated_hashes(files: Sequence[Path]) -> np.ndarray:
    """Returns uint64 hashes that stand more than once in files of them, not all of them if there are many.

    The files are read once for every eight million hashes, so that memory holds so many at a time.
    """
    num_hashes = sum(file.stat().st_size for file in files) // np.dtype(np.uint64).itemsize
    num_passes = -(-num_hashes // _HASHES_PER_PASS)
    found: list[np.ndarray] = [np.zeros(0, np.uint64)]
    for index in range(num_passes):
        first, end = ((index + step) * 2**64 // num_passes for step in (0, 1))
        # What is below the first wraps around to a large number.
        kept = [chunk[chunk - np.uint64(first) <= np.uint64(end - 1 - first)] for chunk in _hash_chunks(files)]
        hashes = np.concatenate(kept)
        del kept
        hashes.sort()
        found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MAX_SUSPECTS])
    return np.concatenate(found)[:_MAX_SUSPECTS]


def _hash_chunks(files: Sequence[Path]) -> Iterator[np.ndarray]:
    for file in files:
        with open(file, "rb") as content:  # not mapped: the pages would count as this process's memory
            while data := content.read(_READ_BYTES):
                yield np.frombuffer(data, np.uint64)


def refuse_repeated(
    source: TableSource, name: str, flag: str, suspects: np.ndarray, places: dict[Any, str] | None = None
) -> None:
    """Raises UserError if ids, not only their hashes, stand there more than once.

    Args:
      source: the input.
      name: the id column.
      flag: the flag that the input came from.
      suspects: hashes that do.
      places: where ids of such hashes stand outside the input, by the id's text.
    """
    places = dict(places or {})
    for rows in source.rows([name]):
        ids = rows.batch.column(0)
        for row in np.flatnonzero(np.isin(hash_ids(ids), suspects)):
            value, place = ids[int(row)].as_py(), rows.place(int(row))
            if str(value) in places:
                raise UserError(
                    f"{flag}: {name} {value!r} stands in {places[str(value)]} and in {place}; "
                    "one row per customer is needed"
                )
            places[str(value)] = place
