"""Predictions of all replicas over a whole split, and their way from the training scale to currency."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from mean_jax.data.store import SplitRows
from mean_jax.evaluation.calibration import fit_calibration
from mean_jax.labels import to_currency
from mean_jax.run import PERCENTILE_LEVELS, HorizonCalibration, Program
from mean_jax.training.state import Variables
from mean_jax.training.step import make_predict

PREDICT_BATCH_SIZE = 8192


def batch_size_for(num_rows: int) -> int:
    """Returns the batch size for a split: full batches of a large one, the next power of two of a small one."""
    return min(PREDICT_BATCH_SIZE, 1 << max(0, num_rows - 1).bit_length())


def split_words(rows: SplitRows) -> Iterator[np.ndarray]:
    """Yields words_BxW over a split in its order."""
    for start in range(0, len(rows), PREDICT_BATCH_SIZE):
        yield rows.gather(np.arange(start, min(start + PREDICT_BATCH_SIZE, len(rows))))


def padded_outputs(
    predict_fn: Callable[..., dict[str, jax.Array]], variables: Variables, blocks: Iterable[np.ndarray]
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields (outputs without padding, words_BxW) for blocks of rows of any length.

    Args:
      predict_fn: as `make_predict` gives; its outputs are [R, B, ...].
      variables: of the R replicas.
      blocks: words_BxW each; they are cut and padded to few sizes, as every size is a compilation.
    """
    size = 0
    for block in blocks:
        for start in range(0, len(block), PREDICT_BATCH_SIZE):
            words_BxW = block[start : start + PREDICT_BATCH_SIZE]
            size = max(size, batch_size_for(len(words_BxW)))
            padded = np.zeros((size, words_BxW.shape[1]), np.float32)
            padded[: len(words_BxW)] = words_BxW
            outputs = predict_fn(variables, padded, np.arange(size) < len(words_BxW))
            yield {name: np.asarray(value)[:, : len(words_BxW)] for name, value in outputs.items()}, words_BxW


def raw_predictions(program: Program, scaled: np.ndarray, horizon: int) -> np.ndarray:
    """Returns predictions of one horizon in currency, float64, not clipped, from those on the training scale."""
    return to_currency(scaled, np.asarray(program.label_constants.scale[horizon]), program.config.labels)


def seed_predictions(program: Program, scaled_RxVxK: np.ndarray, horizon: int) -> np.ndarray:
    """Returns raw predictions [seeds, V] of one horizon in currency."""
    scaled = np.stack([scaled_RxVxK[r, :, k] for r, k in program.replica_of(horizon)])
    return raw_predictions(program, scaled, horizon)


def fit_calibrations(program: Program, variables: Variables, rows: SplitRows) -> tuple[HorizonCalibration, ...]:
    """Returns the calibration of every horizon, fitted on the validation rows whose label is known."""
    layout = program.schema.layout
    predict_fn = make_predict(program.model, layout)
    blocks = [
        (outputs["scaled"], layout.labels_of(words))
        for outputs, words in padded_outputs(predict_fn, variables, split_words(rows))
    ]
    scaled_RxVxK = np.concatenate([scaled for scaled, _ in blocks], axis=1)
    labels_VxT = np.concatenate([labels for _, labels in blocks]).astype(np.float64)
    calibrations = []
    for horizon in range(layout.num_labels):
        raw_seeds = seed_predictions(program, scaled_RxVxK, horizon)
        raw = raw_seeds.mean(axis=0)
        is_known = ~np.isnan(labels_VxT[:, horizon])
        known = labels_VxT[is_known, horizon]
        seeds = tuple(fit_calibration(seed_raw[is_known], known) for seed_raw in raw_seeds)
        percentiles = np.percentile(raw, PERCENTILE_LEVELS)
        calibrations.append(HorizonCalibration(fit_calibration(raw[is_known], known), seeds, percentiles))
    return tuple(calibrations)
