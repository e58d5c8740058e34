"""MEAN on CDNOW: every metric over seeds, and the calibrated totals over other splits, as Markdown tables.

Command:  python launch/benchmarks/cdnow.py --customers=quickstart/customers.parquet --output=FOLDER

The first table is one split with several seeds of the model, each seed on its own (no ensemble): mean and standard
deviation. The second is one seed on several splits: what a test split of 4,700 customers can tell about totals.
"""

from pathlib import Path

from absl import flags
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mean_jax.cli import common
from mean_jax.config import load_config, parse_config
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.evaluation.evaluate import evaluate
from mean_jax.models import MODEL_CONFIGS
from mean_jax.run import Program
from mean_jax.training.loop import train

_FLAGS = flags.FlagValues()  # of this command alone
_CUSTOMERS = flags.DEFINE_string(
    "customers", None, "CDNOW customer table of mean-jax-features.", required=True, flag_values=_FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for stores, runs and evaluations; kept.", required=True, flag_values=_FLAGS
)
_CONFIG = flags.DEFINE_string("config", "mean", "Config of the model.", flag_values=_FLAGS)
_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 5, "Seeds of the model on the first split.", lower_bound=2, flag_values=_FLAGS
)
_SPLIT_SEEDS = flags.DEFINE_list(
    "split_seeds",
    ["26", "8", "9", "10", "11", "12", "13", "14", "15"],
    "Split seeds; the first one is that of the quickstart.",
    flag_values=_FLAGS,
)
_METRICS = (
    "gini", "gini_raw", "spearman", "auc", "bias", "mae", "rmse", "mutual_gini", "decile_mape", "percentile_mape",
)  # fmt: skip


def _run(split_seed: int, num_seeds: int) -> Path:
    """Returns the evaluation folder of one run, made unless it is there."""
    folder = Path(_OUTPUT.value) / f"split_{split_seed}_seeds_{num_seeds}"
    store, workdir, evaluation = folder / "store", folder / "run", folder / "evaluation"
    if not evaluation.exists():
        if not store.exists():
            prepare(_CUSTOMERS.value, store, PrepareOptions(split_seed=split_seed))
        config = parse_config(load_config(_CONFIG.value, [f"train.num_seeds={num_seeds}"]), MODEL_CONFIGS)
        train(lambda opened: Program(config, opened.schema, opened.transform), store, workdir)
        evaluate(str(workdir), str(store), "test", evaluation)
    return evaluation


def _seed_values(evaluation: Path, horizon: str, space: str, metric: str) -> np.ndarray:
    table = pq.read_table(evaluation / "seeds.parquet")
    wanted = {"horizon": horizon, "space": space, "metric": metric}
    for column, value in wanted.items():
        table = table.filter(pc.equal(table[column], value))
    return table["value"].to_numpy()


def _horizons(evaluation: Path) -> list[str]:
    return list(dict.fromkeys(pq.read_table(evaluation / "seeds.parquet")["horizon"].to_pylist()))


def _print_seeds(evaluation: Path) -> None:
    horizons = _horizons(evaluation)
    print("| metric | prediction | " + " | ".join(f"{horizon} days" for horizon in horizons) + " |")
    print("| --- | --- |" + " --- |" * len(horizons))
    for metric in _METRICS:
        for space, name in (("currency", "calibrated"), ("currency_raw", "raw")):
            values = [_seed_values(evaluation, horizon, space, metric) for horizon in horizons]
            cells = " | ".join(f"{value.mean():.3f} ({value.std(ddof=1):.3f})" for value in values)
            print(f"| {metric} | {name} | {cells} |")


def _print_splits(evaluations: dict[str, Path]) -> None:
    horizons = _horizons(next(iter(evaluations.values())))
    print("| split seed | " + " | ".join(f"bias, {horizon} days" for horizon in horizons) + " |")
    print("| --- |" + " --- |" * len(horizons))
    rows = np.array(
        [
            [_seed_values(path, horizon, "currency", "bias").mean() for horizon in horizons]
            for path in evaluations.values()
        ]
    )
    for name, row in zip(evaluations, rows, strict=True):
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    means, deviations = rows.mean(axis=0), rows.std(axis=0, ddof=1)
    print("| mean (sd) | " + " | ".join(f"{m:.3f} ({s:.3f})" for m, s in zip(means, deviations, strict=True)) + " |")


def _main() -> None:
    first, *others = _SPLIT_SEEDS.value
    print(f"\nSplit seed {first}, {_NUM_SEEDS.value} seeds of the model, mean (sd):\n")
    _print_seeds(_run(int(first), _NUM_SEEDS.value))
    if others:
        print("\nCalibrated prediction over actual spend on the test split, one seed of the model:\n")
        _print_splits({name: _run(int(name), 1) for name in others})


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
