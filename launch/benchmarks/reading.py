"""Rows/s of the reading path, from warm and from cold pages, alone and under training, and its memory.

Command:  python launch/benchmarks/reading.py [--rows=1000000] [--features=720] [--folder=DIR]

Stores as mean-jax-prepare writes them, in float32 and float16, in shards of 256 MB. Warm: dispatches of the pipeline
alone beside train steps on rows in memory. Cold: the pages of all shards are dropped (posix_fadvise) before each
measurement, the sequential rate is that of reads of 4 MB through the same shards, and the kernel's count of bytes from
the disk shows how much the page cache had after all. Training from cold pages: an epoch visits each row once, so every
figure there is of steps on rows from the disk, beside the same steps on rows in memory. To have the system take pages
away as well, and the reader keep it from reading ahead, leave it less memory than the store has: with --free_gb=2,
which locks the rest while whole epochs are trained, or in a control group, e.g. `systemd-run --scope -p MemoryMax=2G`;
its limit is printed. (ulimit does not count the pages of files.) Memory: the largest anonymous resident set of training
runs on two sizes, processes of their own. In each round every contender runs once, on cold pages with a sequential
reading before and after; medians with smallest and largest. Disk: 4.4 kB per row of 720 features, 4.4 GB by default; a
container or a virtual machine may have its host cache what is cold here.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from made_up import make_program
import numpy as np
from process_meter import measure
from reading_disk import drop_pages, open_rows, read_sequentially, scarce_memory, timed, write_store

from mean_jax.cli import common
from mean_jax.config import DataConfig
from mean_jax.data.memory import memory_limit
from mean_jax.data.pipeline import EpochPlan, plan_epoch, train_dispatches
from mean_jax.data.store import Shard, SplitRows
from mean_jax.errors import UserError
from mean_jax.run import Program
from mean_jax.sharding import data_mesh, state_shardings
from mean_jax.training.feed import Order, make_feed
from mean_jax.training.state import TrainState, make_init
from mean_jax.training.step import make_dispatch
from mean_jax.types import RowLayout

_FLAGS = flags.FlagValues()  # of this command alone
_ROWS = flags.DEFINE_integer("rows", 1_000_000, "Rows of each store.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 720, "Numeric features.", lower_bound=1, flag_values=_FLAGS)
_HORIZONS = flags.DEFINE_integer("horizons", 4, "Replicas of the main step.", lower_bound=2, flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds over all contenders.", lower_bound=1, flag_values=_FLAGS)
_DISPATCHES = flags.DEFINE_integer("dispatches", 8, "Timed dispatches per round.", lower_bound=1, flag_values=_FLAGS)
_FREE_GB = flags.DEFINE_float(
    "free_gb",
    0.0,
    "Beyond memory: lock all memory of the machine but so many GB, fewer than the store has, and train whole epochs.",
    lower_bound=0.0,
    flag_values=_FLAGS,
)
_TABLES = flags.DEFINE_multi_enum(
    "tables",
    ["warm", "cold", "training", "memory"],
    ["warm", "cold", "training", "memory"],
    "Tables to print; repeat the flag for several.",
    flag_values=_FLAGS,
)
_TRAINED = flags.DEFINE_list(
    "trained",
    None,
    "What trains from cold pages, as HORIZONS:SHUFFLE; by default all, with --free_gb one horizon alone.",
    flag_values=_FLAGS,
)
_FOLDER = flags.DEFINE_string("folder", None, "Where the stores go; a temporary folder if none.", flag_values=_FLAGS)
_TRAIN = flags.DEFINE_string(
    "train",
    None,
    "Only train from SHUFFLE:FOLDER: how the parent runs it.",
    flag_values=_FLAGS,
)
_SHUFFLES: tuple[DataConfig, ...] = (DataConfig(shuffle="rows"), DataConfig(shuffle="blocks"))
_UNTIMED = 3  # dispatches: what the pipeline has made ready before
_SEED = 0
_MANY_EPOCHS = 1000

Samples = dict[str, list[float]]


class DiskStore(NamedTuple):
    """Rows on disk that can be opened again after their pages were dropped."""

    folder: Path
    shards: tuple[Shard, ...]
    layout: RowLayout

    def open(self) -> SplitRows:
        return open_rows(self.folder, self.shards, self.layout)

    def open_cold(self) -> SplitRows:
        drop_pages(self.folder, self.shards)
        return self.open()

    @property
    def num_bytes(self) -> int:
        return 4 * self.layout.num_words * sum(shard.rows for shard in self.shards)


def spread(values: Any, digits: int = 0) -> str:
    """Returns the median with the smallest and the largest."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (np.min(values), np.median(values), np.max(values)))
    return f"{middle} ({low}-{high})"


def layouts(num_features: int, num_horizons: int) -> tuple[RowLayout, RowLayout]:
    """Returns the layouts of the float32 and of the float16 store."""
    wide = RowLayout(num_features, 0, num_horizons)
    return wide, wide._replace(numeric_type="float16", exponents=(0,) * num_features)


def plan_of(program: Program, num_rows: int, needed: int) -> EpochPlan:
    """Returns the plan of an epoch.

    Raises:
      UserError: it has fewer dispatches than needed, or short ones.
    """
    train = program.config.train
    size = train.batch_size * train.steps_per_dispatch
    if num_rows < needed * size:
        raise UserError(f"--rows={num_rows}: expected {needed * size} or more for {needed} dispatches of {size} rows")
    return plan_epoch(num_rows // size * size, train.batch_size, train.steps_per_dispatch)


def _state(program: Program, num_replicas: int) -> TrainState:
    layout = program.schema.layout
    return make_init(program.model, program.optimizer, program.specs[:num_replicas], program.label_constants, layout)()


def _mesh_of(program: Program) -> tuple[Any, Any]:
    mesh = data_mesh(jax.devices()[:1])
    return mesh, state_shardings(mesh, program.abstract_state, program.config.mesh)


class Steps:
    """Train steps of some replicas on one dispatch of rows in memory."""

    def __init__(self, program: Program, num_replicas: int, words_SxBxW: np.ndarray) -> None:
        self._dispatch = make_dispatch(program.step_rule(program.schema.layout), *_mesh_of(program))
        self._state = _state(program, num_replicas)
        self._words = jnp.asarray(words_SxBxW)
        self(1)  # compiles

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._state, metrics = self._dispatch(self._state, self._words)
        jax.block_until_ready(metrics)


class StoreSteps:
    """Train steps of some replicas on the rows of a store, as training feeds them."""

    def __init__(self, program: Program, num_replicas: int, plan: EpochPlan) -> None:
        self._program = program
        self._mesh, self._shardings = _mesh_of(program)
        self._state = _state(program, num_replicas)
        self._plan = plan

    def start(self, rows: SplitRows, config: DataConfig) -> Callable[[int], None]:
        """Returns the function that trains that many dispatches, from the beginning of the first epoch."""
        rule = self._program.step_rule(rows.layout)
        order = Order(self._plan, _MANY_EPOCHS, _SEED)
        dispatches = make_feed(rule, self._mesh, self._shardings, rows, order, config)(0)

        def run(count: int) -> None:
            metrics: Any = ()
            for dispatch in itertools.islice(dispatches, count):
                before = metrics
                self._state, metrics = dispatch.run(self._state)
                jax.block_until_ready(before)  # as the loop, which reads them: else all would be sent at once
            jax.block_until_ready(metrics)

        return run


def _take(dispatches: Iterator[np.ndarray], count: int) -> None:
    for _ in itertools.islice(dispatches, count):
        pass


def _warm(steps: dict[str, Steps], stores: list[DiskStore], plan: EpochPlan) -> str:
    """Returns the table of the pipeline on warm pages beside the steps."""
    streams = {
        f"pipeline, {store.layout.numeric_type}, shuffle={config.shuffle}": (store.open(), config)
        for store in stores
        for config in _SHUFFLES
    }
    to_bfloat16 = (stores[0].open(), DataConfig(numeric_type="bfloat16"))  # two bytes are sent as they are
    streams[f"pipeline, {stores[0].layout.numeric_type} to bfloat16, shuffle=rows"] = to_bfloat16
    for store in stores:
        read_sequentially(store.folder, store.shards)
    samples: Samples = {name: [] for name in (*steps, *streams)}
    count = _DISPATCHES.value
    for number in range(_ROUNDS.value):
        for name, run in steps.items():
            run(1)
            samples[name].append(timed(lambda run=run: run(count))[0])
        for name, (rows, config) in streams.items():
            dispatches = train_dispatches(rows, plan, 1, _SEED + number, 0, config)
            _take(dispatches, _UNTIMED)
            samples[name].append(timed(lambda dispatches=dispatches: _take(dispatches, count))[0])
            del dispatches
    num_rows = count * plan.num_steps * plan.batch_size
    heads = " | ".join(f"of the {name}" for name in steps)
    lines = [f"| warm pages | rows/s | {heads} |", "| --- | --- |" + " --- |" * len(steps)]
    for name, seconds in samples.items():
        own = np.array(seconds)
        ratios = " | ".join(spread(np.array(samples[step]) / own, 1) for step in steps)
        lines.append(f"| {name} | {spread(num_rows / own)} | {ratios} |")
    return "\n".join(lines)


def _cold(store: DiskStore, plan: EpochPlan) -> str:
    """Returns the table of the pipeline on cold pages beside sequential reads of the same shards.

    Disks drift: every measurement stands between two sequential ones and is compared with the mean of their seconds.
    """
    sequential = "sequential reads of 4 MB"
    names = (sequential, *(f"pipeline, shuffle={config.shuffle}" for config in _SHUFFLES))
    rate: Samples = {name: [] for name in names}
    ratio: Samples = {name: [] for name in names[1:]}
    share: Samples = {name: [] for name in names}
    row_bytes = 4 * store.layout.num_words

    def note(name: str, num_bytes: int, seconds: float, from_disk: int) -> None:
        rate[name].append(num_bytes / seconds)
        share[name].append(from_disk / num_bytes)

    def read() -> None:
        drop_pages(store.folder, store.shards)
        note(sequential, store.num_bytes, *timed(lambda: read_sequentially(store.folder, store.shards)))

    read()
    for number in range(_ROUNDS.value):
        for name, config in zip(names[1:], _SHUFFLES, strict=True):
            # Single rows for as many as the other tables time; blocks for the whole epoch.
            count = plan.num_dispatches if config.shuffle == "blocks" else _DISPATCHES.value
            dispatches = train_dispatches(store.open_cold(), plan, 1, _SEED + number, 0, config)
            result = timed(lambda dispatches=dispatches, count=count: _take(dispatches, count))
            note(name, count * plan.num_steps * plan.batch_size * row_bytes, *result)
            del dispatches
            read()
            ratio[name].append(float(rate[name][-1] * np.mean(1.0 / np.array(rate[sequential][-2:]))))
    lines = ["| cold pages | MB/s | rows/s | of sequential | bytes from the disk per byte |", "|" + " --- |" * 5]
    for name in names:
        own, of_sequential = np.array(rate[name]), spread(ratio[name], 2) if name in ratio else ""
        lines.append(
            f"| {name} | {spread(own / 1e6)} | {spread(own / row_bytes)} | {of_sequential} | {spread(share[name], 2)} |"
        )
    return "\n".join(lines)


def trained(names: list[str] | None, num_horizons: int, is_scarce: bool) -> set[tuple[int, str]]:
    """Returns the (horizons, shuffle) that are to be trained from cold pages, of all or of those named.

    Raises:
      UserError: a name is that of none.
    """
    both = [(replicas, config.shuffle) for replicas in (num_horizons, 1) for config in _SHUFFLES]
    by_name = {f"{replicas}:{shuffle}": (replicas, shuffle) for replicas, shuffle in both}
    if names is None:
        return set(both[len(_SHUFFLES) :] if is_scarce else both)  # whole epochs take long: the faster step
    for name in names:
        if name not in by_name:
            raise UserError(f"--trained={name}: expected some of {', '.join(by_name)}")
    return {by_name[name] for name in names}


def _beyond_memory(program: Program, steps: dict[str, Steps], store: DiskStore, plan: EpochPlan) -> str:
    """Returns the table of training from cold pages beside the same steps on rows in memory."""
    is_scarce = _FREE_GB.value > 0
    count = plan.num_dispatches if is_scarce else _DISPATCHES.value
    num_bytes = count * plan.num_steps * plan.batch_size * 4 * store.layout.num_words
    lines = ["| training from cold pages | rows/s | of rows in memory | bytes from the disk per byte |"]
    lines.append("|" + " --- |" * 4)
    chosen = trained(_TRAINED.value, _HORIZONS.value, is_scarce)
    for num_replicas, (name, in_memory) in zip((_HORIZONS.value, 1), steps.items(), strict=True):
        shuffles = [config for config in _SHUFFLES if (num_replicas, config.shuffle) in chosen]
        if not shuffles:
            continue
        from_store = StoreSteps(program, num_replicas, plan)
        seconds: Samples = {config.shuffle: [] for config in shuffles}
        ratios: Samples = {config.shuffle: [] for config in shuffles}
        shares: Samples = {config.shuffle: [] for config in shuffles}
        from_store.start(store.open(), _SHUFFLES[0])(1)  # compiles
        for _, config in itertools.product(range(_ROUNDS.value), shuffles):
            with scarce_memory(int(_FREE_GB.value * 1e9)) if is_scarce else contextlib.nullcontext():
                memory_seconds = timed(lambda run=in_memory: run(count))[0]
                run = from_store.start(store.open_cold(), config)
                run(1)
                own_seconds, from_disk = timed(lambda run=run: run(count))
                del run
            seconds[config.shuffle].append(own_seconds)
            ratios[config.shuffle].append(memory_seconds / own_seconds)
            shares[config.shuffle].append(from_disk / num_bytes)
        for shuffle, values in seconds.items():
            rate = spread(num_bytes / (4 * store.layout.num_words) / np.array(values))
            lines.append(
                f"| {name}, shuffle={shuffle} | {rate} | {spread(ratios[shuffle], 2)} | {spread(shares[shuffle], 2)} |"
            )
    return "\n".join(lines)


def _train_alone(argument: str) -> None:
    """Trains one horizon for as many steps on any number of rows: the process whose memory the parent measures."""
    shuffle, _, folder = argument.partition(":")
    config = next(config for config in _SHUFFLES if config.shuffle == shuffle)
    program = make_program(_FEATURES.value, _HORIZONS.value)
    layout = program.schema.layout
    all_shards = [
        Shard(path.name, "", path.stat().st_size // (4 * layout.num_words), "", "")
        for path in sorted(Path(folder).glob(f"{layout.numeric_type}-*.bin"))
    ]
    ends = np.cumsum([shard.rows for shard in all_shards])
    shards = all_shards[: int(np.searchsorted(ends, _ROWS.value)) + 1]
    plan = plan_of(program, _ROWS.value, 1)
    rows = open_rows(Path(folder), shards, layout)
    # Enough dispatches to have the pipeline and the allocator settle; a small store is gone through more than once.
    StoreSteps(program, 1, plan).start(rows, config)(_UNTIMED + 2 * _DISPATCHES.value)


def _memory(store: DiskStore) -> str:
    """Returns the table of the anonymous memory of training on a quarter of the rows and on all."""
    lines = ["| peak anonymous memory, MB | a quarter of the rows | all rows | bytes per further row |"]
    lines.append("|" + " --- |" * 4)
    sizes = (_ROWS.value // 4, _ROWS.value)
    for config in _SHUFFLES:
        peaks = []
        for size in sizes:
            command = [sys.executable, __file__, f"--train={config.shuffle}:{store.folder}", f"--rows={size}"]
            command += [f"--{flag.name}={flag.value}" for flag in (_FEATURES, _HORIZONS, _DISPATCHES)]
            peaks.append(measure(command, store.folder / "train.log").peak_anonymous_bytes)
        growth = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
        lines.append(f"| shuffle={config.shuffle} | {peaks[0] / 1e6:,.0f} | {peaks[1] / 1e6:,.0f} | {growth:,.1f} |")
    return "\n".join(lines)


def _main() -> None:
    if _TRAIN.value:
        _train_alone(_TRAIN.value)
        return
    trained(_TRAINED.value, _HORIZONS.value, False)  # refuses other names before any work
    program = make_program(_FEATURES.value, _HORIZONS.value)
    train = program.config.train
    plan = plan_of(program, _ROWS.value, max(4, _UNTIMED + _DISPATCHES.value))
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as name:
        folder = Path(name)
        stores = [
            DiskStore(folder, write_store(folder, layout, _ROWS.value), layout)
            for layout in layouts(_FEATURES.value, _HORIZONS.value)
        ]
        wide = stores[0]
        words_BxW = wide.open().gather(np.arange(train.batch_size * plan.num_steps))
        words_SxBxW = words_BxW.reshape(plan.num_steps, train.batch_size, -1)
        counts = {f"step of {_HORIZONS.value} horizons": _HORIZONS.value, "step of one horizon": 1}
        steps = {name: Steps(program, count, words_SxBxW) for name, count in counts.items()}
        limit = memory_limit(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
        print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
        print(f"Machine: {os.cpu_count()} cores, {jax.devices()[0].device_kind}; ", end="")
        print(f"memory limit of the process: {f'{limit / 1e9:.1f} GB' if limit else 'none'}")
        print(f"{_ROWS.value:,} rows, {_FEATURES.value} features: {wide.num_bytes / 1e9:.2f} GB in float32; ", end="")
        print(f"dispatches of {plan.num_steps} x {plan.batch_size} rows; median of {_ROUNDS.value} rounds", end="")
        print(" (smallest-largest)\n")
        tables = {
            "warm": lambda: _warm(steps, stores, plan),
            "cold": lambda: _cold(wide, plan),
            "training": lambda: _beyond_memory(program, steps, wide, plan),
            "memory": lambda: _memory(wide),
        }
        for table in _TABLES.value:
            print(f"{tables[table]()}\n", flush=True)


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
