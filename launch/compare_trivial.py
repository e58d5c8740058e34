"""Prints the metrics of an evaluation per horizon beside two predictors that need no model.

`constant_mean` predicts the mean label of the training split for everybody, `past_spend` the spend in the observation
window times one factor fitted on the training split. What a model adds is what it does better than these.
"""

import json
from pathlib import Path

from absl import flags
import numpy as np

from mean_jax.cli import common
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.experiments.cells import PeerTables, peer_predictions
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.results import DETERMINISTIC

_FLAGS = flags.FlagValues()  # of this command alone
_DATA = flags.DEFINE_string("data", None, "Training store.", required=True, flag_values=_FLAGS)
_EVALUATION = flags.DEFINE_string(
    "evaluation", None, "Output folder of mean-jax-evaluate on its test split.", required=True, flag_values=_FLAGS
)
_METRICS = ("gini", "spearman", "auc", "bias", "mae", "decile_mape", "percentile_mape")


def _main() -> None:
    data = ExperimentData(_DATA.value, Store(Path(_DATA.value)))
    labels_VxT = data.labels("test")
    file = Path(_EVALUATION.value) / "metrics.json"
    if not file.is_file():
        raise UserError(f"--evaluation: {file} does not exist; make it with mean-jax-evaluate --split=test")
    evaluation = json.loads(file.read_text())
    own = data.store.schema.horizons
    if foreign := [horizon for horizon in evaluation["horizons"] if horizon not in own]:
        raise UserError(
            f"--evaluation: {file} is of horizon {', '.join(foreign)}, which the store {_DATA.value} does not have (it "
            f"has {', '.join(own)}); name the store that was evaluated"
        )
    lines = {
        (horizon, "MEAN"): {name: spaces["currency"][name]["value"] for name in _METRICS}
        for horizon, spaces in evaluation["horizons"].items()
    }
    tables = PeerTables(data)
    for horizon in evaluation["horizons"]:
        index = data.store.schema.horizons.index(horizon)
        is_known_V = ~np.isnan(labels_VxT[:, index])
        for name in ("past_spend", "constant_mean"):
            (raw_V,) = (
                prediction.raw_V
                for prediction in peer_predictions(name, tables, index, DETERMINISTIC)
                if prediction.split == "test"
            )
            lines[horizon, name] = point_metrics(labels_VxT[is_known_V, index], raw_V[is_known_V])
    print(f"{'horizon':<9}{'predictor':<15}" + "".join(f"{name:>17}" for name in _METRICS))
    for horizon in evaluation["horizons"]:
        for name in ("MEAN", "past_spend", "constant_mean"):
            values = lines[horizon, name]
            cells = (float("nan") if values[metric] is None else values[metric] for metric in _METRICS)
            print(f"{horizon:<9}{name:<15}" + "".join(f"{cell:>17.4f}" for cell in cells))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
