"""Prints the metrics of an evaluation per horizon beside two predictors that need no model.

`constant` predicts the mean label of the training split for everybody, `spend` the spend in the observation window
times one factor fitted on the training split. What a model adds is what it does better than these.
"""

import json
from pathlib import Path

from absl import flags
import numpy as np

from mean_jax.cli import common
from mean_jax.data.store import Store
from mean_jax.data.tables import missing_column
from mean_jax.evaluation.metrics import point_metrics

_FLAGS = flags.FlagValues()  # of this command alone
_DATA = flags.DEFINE_string("data", None, "Training store.", required=True, flag_values=_FLAGS)
_EVALUATION = flags.DEFINE_string(
    "evaluation", None, "Output folder of mean-jax-evaluate on it.", required=True, flag_values=_FLAGS
)
_SPEND_COLUMN = flags.DEFINE_string(
    "spend_column", "amount_sum", "Feature with the spend so far, in currency.", flag_values=_FLAGS
)
_METRICS = ("gini", "spearman", "auc", "bias", "mae", "decile_mape", "percentile_mape")


def _split_columns(store: Store, split: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (spend_V, labels_VxT) of a split."""
    rows = store.split(split)
    words = rows.gather(np.arange(len(rows)))
    spend_V = words[:, store.schema.numeric.index(column)].astype(np.float64)
    return np.nan_to_num(spend_V), store.schema.layout.labels_of(words).astype(np.float64)


def _main() -> None:
    store = Store(Path(_DATA.value))
    if _SPEND_COLUMN.value not in store.schema.numeric:
        raise missing_column(_SPEND_COLUMN.value, "--spend_column", store.schema.numeric, _DATA.value)
    evaluation = json.loads((Path(_EVALUATION.value) / "metrics.json").read_text())
    train_spend, train_labels = _split_columns(store, "train", _SPEND_COLUMN.value)
    spend, labels = _split_columns(store, evaluation["split"], _SPEND_COLUMN.value)
    print(f"{'horizon':<9}{'predictor':<12}" + "".join(f"{name:>17}" for name in _METRICS))
    for index, (horizon, spaces) in enumerate(evaluation["horizons"].items()):
        is_known, is_known_train = ~np.isnan(labels[:, index]), ~np.isnan(train_labels[:, index])
        factor = train_labels[is_known_train, index].sum() / train_spend[is_known_train].sum()
        label = labels[is_known, index]
        constant = np.full(len(label), store.transform.label_mean[index])
        lines = {
            "MEAN": {name: spaces["currency"][name]["value"] for name in _METRICS},
            "spend": point_metrics(label, factor * spend[is_known]),
            "constant": point_metrics(label, constant),
        }
        for name, values in lines.items():
            cells = (float("nan") if values[metric] is None else values[metric] for metric in _METRICS)
            print(f"{horizon:<9}{name:<12}" + "".join(f"{cell:>17.4f}" for cell in cells))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
