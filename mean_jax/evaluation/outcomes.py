"""Labels and predictions of a run on a split, per horizon and seed: what metrics, report and experiments begin with."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mean_jax import distributed
from mean_jax.errors import UserError
from mean_jax.labels import make_targets, to_scaled
from mean_jax.log import LOGGER
from mean_jax.run import Program, Run
from mean_jax.sharding import local_mesh, sum_over_processes
from mean_jax.threads import map_ahead
from mean_jax.training.predictions import PREDICT_BATCH_SIZE, RowPredictor, is_own, seed_predictions
from mean_jax.training.step import make_predict


class BucketMeans:
    """Sums a diagnostic over the rows of each true bucket, per horizon."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._sums: dict[str, list[Any]] = {}

    def add(self, outputs: dict[str, np.ndarray], bucket_BxT: np.ndarray, mask_BxT: np.ndarray) -> None:
        num_buckets = self._program.config.labels.num_buckets
        for name, values in outputs.items():
            sums = self._sums.setdefault(name, [0.0] * bucket_BxT.shape[1])
            for horizon in range(bucket_BxT.shape[1]):
                replicas = self._program.replica_of(horizon)
                mean_B = np.mean([values[r, :, k] for r, k in replicas], axis=0, dtype=np.float64)
                one_hot_BxN = np.eye(num_buckets)[bucket_BxT[:, horizon]] * mask_BxT[:, horizon, None]
                sums[horizon] = sums[horizon] + np.tensordot(one_hot_BxN, mean_B, axes=(0, 0))
        counts = self._sums.setdefault("rows", [0.0] * bucket_BxT.shape[1])
        for horizon in range(bucket_BxT.shape[1]):
            known = bucket_BxT[mask_BxT[:, horizon], horizon]
            counts[horizon] = counts[horizon] + np.bincount(known, minlength=num_buckets)

    def add_up_processes(self) -> None:
        """Adds what the other processes of the job have seen."""
        self._sums = {name: list(sum_over_processes(np.stack(sums))) for name, sums in self._sums.items()}

    def attention(self, horizon: int) -> np.ndarray | None:
        """Returns the mean theta [N true buckets, N] of a horizon; NaN rows where a bucket is empty."""
        if "attention" not in self._sums:
            return None
        counts_N = np.where(self._sums["rows"][horizon] > 0, self._sums["rows"][horizon], np.nan)
        return self._sums["attention"][horizon] / counts_N[:, None]

    def gate(self, horizon: int) -> np.ndarray | None:
        """Returns the mean weight [N, M] of each bucket's gate over the experts, on the rows of that bucket."""
        if "gate" not in self._sums:
            return None
        counts_N = np.where(self._sums["rows"][horizon] > 0, self._sums["rows"][horizon], np.nan)
        num_buckets = len(counts_N)
        own_NxM = self._sums["gate"][horizon][np.arange(num_buckets), np.arange(num_buckets)]
        return own_NxM / counts_N[:, None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Labels and predictions of one horizon on the rows whose label is known."""

    label_V: np.ndarray  # currency
    raw_SxV: np.ndarray  # currency, per seed
    calibrated_SxV: np.ndarray  # currency, per seed
    raw_V: np.ndarray  # of the mean over seeds
    calibrated_V: np.ndarray


def _unlabelled_horizons(labels_VxT: np.ndarray, names: Sequence[str], where: str) -> list[int]:
    """Returns the horizons without any label after a warning; raises UserError if all are."""
    unlabelled = np.flatnonzero(np.isnan(labels_VxT).all(axis=0)).tolist()
    if len(unlabelled) == len(names):
        raise UserError(
            f"--data: {where} has no known label {' or '.join(names)} in this split; "
            "evaluate customers whose horizons are over"
        )
    if unlabelled and distributed.is_lead():
        left_out = ", ".join(names[horizon] for horizon in unlabelled)
        LOGGER.warning("%s has no known label %s in this split; left out of the evaluation", where, left_out)
    return unlabelled


def _buckets(program: Program, labels_BxT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (bucket_BxT, is_known_BxT); rows are padded to few sizes, as each is compiled."""
    num_rows = len(labels_BxT)
    missing = np.full((-num_rows % PREDICT_BATCH_SIZE, labels_BxT.shape[1]), np.nan, np.float32)
    padded_BxT = np.concatenate((labels_BxT, missing))
    is_row_B = np.arange(len(padded_BxT)) < num_rows
    targets = make_targets(padded_BxT, program.label_constants, is_row_B, program.config.labels)
    return np.asarray(targets.bucket)[:num_rows], np.asarray(targets.mask)[:num_rows]


class _Predicted(NamedTuple):
    """What comes of a block of rows."""

    labels_BxT: np.ndarray
    scaled_RxBxK: np.ndarray
    diagnostics: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray] | None  # for `BucketMeans.add`


def collect_outcomes(run: Run, words: Iterable[np.ndarray], where: str) -> tuple[dict[int, Outcome], BucketMeans]:
    """Predicts all rows once and returns the outcomes by horizon number with the bucket diagnostics.

    A horizon of which no row has the label has no outcome; a warning names it.

    Raises:
      UserError: there is no row, or none with a known label.
    """
    program = run.program
    layout = program.schema.layout
    predict_fn = make_predict(program.model, layout, local_mesh(), with_diagnostics=True)
    predictor = RowPredictor(predict_fn, run.variables)
    means = BucketMeans(program)

    def predict(block_and_words: tuple[int, np.ndarray]) -> _Predicted:
        block, words_BxW = block_and_words
        labels_BxT = layout.labels_of(words_BxW)
        float64_BxT = labels_BxT.astype(np.float64)  # a view would keep all rows in memory
        # A process without a block of its own learns from the first one what the others add up.
        if block and not is_own(block):
            return _Predicted(float64_BxT, program.no_predictions(len(words_BxW)), None)
        outputs = predictor(words_BxW)
        scaled_RxBxK = outputs.pop("scaled") * is_own(block)
        outputs.pop("buckets", None)
        bucket_BxT, is_known_BxT = _buckets(program, labels_BxT)
        return _Predicted(float64_BxT, scaled_RxBxK, (outputs, bucket_BxT, is_known_BxT & is_own(block)))

    labels, scaled = [], []
    for predicted in map_ahead(predict, enumerate(words)):
        labels.append(predicted.labels_BxT)
        scaled.append(predicted.scaled_RxBxK)
        if predicted.diagnostics is not None:
            means.add(*predicted.diagnostics)
    if not labels:
        raise UserError(f"--data: {where} has no rows in this split")
    means.add_up_processes()
    labels_VxT, scaled_RxVxK = np.concatenate(labels), sum_over_processes(np.concatenate(scaled, axis=1))
    unlabelled = _unlabelled_horizons(labels_VxT, program.schema.labels, where)
    outcomes = {}
    for horizon, calibration in enumerate(run.calibrations):
        if horizon in unlabelled:
            continue
        is_known_V = ~np.isnan(labels_VxT[:, horizon])
        raw_SxV = seed_predictions(program, scaled_RxVxK, horizon)[:, is_known_V]
        raw_V = raw_SxV.mean(axis=0)
        pairs = zip(calibration.seeds, raw_SxV, strict=True)
        calibrated_SxV = np.stack([seed(raw) for seed, raw in pairs])
        label_V = labels_VxT[is_known_V, horizon]
        outcomes[horizon] = Outcome(label_V, raw_SxV, calibrated_SxV, raw_V, calibration.ensemble(raw_V))
    return outcomes, means


def metric_spaces(
    program: Program, horizon: int, label_V: np.ndarray, raw_V: np.ndarray, calibrated_V: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (label, prediction) in the three units of metrics.json."""
    scale = np.float64(program.label_constants.scale[horizon])
    transform = program.config.labels
    scaled_V = to_scaled(label_V, scale, transform)
    # The model's own output on the scale it was trained on; it is not truncated, the label is.
    prediction_V = np.sign(raw_V) * to_scaled(np.abs(raw_V), scale, dataclasses.replace(transform, cap=np.inf))
    return {"currency": (label_V, calibrated_V), "currency_raw": (label_V, raw_V), "scaled": (scaled_V, prediction_V)}
