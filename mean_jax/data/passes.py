"""The three passes by which a customer table becomes shards, shared by prepare and append.

1. check: ids, labels and splits, all that can be refused or counted without the features;
2. spill: every feature is read once, counted in the statistics and appended to the shard its row belongs to;
3. sort: each shard is put in the order of a hash of the ids, and its categories get their codes.

Each pass works on units or shards that do not depend on how many processes share them, and their results are merged in
a fixed order: the store is the same, byte for byte, for any number of workers. Memory holds one batch or one shard per
process and a sample of the rows, whatever their number.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mean_jax.data import hashing
from mean_jax.data.buffers import RowPages
from mean_jax.data.categories import CategoryCounts
from mean_jax.data.check import Checked, CheckUnit
from mean_jax.data.ids import cast_ids, refuse_repeated, repeated_hashes
from mean_jax.data.labelled import LabelledReader, LabelledRows
from mean_jax.data.places import TextPlaces, list_paths, write_codes
from mean_jax.data.schema import Schema
from mean_jax.data.sort import sort_shard
from mean_jax.data.spill import Spiller, spill_schema
from mean_jax.data.stability import Occupancy, Reference
from mean_jax.data.statistics import NumericStatistics
from mean_jax.data.store import SPLITS, Shard
from mean_jax.data.tables import TableSource, require_utf8
from mean_jax.data.transform import numeric_tiles
from mean_jax.data.units import Unit, split_units
from mean_jax.data.workers import Workers
from mean_jax.errors import UserError
from mean_jax.fileio import naming, sync
from mean_jax.log import LOGGER
from mean_jax.progress import Progress
from mean_jax.types import RowLayout

# Larger batches gain little and take their bytes twice, as columns and as rows; smaller ones are all overhead: with 720
# columns, 8,192 rows at a time take a quarter longer.
ROWS_PER_BATCH, _BYTES_PER_BATCH = 1 << 15, 96 << 20
_ORDER_SALT = 1  # even salts are those of the split seeds
_TRAIN = SPLITS.index("train")
_NUM_WORST = 5  # columns that a warning names
_POSITION_BITS = 40  # of the row within its unit; the unit's index stands above


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shards that the labelled rows go to."""

    num_shards: tuple[int, ...]  # per split; a row's place in the order decides which
    first: tuple[int, ...]  # number of the first shard of each split

    @property
    def names(self) -> list[tuple[str, str]]:
        """The split and the name of every shard, those of training first."""
        return [
            (split, f"{split}-{first + shard:05d}")
            for split, num_shards, first in zip(SPLITS, self.num_shards, self.first, strict=True)
            for shard in range(num_shards)
        ]

    @classmethod
    def of(cls, rows_per_split: np.ndarray, row_bytes: int, shard_bytes: int, first: Sequence[int]) -> "Plan":
        """Returns shards of about the given size."""
        return cls(tuple(max(1, -(-int(rows) * row_bytes // shard_bytes)) for rows in rows_per_split), tuple(first))


@dataclasses.dataclass
class Spilled:
    """What the second pass learns of the rows, and where it left them."""

    plan: Plan
    rows_per_shard: np.ndarray
    numeric: NumericStatistics  # these and the counts are empty where no statistics were wanted
    categories: list[CategoryCounts]

    def merge(self, other: "Spilled") -> None:
        """Adds the rows of the next unit."""
        self.rows_per_shard += other.rows_per_shard
        self.numeric.merge(other.numeric)
        for counts, more in zip(self.categories, other.categories, strict=True):
            counts.merge(more)


class Wanted(NamedTuple):
    """The statistics that the second pass is to collect."""

    hash_bound: int  # of the rows that are sampled
    max_categories: int


@dataclasses.dataclass(frozen=True)
class _SpillUnit:
    schema: Schema
    scratch: Path
    plan: Plan
    spilled: pa.Schema
    wanted: Wanted | None

    def nothing(self) -> Spilled:
        """Returns what no rows come to."""
        hash_bound, max_categories = self.wanted or (0, 0)
        categories = [CategoryCounts(max_categories) for _ in self.schema.categorical if self.wanted]
        numeric = NumericStatistics(len(self.schema.numeric), hash_bound)
        return Spilled(self.plan, np.zeros(sum(self.plan.num_shards), np.int64), numeric, categories)

    @functools.cached_property
    def _spiller(self) -> Spiller:
        """Kept by each process."""
        names = [name for _, name in self.plan.names]
        return Spiller(self.scratch, names, self.spilled, self.schema.layout.num_words)

    @functools.cached_property
    def _places(self) -> TextPlaces:
        """Lists of texts, kept by each process."""
        return TextPlaces(self.scratch, self.schema.categorical)

    def __call__(self, unit: Unit) -> Spilled:
        try:
            done = self._spill(unit)
            self._spiller.finish()
        except BaseException as error:
            self._spiller.stop()  # the folder may be removed now
            if isinstance(error, UnicodeDecodeError):
                raise self._bad_text(unit, error) from None
            raise
        return done

    def _bad_text(self, unit: Unit, error: UnicodeDecodeError) -> UserError:
        """Returns, or raises, what names a text in a dictionary, which may hold texts of other batches."""
        for rows in unit.rows(self.schema.categorical):
            for name in self.schema.categorical:
                require_utf8(rows.batch.column(name), name, rows.place)
        files = ", ".join(str(piece.file) for piece in unit.pieces)
        return UserError(
            f"{files}: the dictionary of a text column holds {error.object!r}, which is not UTF-8 and which no row "
            "has; write text as UTF-8"
        )

    def _spill(self, unit: Unit) -> Spilled:
        schema = self.schema
        done = self.nothing()
        row = unit.index << _POSITION_BITS
        for found in LabelledReader(unit, schema).read((*schema.numeric, *schema.categorical)):
            hashes_B, shard_B = self._shards(found)
            # Rows without a label go last and are left out; those of training, whose shards are the first, lead.
            order_B = np.argsort(shard_B, kind="stable")
            counts = np.bincount(shard_B, minlength=len(done.rows_per_shard) + 1)[:-1]
            num_train = int(counts[: self.plan.num_shards[_TRAIN]].sum())
            sorted_BxW = self._spiller.room(counts.sum())
            self._encode(found, row, order_B, num_train, done, sorted_BxW)
            order_B = order_B[: len(sorted_BxW)]
            ids = found.rows.batch.column(schema.id_name)
            ids = cast_ids(ids, self.spilled.field("id").type, schema.id_name, found.rows.place).take(pa.array(order_B))
            positions_B = (row + order_B).astype(np.uint64)
            ends = np.cumsum(counts)
            for shard in np.flatnonzero(counts).tolist():
                part = slice(ends[shard] - counts[shard], ends[shard])
                self._spiller.append(shard, part, hashes_B[order_B[part]], positions_B[part], ids[part])
            if self.wanted is not None:
                done.numeric.sample(found.hashes[order_B[:num_train]], sorted_BxW[:num_train, : len(schema.numeric)])
            done.rows_per_shard += counts
            row += len(found.hashes)
        return done

    def _encode(
        self,
        found: LabelledRows,
        position: int,
        order_B: np.ndarray,
        num_train: int,
        done: Spilled,
        sorted_BxW: np.ndarray,
    ) -> None:
        """Fills `sorted_BxW` with the first rows in the given order and counts the training rows, which lead."""
        layout, batch, num_rows = self.schema.layout, found.rows.batch, len(sorted_BxW)
        labels_start = layout.num_words - layout.num_labels
        for start, values_CxB in numeric_tiles(batch, self.schema.numeric, found.rows.place, order_B):
            sorted_BxW[:, start : start + len(values_CxB)] = values_CxB[:, :num_rows].T
            if self.wanted is not None:
                done.numeric.update(values_CxB[:, :num_train], start)
        if layout.num_categorical:
            places_BxD = self._places(batch, position, order_B[:num_rows], num_train, done.categories)
            sorted_BxW[:, layout.num_numeric : labels_start] = places_BxD.view(np.float32)
        sorted_BxW[:, labels_start:] = found.labels[order_B[:num_rows]]

    def _shards(self, found: LabelledRows) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hash that decides a row's order, and its shard; one past the last for rows without a label."""
        hashes_B = hashing.remix(found.hashes, _ORDER_SALT)
        num_shards = np.array(self.plan.num_shards)
        within_B = (hashing.to_unit_interval(hashes_B) * num_shards[found.split]).astype(np.int64)
        shard_B = (np.cumsum(num_shards) - num_shards)[found.split] + within_B
        return hashes_B, np.where(found.has_label, shard_B, num_shards.sum())


@dataclasses.dataclass(frozen=True)
class _SortShard:
    scratch: Path
    spilled: pa.Schema
    layout: RowLayout
    output: Path
    occupancy: tuple[Reference, int] | None

    @functools.cached_property
    def _room(self) -> RowPages:
        """For the rows of one shard, kept by each process."""
        return RowPages(self.layout.as_float32.num_words)

    def __call__(self, shard: tuple[str, int]) -> tuple[Shard, np.ndarray, Occupancy | None]:
        name, num_rows = shard
        return sort_shard(
            self.scratch, name, num_rows, self._room, self.spilled, self.layout, self.output, self.occupancy
        )


class Passes:
    """The passes over one input; call check, spill and sort, in this order."""

    def __init__(self, source: TableSource, schema: Schema, id_type: pa.DataType, scratch: Path, workers: Workers):
        """Divides the input.

        Args:
          source: the customer table.
          schema: roles of its columns.
          id_type: of the ids in the store.
          scratch: an empty folder for what the passes hand on.
          workers: that share the work.
        """
        self._source = source
        self._schema = schema
        self.seconds: dict[str, float] = {}  # that each pass took
        self._scratch = scratch
        self._spilled = spill_schema(id_type)
        batch_rows = max(1, min(ROWS_PER_BATCH, _BYTES_PER_BATCH // (4 * schema.layout.num_words)))
        self._units = split_units(source, batch_rows)
        self._workers = workers if len(self._units) > 1 else Workers(1)  # processes take longer to start than one unit
        counts = [unit.num_rows for unit in self._units if unit.num_rows is not None]
        self._num_rows = sum(counts) if len(counts) == len(self._units) else None

    def check(self) -> Checked:
        """Returns what is known without the features.

        Raises:
          UserError: no rows, a null or repeated id, a label that is no amount, a split that is none.
        """
        total = Checked(len(self._schema.labels))
        with Progress("check", self._num_rows) as progress:
            for part in self._workers.map(CheckUnit(self._schema, self._scratch), self._units):
                progress.update(part.num_rows)
                total.merge(part)
        self.seconds["check"] = progress.seconds
        if not total.num_rows:
            raise UserError(f"--input: {self._source.files[0]} has no rows")
        return total

    def check_ids(
        self, hash_files: Sequence[Path] = (), places: Callable[[np.ndarray], dict[str, str]] | None = None
    ) -> None:
        """Raises UserError if an id stands there twice.

        Args:
          hash_files: hashes of further ids, none of which may be among the input's.
          places: says for repeated hashes where the further ids that have them stand.
        """
        start = time.monotonic()
        suspects = repeated_hashes([*sorted(self._scratch.glob("*.hashes")), *hash_files])
        self.seconds["ids"] = time.monotonic() - start
        if len(suspects):
            elsewhere = places(suspects) if places else None
            refuse_repeated(self._source, self._schema.id_name, "--input", suspects, elsewhere)

    def spill(self, plan: Plan, wanted: Wanted | None = None) -> Spilled:
        """Spills all rows to the shards of a plan and collects what statistics are wanted.

        Raises:
          UserError: a value of a feature that cannot be read as its kind.
        """
        function = _SpillUnit(self._schema, self._scratch, plan, self._spilled, wanted)
        total = function.nothing()
        with Progress("read", self._num_rows) as progress:
            for part in self._workers.map(function, self._units):
                total.merge(part)
                progress.update(int(part.rows_per_shard.sum()))
        self.seconds["read"] = progress.seconds
        return total

    def sort(
        self,
        spilled: Spilled,
        layout: RowLayout,
        vocabularies: Sequence[Sequence[str]],
        output: Path,
        occupancy: tuple[Reference, int] | None = None,
    ) -> tuple[dict[str, list[Shard]], Occupancy | None]:
        """Writes the shards that have rows to the disk; returns them by split, and the counts if they are asked for."""
        rows_per_shard = spilled.rows_per_shard
        counts = zip(spilled.plan.names, rows_per_shard.tolist(), strict=True)
        tasks = [(split, name, rows) for (split, name), rows in counts if rows]
        function = _SortShard(self._scratch, self._spilled, layout, output, occupancy)
        shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        counted: list[Occupancy] = []
        clipped_C = np.zeros(layout.num_numeric, np.int64)
        with Progress("sort", int(rows_per_shard.sum())) as progress:
            value_sets = [pa.array(values, pa.string()) for values in vocabularies]
            write = functools.partial(write_codes, vocabularies=value_sets)
            for _ in self._workers.map(write, list_paths(self._scratch)):
                pass
            sorted_shards = self._workers.map(function, [(name, rows) for _, name, rows in tasks])
            for (split, _, rows), (shard, clipped, occupied) in zip(tasks, sorted_shards, strict=True):
                for name in (shard.file, shard.ids_file):  # meanwhile other processes sort the next ones
                    with naming(output / name):
                        sync(output / name)
                shards[split].append(shard)
                clipped_C += clipped
                progress.update(rows)
                if occupied is not None:
                    counted.append(occupied)
            sync(output)
        self.seconds["sort"] = progress.seconds
        _warn_of_clipped(self._schema.numeric, clipped_C)
        return shards, functools.reduce(_merged, counted) if counted else None


def _warn_of_clipped(names: Sequence[str], clipped_C: np.ndarray) -> None:
    """Names the columns with the most values beyond the range of float16."""
    if not clipped_C.any():
        return
    worst = [index for index in np.argsort(-clipped_C, kind="stable")[:_NUM_WORST].tolist() if clipped_C[index]]
    LOGGER.warning(
        "%d values of %d columns exceed what --numeric_type=float16 holds of them and were set to its largest number: "
        "most in %s",
        clipped_C.sum(),
        np.count_nonzero(clipped_C),
        ", ".join(f"{names[index]} ({clipped_C[index]})" for index in worst),
    )


def _merged(total: Occupancy, part: Occupancy) -> Occupancy:
    total.merge(part)
    return total
