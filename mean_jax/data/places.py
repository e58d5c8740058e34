"""Categorical values before the vocabularies are known: rows carry the places of texts in a file of their unit.

So categorical columns are read once: while rows are spilled, the texts of a unit are listed and counted; when all are
counted, the list of each unit is turned into one of codes, and a row's places are looked up there.

The file of a unit holds Arrow messages, one for each batch that brought new dictionaries: their columns and texts. The
texts of the whole file have the places 1, 2, ...; missing values have place 0.
"""

from collections.abc import Sequence
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa

from mean_jax.data.categories import CategoryCounts
from mean_jax.data.transform import MISSING_CODE, category_codes, category_indices, is_same_texts
from mean_jax.fileio import naming

_DICTIONARIES = pa.schema([("column", pa.int32()), ("texts", pa.list_(pa.string()))])


def _texts_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:08d}.texts"


def _codes_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:08d}.codes"


class TextPlaces:
    """Turns the categorical columns of a unit's batches into places and counts the texts of training rows."""

    def __init__(self, folder: Path, unit: int, names: Sequence[str], counts: Sequence[CategoryCounts]) -> None:
        """Starts the unit's file.

        Args:
          folder: of the spill.
          unit: its index.
          names: of the categorical columns.
          counts: of these columns, that the training rows are added to; empty to count nothing.
        """
        self._counts = counts
        self._names = names
        self._path = _texts_path(folder, unit)
        self._next = 1
        self._known: list[tuple[pa.Array, np.ndarray] | None] = [None] * len(names)  # last dictionary and its places
        with naming(self._path):
            self._path.write_bytes(b"")

    def __call__(self, batch: pa.RecordBatch, is_train_B: np.ndarray) -> np.ndarray:
        """Returns places_BxD int32; raises UserError if a column is no text."""
        places_DxB = np.empty((len(self._names), batch.num_rows), np.int32)
        fresh: list[tuple[int, pa.Array]] = []
        for column, (places_B, name) in enumerate(zip(places_DxB, self._names, strict=True)):
            texts, indices_B = category_indices(batch.column(name), name)
            known = self._known[column]
            if known is None or not is_same_texts(known[0], texts):
                fresh.append((column, texts))
                places = np.arange(self._next, self._next + len(texts) + 1, dtype=np.int32)
                places[-1] = 0  # where -1 finds it, of a missing value
                self._next += len(texts)
                known = self._known[column] = texts, places
            places_B[:] = known[1][indices_B]
            if self._counts:
                per_text = np.bincount(1 + indices_B[is_train_B], minlength=1 + len(texts))
                self._counts[column].update(texts, per_text[1:], int(per_text[0]))
        if fresh:
            self._append(fresh)
        return places_DxB.T

    def _append(self, dictionaries: list[tuple[int, pa.Array]]) -> None:
        columns, texts = zip(*dictionaries, strict=True)
        ends = np.cumsum([0, *map(len, texts)])
        lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.concat_arrays(texts))
        batch = pa.record_batch([pa.array(columns, pa.int32()), lists], schema=_DICTIONARIES)
        with naming(self._path), open(self._path, "ab") as file:
            file.write(batch.serialize())


def write_codes(folder: Path, unit: int, vocabularies: Sequence[pa.Array]) -> None:
    """Writes the code of every place of a unit beside its texts, given each column's values."""
    source, target = _texts_path(folder, unit), _codes_path(folder, unit)
    size = source.stat().st_size
    with naming(target), open(target, "wb") as codes, pa.OSFile(str(source)) as texts:
        codes.write(np.int32(MISSING_CODE).data)
        while texts.tell() < size:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(texts), _DICTIONARIES)
            for column, found in zip(*batch.columns, strict=True):
                codes.write(category_codes(found.values, vocabularies[column.as_py()]).data)


class Codes:
    """What `write_codes` wrote, a unit at a time."""

    def __init__(self, folder: Path) -> None:
        # Rows come unit by unit.
        self._of = functools.lru_cache(maxsize=1)(lambda unit: np.fromfile(_codes_path(folder, unit), np.int32))

    def look_up(self, unit: int, places: np.ndarray) -> np.ndarray:
        """Returns the int32 codes of places of a unit."""
        return self._of(unit)[places]
