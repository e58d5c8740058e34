"""From predictions to the rows of an experiment: what is measured depends on how it is laid out."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.experiments.cells import Prediction
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.results import Row
from mean_jax.experiments.targeting import measure_targeting


class Measure(NamedTuple):
    """How the predictions of a cell become its rows."""

    rows: Callable[[Iterable[Prediction], ExperimentData], list[Row]]
    is_of_last_horizon: bool = False  # no other is looked at


def measure_accuracy(predictions: Iterable[Prediction], data: ExperimentData) -> list[Row]:
    """Returns a row per prediction with every metric of the calibrated and of the raw values, in currency."""
    rows: list[Row] = []
    labels: dict[str, np.ndarray] = {}
    for prediction in predictions:
        split = prediction.split
        if split not in labels:
            labels[split] = data.labels(split)
        label_V = labels[split][:, prediction.horizon]
        is_known_V = ~np.isnan(label_V)
        if not is_known_V.any():
            label = data.store.schema.labels[prediction.horizon]
            raise UserError(f"{data.name}: no known label {label} in the {split} split; leave the horizon out")
        row: Row = {
            "horizon": data.store.schema.horizons[prediction.horizon],
            "seed": prediction.seed,
            "point": prediction.point,
            "split": split,
        }
        for space, value_V in (("calibrated", prediction.calibrated_V), ("raw", prediction.raw_V)):
            metrics = point_metrics(label_V[is_known_V], value_V[is_known_V])
            row |= {f"{space}_{name}": float(value) for name, value in metrics.items()}
        rows.append(row)
    return rows


MEASURES: dict[str, Measure] = {
    "comparison": Measure(measure_accuracy),
    "curve": Measure(measure_accuracy),
    "targeting": Measure(measure_targeting, is_of_last_horizon=True),
}
