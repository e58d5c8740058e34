"""Predictions of all replicas over a whole split, and their way from the training scale to currency."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import itertools

import jax
import numpy as np

from mean_jax.data.store import SplitRows
from mean_jax.evaluation.calibration import fit_levelled
from mean_jax.labels import to_currency
from mean_jax.run import PERCENTILE_LEVELS, HorizonCalibration, Program
from mean_jax.training.state import Variables
from mean_jax.training.step import make_predict

PREDICT_BATCH_SIZE = 4096
MAX_LEVEL_ROWS = 1 << 20  # training rows behind the level of a calibration


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
      blocks: words_BxW each; they are cut and padded to one size, which is one compilation and gives a row the same
        score whatever stands beside it.
    """
    for block in blocks:
        for start in range(0, len(block), PREDICT_BATCH_SIZE):
            words_BxW = block[start : start + PREDICT_BATCH_SIZE]
            padded = np.zeros((PREDICT_BATCH_SIZE, words_BxW.shape[1]), np.float32)
            padded[: len(words_BxW)] = words_BxW
            outputs = predict_fn(variables, padded, np.arange(PREDICT_BATCH_SIZE) < len(words_BxW))
            yield {name: np.asarray(value)[:, : len(words_BxW)] for name, value in outputs.items()}, words_BxW


def raw_predictions(program: Program, scaled: np.ndarray, horizon: int) -> np.ndarray:
    """Returns predictions of one horizon in currency, float64, not clipped, from those on the training scale."""
    return to_currency(scaled, np.asarray(program.label_constants.scale[horizon]), program.config.labels)


def seed_predictions(program: Program, scaled_RxVxK: np.ndarray, horizon: int) -> np.ndarray:
    """Returns raw predictions [seeds, V] of one horizon in currency."""
    scaled = np.stack([scaled_RxVxK[r, :, k] for r, k in program.replica_of(horizon)])
    return raw_predictions(program, scaled, horizon)


@dataclasses.dataclass(frozen=True)
class SplitPredictions:
    """Predictions and labels of the rows of a split, in its order."""

    scaled_RxVxK: np.ndarray
    labels_VxT: np.ndarray  # currency, NaN unknown

    def known(self, program: Program, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (raw predictions [seeds, V'] in currency, labels [V']) of the rows with a known label."""
        is_known_V = ~np.isnan(self.labels_VxT[:, horizon])
        raw_SxV = seed_predictions(program, self.scaled_RxVxK, horizon)
        return raw_SxV[:, is_known_V], self.labels_VxT[is_known_V, horizon]


def predict_rows(
    program: Program, variables: Variables, rows: SplitRows, max_rows: int | None = None
) -> SplitPredictions:
    """Returns the predictions of all replicas for a split, or for about the first `max_rows` rows of it."""
    layout = program.schema.layout
    num_blocks = None if max_rows is None else -(-max_rows // PREDICT_BATCH_SIZE)
    blocks = itertools.islice(split_words(rows), num_blocks)
    parts = [
        (outputs["scaled"], layout.labels_of(words))
        for outputs, words in padded_outputs(make_predict(program.model, layout), variables, blocks)
    ]
    labels_VxT = np.concatenate([labels for _, labels in parts]).astype(np.float64)
    return SplitPredictions(np.concatenate([scaled for scaled, _ in parts], axis=1), labels_VxT)


def fit_calibrations(
    program: Program, variables: Variables, validation: SplitRows, train: SplitRows
) -> tuple[HorizonCalibration, ...]:
    """Returns the calibration of every horizon.

    Shape and level are fitted as `calibration.fit_levelled` says, on at most a million training rows.
    """
    on_validation = predict_rows(program, variables, validation)
    on_train = predict_rows(program, variables, train, MAX_LEVEL_ROWS)
    calibrations = []
    for horizon in range(program.schema.layout.num_labels):
        raw_SxV, label_V = on_validation.known(program, horizon)
        train_raw_SxV, train_label_V = on_train.known(program, horizon)
        seeds = tuple(
            fit_levelled(raw_V, label_V, train_raw_V, train_label_V)
            for raw_V, train_raw_V in zip(raw_SxV, train_raw_SxV, strict=True)
        )
        ensemble = fit_levelled(raw_SxV.mean(axis=0), label_V, train_raw_SxV.mean(axis=0), train_label_V)
        all_raw_V = seed_predictions(program, on_validation.scaled_RxVxK, horizon).mean(axis=0)
        calibrations.append(HorizonCalibration(ensemble, seeds, np.percentile(all_raw_V, PERCENTILE_LEVELS)))
    return tuple(calibrations)
