"""What amounts below zero do to the raw predictions of an experiment's networks, as a Markdown table.

Command:  python launch/benchmarks/raw_amounts.py --experiment=FOLDER

FOLDER is the output of a finished `mean-jax-experiment --config=table1`, of which nothing is trained again and nothing
is changed. A network's raw amount is not clipped, so it may be below zero, and the error metrics count it as it is;
"floored" is the same with those amounts set to zero. Test split, customers with a known label, every column first a
mean over the horizons, then the mean over seeds (standard deviation): the percentile MAPE that is not floored is the
raw one of the experiment's first table.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import flags
import numpy as np
import pyarrow.parquet as pq

from mean_jax.cli import common
from mean_jax.data.store import Store, is_store
from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.experiments.results import RESULTS_NAME
from mean_jax.experiments.runner import DATA_NAME
from mean_jax.experiments.spec import slug
from mean_jax.experiments.statistics import spread
from mean_jax.run import Run, is_finished, load_run
from mean_jax.training.predictions import predict_rows

_FLAGS = flags.FlagValues()  # of this command alone
_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Folder of a finished experiment; only read.", required=True, flag_values=_FLAGS
)
COLUMNS = (
    "percentile MAPE, raw",
    "percentile MAPE, floored",
    "share below zero",
    "predicted / actual, raw",
    "predicted / actual, floored",
)


def find_runs(experiment: Path) -> dict[str, Path]:
    """Returns the finished run folders of an experiment by the names of the networks, in the order of its tables.

    Raises:
      UserError: no such folder, no finished experiment, or one without a finished run.
    """
    if not experiment.is_dir():
        raise UserError(f"--experiment: folder {experiment} does not exist; make it with mean-jax-experiment")
    results = experiment / RESULTS_NAME
    if not results.is_file():
        raise UserError(f"--experiment: {experiment} has no {RESULTS_NAME}; finish it with mean-jax-experiment first")
    systems = dict.fromkeys(pq.read_table(results, columns=["system"])["system"].to_pylist())
    folders = {name: experiment / "runs" / slug(name) for name in systems}
    finished = {name: folder for name, folder in folders.items() if is_finished(folder)}
    if not finished:
        raise UserError(f"--experiment: {experiment / 'runs'} holds no finished run; copy the whole experiment again")
    return finished


def open_store(experiment: Path) -> Store:
    """Returns the store that the experiment made of its data.

    Raises:
      UserError: it has none, or a damaged one.
    """
    folder = experiment / DATA_NAME / "store"
    if not is_store(folder):
        raise UserError(f"--experiment: {folder} is not there; name an experiment that was run without --data")
    return Store(folder, "--experiment")


def _values(label_V: np.ndarray, raw_V: np.ndarray) -> list[float]:
    """Returns the values of COLUMNS."""
    raw, floored = point_metrics(label_V, raw_V), point_metrics(label_V, np.maximum(raw_V, 0.0))
    share = float(np.mean(raw_V < 0))
    return [raw["percentile_mape"], floored["percentile_mape"], share, raw["bias"], floored["bias"]]


def measure(run: Run, store: Store) -> dict[int, np.ndarray]:
    """Returns per seed the values of COLUMNS on the test split, each the mean over the horizons."""
    program = run.program
    predicted = predict_rows(program, run.variables, store.split("test"))
    by_seed: dict[int, list[list[float]]] = {}
    for horizon in range(len(program.schema.labels)):
        raw_SxV, label_V = predicted.known(program, horizon)
        for (r, _), raw_V in zip(program.replica_of(horizon), raw_SxV, strict=True):
            by_seed.setdefault(program.specs[r].seed, []).append(_values(label_V, raw_V))
    return {seed: np.mean(values, axis=0) for seed, values in by_seed.items()}


def table_line(name: str, by_seed: Mapping[int, np.ndarray]) -> str:
    """Returns the line of a network: mean over seeds and, of several, the standard deviation."""
    fields = [name]
    for column in range(len(COLUMNS)):
        mean, deviation = spread({seed: float(values[column]) for seed, values in by_seed.items()})
        fields.append(f"{mean:.4f} ({deviation:.4f})" if len(by_seed) > 1 else f"{mean:.4f}")
    return f"| {' | '.join(fields)} |"


def _main() -> None:
    experiment = Path(_EXPERIMENT.value)
    runs, store = find_runs(experiment), open_store(experiment)
    print(f"| network | {' | '.join(COLUMNS)} |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, folder in runs.items():
        print(table_line(name, measure(load_run(folder, "--experiment"), store)), flush=True)


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
