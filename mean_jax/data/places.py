"""Categorical values before the vocabularies are known: rows carry the places of texts in a list of their process.

So categorical columns are read once: while rows are spilled, the texts that a process meets are listed, each once, and
counted; when all are counted, every list is turned into one of codes, and a row's places are looked up there.

A list is a file of Arrow messages, one for each batch that brought new texts: their columns and the texts, which have
the places 1, 2, ... through the whole file; missing values have place 0. A process begins another list once the last
one is long, so that memory does not grow with the rows; a list's name tells the process and the position of the first
row that it serves.
"""

import bisect
from collections.abc import Sequence
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from mean_jax.data.categories import CategoryCounts
from mean_jax.data.transform import MISSING_CODE, category_codes, category_indices, is_same_texts
from mean_jax.fileio import naming

_MAX_TEXTS = 1 << 18  # of a list, before the batch that goes beyond
_DICTIONARIES = pa.schema([("column", pa.int32()), ("texts", pa.list_(pa.string()))])


class TextPlaces:
    """Turns the categorical columns of the batches that a process reads into places."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Starts without a list.

        Args:
          folder: of the spill.
          names: of the categorical columns.
        """
        self._folder = folder
        self._names = names
        self._path: Path | None = None
        self._num_texts = 0
        self._places: list[dict[str, int]] = []  # of the texts of each column
        self._known: list[tuple[pa.Array, np.ndarray] | None] = []  # the last dictionary of each and its places

    def __call__(
        self,
        batch: pa.RecordBatch,
        position: int,
        order_B: np.ndarray,
        num_counted: int,
        counts: Sequence[CategoryCounts],
    ) -> np.ndarray:
        """Returns places_BxD int32 in the given order.

        Args:
          batch: rows; their positions are beyond those of the last call.
          position: of the first row.
          order_B: indices of rows.
          num_counted: of these, how many are counted, from the first on.
          counts: of each column, that these are added to; empty to count nothing.

        Raises:
          UserError: a column is no text.
        """
        places_DxB = np.empty((len(self._names), len(order_B)), np.int32)
        if self._path is None or self._num_texts > _MAX_TEXTS:
            self._path = self._begin(position)
        fresh: list[tuple[int, list[str]]] = []
        for column, (places_B, name) in enumerate(zip(places_DxB, self._names, strict=True)):
            texts, indices_B = category_indices(batch.column(name), name)
            known = self._known[column]
            if known is None or not is_same_texts(known[0], texts):
                places, new = self._list(column, texts)
                known = self._known[column] = texts, places
                if new:
                    fresh.append((column, new))
            indices_B = indices_B[order_B]
            places_B[:] = known[1][indices_B]
            if counts:
                per_text = np.bincount(1 + indices_B[:num_counted], minlength=1 + len(texts))
                counts[column].update(texts, per_text[1:], int(per_text[0]))
        if fresh:
            columns, lists = zip(*fresh, strict=True)
            message = pa.record_batch([pa.array(columns), pa.array(lists)], schema=_DICTIONARIES)
            with naming(self._path), open(self._path, "ab") as file:
                file.write(message.serialize())
        return places_DxB.T

    def _begin(self, position: int) -> Path:
        self._num_texts = 0
        self._places = [{} for _ in self._names]
        self._known = [None] * len(self._names)
        path = self._folder / f"{os.getpid()}-{position:016x}.texts"
        with naming(path):
            path.touch(exist_ok=False)
        return path

    def _list(self, column: int, texts: pa.Array) -> tuple[np.ndarray, list[str]]:
        """Returns the place of each text and, at the end, where -1 finds it, 0 for a missing value; and new texts."""
        places_of = self._places[column]
        places = np.zeros(len(texts) + 1, np.int32)
        new: list[str] = []
        for index, text in enumerate(texts.to_pylist()):
            place = places_of.get(text)
            if place is None:
                self._num_texts += 1
                place = places_of[text] = self._num_texts
                new.append(text)
            places[index] = place
        return places, new


def write_codes(path: Path, vocabularies: Sequence[pa.Array]) -> None:
    """Writes the code of every place of a list beside it, given the values of each column."""
    target = path.with_suffix(".codes")
    size = path.stat().st_size
    with naming(target), open(target, "wb") as codes, pa.OSFile(str(path)) as texts:
        codes.write(np.int32(MISSING_CODE).data)
        while texts.tell() < size:
            message = pa.ipc.read_record_batch(pa.ipc.read_message(texts), _DICTIONARIES)
            for column, found in zip(*message.columns, strict=True):
                codes.write(category_codes(found.values, vocabularies[column.as_py()]).data)


def list_paths(folder: Path) -> list[Path]:
    """Returns the lists of all processes."""
    return sorted(folder.glob("*.texts"))


class Codes:
    """What `write_codes` wrote for the lists of one process."""

    def __init__(self, folder: Path, process: str) -> None:
        self._paths = sorted(folder.glob(f"{process}-*.codes"))
        self._starts = [int(path.stem.split("-")[1], 16) for path in self._paths]
        self._held = -1
        self._codes = np.empty(0, np.int32)

    def look_up(self, position: int, places: np.ndarray) -> np.ndarray:
        """Returns the int32 codes of places that one call of `TextPlaces` gave for rows from a position on."""
        index = bisect.bisect_right(self._starts, position) - 1
        if index != self._held:  # one list at a time: rows come in the order in which they were spilled
            self._held, self._codes = index, np.fromfile(self._paths[index], np.int32)
        return self._codes[places]
