"""Rows per second of the synthetic generator: in memory, and written as Parquet.

Command:  python launch/benchmarks/synthetic.py [--rows=300000] [--features=720]

Rounds are interleaved; the median of the rounds is printed with the smallest and the largest.
"""

from concurrent.futures import ThreadPoolExecutor
import functools
from pathlib import Path
import tempfile
import time

from absl import flags
import numpy as np

from mean_jax.cli import common
from mean_jax.data.synthetic import SyntheticSpec, generate_shard, write_synthetic
from mean_jax.threads import available_processors

_FLAGS = flags.FlagValues()  # of this command alone
_ROWS = flags.DEFINE_integer("rows", 300_000, "Customers per round.", lower_bound=1, flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 720, "Features.", flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1, flag_values=_FLAGS)


def _generate(spec: SyntheticSpec, workers: int) -> None:
    """Makes every shard and drops it."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda shard: generate_shard(spec, shard)[0].num_rows, range(spec.num_shards)):
            pass


def _write(spec: SyntheticSpec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(spec, Path(folder) / "synthetic", available_processors())


def _main() -> None:
    spec = SyntheticSpec(_ROWS.value, num_features=_FEATURES.value)
    workers = available_processors()
    cases = {
        "in memory, 1 thread": functools.partial(_generate, spec, 1),
        f"in memory, {workers} threads": functools.partial(_generate, spec, workers),
        f"written as Parquet, {workers} processes": functools.partial(_write, spec),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(_ROUNDS.value):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            rates[name].append(spec.num_rows / (time.perf_counter() - start))
    print("| | rows/s |\n| --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {np.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f}) |")


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
