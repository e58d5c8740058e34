"""Customer ids: never null, and each in one row only."""

from collections.abc import Callable
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.hashing import hash_ids
from mean_jax.data.tables import TableSource
from mean_jax.errors import UserError

# Id hashes looked at together when searching for duplicates: 64 MiB of them.
_HASHES_PER_PASS = 1 << 23
# Repeated hashes that are looked up in the input: two ids may share one by chance, but not a thousand pairs of them.
_MAX_SUSPECTS = 1000


def require_ids(ids: pa.Array, name: str, place: Callable[[int], str]) -> None:
    """Raises UserError if an id is null.

    Args:
      ids: the id column of one record batch.
      name: the column's name.
      place: names a row of the batch.
    """
    values = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise UserError(f"{place(row)}: column {name} is null; every row needs an id")


def count_unique_ids(source: TableSource, name: str, flag: str) -> int:
    """Returns the number of rows after reading the ids alone, in memory that does not grow with them.

    Raises:
      UserError: no rows, a null id, or an id that stands there twice.
    """
    with tempfile.TemporaryFile() as spill:
        num_rows = 0
        for rows in source.rows([name]):
            ids = rows.batch.column(0)
            require_ids(ids, name, rows.place)
            spill.write(hash_ids(ids).tobytes())
            num_rows += len(ids)
        if not num_rows:
            raise UserError(f"{flag}: {source.files[0]} has no rows")
        spill.flush()
        suspects = _repeated(np.memmap(spill, np.uint64, "r", shape=(num_rows,)))
    if len(suspects):
        _refuse_repeated(source, name, flag, suspects)
    return num_rows


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Returns hashes that stand there more than once, not all of them if there are many."""
    num_passes = -(-len(hashes) // _HASHES_PER_PASS)
    found: list[np.ndarray] = []
    for index in range(num_passes):
        chunks = [hashes[start : start + _HASHES_PER_PASS] for start in range(0, len(hashes), _HASHES_PER_PASS)]
        kept = np.sort(np.concatenate([chunk[chunk % np.uint64(num_passes) == index] for chunk in chunks]))
        found.append(np.unique(kept[1:][kept[1:] == kept[:-1]])[:_MAX_SUSPECTS])
    return np.concatenate(found)[:_MAX_SUSPECTS]


def _refuse_repeated(source: TableSource, name: str, flag: str, suspects: np.ndarray) -> None:
    places: dict[Any, str] = {}
    for rows in source.rows([name]):
        ids = rows.batch.column(0)
        for row in np.flatnonzero(np.isin(hash_ids(ids), suspects)):
            value, place = ids[int(row)].as_py(), rows.place(int(row))
            if value in places:
                raise UserError(
                    f"{flag}: {name} {value!r} stands in {places[value]} and in {place}; one row per customer is needed"
                )
            places[value] = place
