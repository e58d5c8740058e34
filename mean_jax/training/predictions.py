"""Predictions of all replicas over a whole split, and their way from the training scale to currency."""

from collections.abc import Iterator
import dataclasses

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from mean_jax.data.store import SplitRows
from mean_jax.evaluation.calibration import fit_levelled
from mean_jax.labels import to_currency
from mean_jax.progress import Progress
from mean_jax.run import PERCENTILE_LEVELS, HorizonCalibration, Program
from mean_jax.sharding import local_mesh, sum_over_processes
from mean_jax.threads import map_ahead
from mean_jax.training.state import Variables
from mean_jax.training.step import PredictFn

PREDICT_BATCH_SIZE = 2048  # the activations of a layer stay in the caches of a small machine
MAX_LEVEL_ROWS = 1 << 20  # training rows behind the level of a calibration


def stored_words(rows: SplitRows, every: int = 1) -> Iterator[np.ndarray]:
    """Yields words_BxW over a split in its order, as stored, of its blocks one in `every`."""
    for start in range(0, len(rows), every * PREDICT_BATCH_SIZE):
        yield rows.gather(np.arange(start, min(start + PREDICT_BATCH_SIZE, len(rows))))


def counted(words: Iterator[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    """Yields words_BxW and counts their rows when the next ones are asked for."""
    for words_BxW in words:
        yield words_BxW
        progress.update(len(words_BxW))


def split_words(rows: SplitRows, every: int = 1) -> Iterator[np.ndarray]:
    """Yields what `stored_words` yields, with numeric values in float32."""
    return map(rows.layout.widen, stored_words(rows, every))


class RowPredictor:
    """Predicts rows on all devices of this process.

    They are cut and padded to batches of one size, which is one compilation and gives a row the same score whatever
    stands beside it.
    """

    def __init__(self, predict_fn: PredictFn, variables: Variables) -> None:
        """Puts the variables of the R replicas on the devices; `predict_fn` is for the `local_mesh`."""
        mesh = local_mesh()
        self._size = -(-PREDICT_BATCH_SIZE // mesh.size) * mesh.size
        self._predict_fn = predict_fn
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

    def __call__(self, words_BxW: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs [R, B, ...] of at least one row; words_BxW float32 must not change meanwhile."""
        parts = []
        for start in range(0, len(words_BxW), self._size):
            part = words_BxW[start : start + self._size]
            num_rows = len(part)
            if num_rows < self._size:
                part = np.concatenate((part, np.zeros((self._size - num_rows, part.shape[1]), np.float32)))
            mask_B = np.arange(self._size) < num_rows
            outputs = self._predict_fn(self._variables, *jax.device_put((part, mask_B), self._rows))
            parts.append({name: np.asarray(value)[:, :num_rows] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def is_own(block: int) -> bool:
    """Tells whether this process predicts a block of rows: processes take turns, in the order of the blocks."""
    return block % jax.process_count() == jax.process_index()


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
    program: Program,
    variables: Variables,
    rows: SplitRows,
    max_rows: int | None = None,
    description: str = "predict",
) -> SplitPredictions:
    """Returns the predictions of all replicas for a split, or for about `max_rows` rows from all over it.

    Args:
      program: of the run.
      variables: of the R replicas.
      rows: the split.
      max_rows: None for all rows.
      description: that of the progress.
    """
    layout = program.schema.layout
    predictor = RowPredictor(program.predict_fn, variables)
    # Every so many blocks: rows that were appended to a store stand at its end.
    every = 1 if max_rows is None else max(1, -(-len(rows) // max_rows))

    def predict(block_and_words: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        block, words_BxW = block_and_words
        scaled_RxBxK = predictor(words_BxW)["scaled"] if is_own(block) else program.no_predictions(len(words_BxW))
        return scaled_RxBxK, layout.labels_of(words_BxW).astype(np.float64)  # a view would keep all rows in memory

    starts = np.arange(0, len(rows), every * PREDICT_BATCH_SIZE)
    num_rows = int(np.minimum(PREDICT_BATCH_SIZE, len(rows) - starts).sum())
    with Progress(description, num_rows) as progress:
        blocks = enumerate(counted(split_words(rows, every), progress))
        scaled, labels = zip(*map_ahead(predict, blocks), strict=True)
    return SplitPredictions(sum_over_processes(np.concatenate(scaled, axis=1)), np.concatenate(labels))


def fit_calibrations(
    program: Program, variables: Variables, validation: SplitRows, train: SplitRows
) -> tuple[HorizonCalibration, ...]:
    """Returns the calibration of every horizon.

    Shape and level are fitted as `calibration.fit_levelled` says, on at most a million training rows.
    """
    on_validation = predict_rows(program, variables, validation, description="calibrate, validation rows")
    on_train = predict_rows(program, variables, train, MAX_LEVEL_ROWS, "calibrate, training rows")
    calibrations = []
    for horizon in range(program.schema.layout.num_labels):
        raw_SxV, label_V = on_validation.known(program, horizon)
        train_raw_SxV, train_label_V = on_train.known(program, horizon)
        seeds = tuple(
            fit_levelled(raw_V, label_V, train_raw_V, train_label_V)
            for raw_V, train_raw_V in zip(raw_SxV, train_raw_SxV, strict=True)
        )
        ensemble = seeds[0]  # of one seed the mean is that seed
        if len(seeds) > 1:
            ensemble = fit_levelled(raw_SxV.mean(axis=0), label_V, train_raw_SxV.mean(axis=0), train_label_V)
        all_raw_V = seed_predictions(program, on_validation.scaled_RxVxK, horizon).mean(axis=0)
        calibrations.append(HorizonCalibration(ensemble, seeds, np.percentile(all_raw_V, PERCENTILE_LEVELS)))
    return tuple(calibrations)
