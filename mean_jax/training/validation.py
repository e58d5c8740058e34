"""Validation at the end of an epoch: the loss terms and metrics of every replica over the whole split."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np

from mean_jax.data.pipeline import padded_batches
from mean_jax.data.store import SplitRows
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.progress import Progress
from mean_jax.run import Program
from mean_jax.sharding import on_mesh, own_rows
from mean_jax.threads import available_processors
from mean_jax.training.predictions import PREDICT_BATCH_SIZE, raw_predictions, stored_words
from mean_jax.training.state import TrainState
from mean_jax.training.step import make_validate

_MAX_THREADS = 8  # each sorts a copy of the split


def validation_batch_size(num_rows: int, num_parts: int) -> int:
    """Returns the batch size for a split, a multiple of the parts of a batch.

    Large splits get full batches, small ones the next power of two.
    """
    size = min(PREDICT_BATCH_SIZE, 1 << max(0, num_rows - 1).bit_length())
    return -(-size // num_parts) * num_parts


class Validation:
    """The validation split and how the replicas do on it."""

    def __init__(self, program: Program, rows: SplitRows, mesh: Mesh) -> None:
        self._program = program
        self._rows = rows
        self._mesh = mesh
        # Copies: views would keep all rows in memory.
        self._labels_VxT = np.concatenate([rows.layout.labels_of(words).copy() for words in stored_words(rows)])
        self._validate = make_validate(program.step_rule(rows.layout), mesh)

    def _batches(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields (words_BxW, mask_B) of the split, divided over the mesh."""
        size = validation_batch_size(len(self._rows), self._mesh.shape["data"])
        own = own_rows(self._mesh, size)
        for words, mask_B in padded_batches(self._rows, size, own):

            def read(index: tuple[slice, ...], words: np.ndarray = words) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return words[start - own.start : stop - own.start]

            words_BxW = on_mesh(self._mesh, P("data"), (size, words.shape[1]), read)
            yield words_BxW, on_mesh(self._mesh, P("data"), (size,), mask_B.__getitem__)

    def _points(self, scaled_RxVxK: np.ndarray, r: int) -> list[dict[str, float]]:
        """Returns the metrics of one replica for each of its horizons."""
        points = []
        for k, horizon in enumerate(self._program.specs[r].horizons):
            raw_V = raw_predictions(self._program, scaled_RxVxK[r, :, k], horizon)
            label_V = self._labels_VxT[:, horizon].astype(np.float64)
            is_known = ~np.isnan(label_V)
            points.append(point_metrics(label_V[is_known], raw_V[: len(label_V)][is_known]))
        return points

    def __call__(self, state: TrainState, is_active_R: np.ndarray) -> tuple[list[dict[str, float]], np.ndarray]:
        """Returns the numbers of each replica, and which have predictions that are all finite.

        Numbers are the exact loss terms and the mean of each metric over the horizons, named `validation/...`; a
        replica that was stopped early, or whose predictions are not finite, has none.
        """
        results = []
        with Progress("validate", len(self._rows)) as progress:
            for number, (words_BxW, mask_B) in enumerate(self._batches()):
                results.append(self._validate(state, words_BxW, mask_B))
                progress.update(min(len(mask_B), len(self._rows) - number * len(mask_B)))  # the last one is padded
        count_R = np.maximum(1, sum(np.asarray(count, np.float64) for _, _, count in results))
        scaled_RxVxK = np.concatenate([np.asarray(scaled) for scaled, _, _ in results], axis=1)
        sums = [terms for _, terms, _ in results]
        terms = {name: sum(np.asarray(item[name], np.float64) for item in sums) / count_R for name in sums[0]}
        is_finite_R = np.isfinite(scaled_RxVxK).all(axis=(1, 2))
        chosen = np.flatnonzero(is_active_R & is_finite_R)
        # Sorting takes most of it, without the interpreter's lock.
        with ThreadPoolExecutor(min(_MAX_THREADS, available_processors())) as pool:
            points = dict(zip(chosen, pool.map(lambda r: self._points(scaled_RxVxK, r), chosen), strict=True))
        values: list[dict[str, float]] = [{} for _ in self._program.specs]
        for r, of_horizons in points.items():
            values[r] = {f"validation/{name}": float(term[r]) for name, term in terms.items()} | {
                f"validation/{name}": float(np.mean([point[name] for point in of_horizons])) for name in of_horizons[0]
            }
        return values, is_finite_R
