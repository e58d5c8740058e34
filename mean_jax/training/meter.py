"""The numbers of the epoch under way."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mean_jax.errors import UserError
from mean_jax.log import LOGGER
from mean_jax.sharding import to_host


def not_finite(what: str, horizon: str, seed: int, first_step: int, last_step: int) -> UserError:
    """Returns the error for a replica that has left the finite numbers."""
    where = f"at step {first_step}" if first_step == last_step else f"within steps {first_step} to {last_step}"
    return UserError(
        f"{what} of horizon {horizon}, seed {seed} is not finite {where}; "
        "checkpoints before it are kept, lower --config.train.learning_rate in a new run"
    )


def horizon_means(names: Sequence[str], value_R: np.ndarray, is_active_R: np.ndarray) -> str:
    """Returns 'horizon: mean over its replicas that still train' of each horizon that has any, as one text.

    Where a horizon has several replicas (seeds), the number of those that still train follows.
    """
    shown = []
    for name in dict.fromkeys(names):
        is_own_R = np.array([other == name for other in names])
        own = value_R[is_own_R & is_active_R]
        if len(own):
            seeds = f" ({len(own)} seed{'s' if len(own) > 1 else ''})" if is_own_R.sum() > 1 else ""
            shown.append(f"{name}: {np.mean(own, dtype=np.float64):.4f}{seeds}")
    return ", ".join(shown)


class EpochMeter:
    """Means over an epoch of each loss term per replica, and the guard against values that are not finite.

    Metrics of a dispatch, all [R]: the mean of each loss term over the steps that were not skipped (0 if all were), and
      bad_step: int32, number of the first step whose loss or gradient was not finite, counted from 1; 0 if all were.
      skipped: int32, how many batches were left out because of that; 0 where the run is to stop.
    `state` goes into the checkpoint, so an epoch that a restart cuts in two has the same means as a whole one.
    """

    def __init__(self, names: list[tuple[str, int]]) -> None:
        """Takes (horizon, seed) of each replica."""
        self._names = names
        self._pending: tuple[int, int, dict[str, jax.Array]] | None = None
        self.loss = float("nan")  # of the dispatch read last, the mean over the replicas that train
        self.reset()

    def reset(self) -> None:
        """Begins an epoch."""
        self._sums: dict[str, np.ndarray] = {}
        self._count_R = np.zeros(len(self._names))
        self._skipped_R = np.zeros(len(self._names))

    def state(self) -> dict[str, Any]:
        """Returns what was read of the epoch so far, as JSON."""
        sums = {name: sum_R.tolist() for name, sum_R in self._sums.items()}
        return {"sums": sums, "count": self._count_R.tolist(), "skipped": self._skipped_R.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned; from the beginning of an epoch if that is empty."""
        if not state:
            return
        self._sums = {name: np.array(sum_R) for name, sum_R in state["sums"].items()}
        self._count_R, self._skipped_R = np.array(state["count"]), np.array(state["skipped"])

    def push(self, first_step: int, last_step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatch without waiting for them."""
        self._pending = (first_step, last_step, metrics)

    def read(self, is_active_R: np.ndarray) -> None:
        """Waits for the metrics taken last and adds them.

        Raises:
          UserError: a loss term or the gradient of a replica that still trains is not finite and was not skipped.
        """
        if self._pending is None:
            return
        first_step, last_step, metrics = self._pending
        self._pending = None
        terms = {name: np.asarray(value_R, np.float64) for name, value_R in to_host(metrics).items()}
        bad_step_R, skipped_R = terms.pop("bad_step"), terms.pop("skipped")
        bad_terms = {name: ~np.isfinite(mean_R) for name, mean_R in terms.items()}
        is_bad_R = is_active_R & (((bad_step_R > 0) & (skipped_R == 0)) | np.any(list(bad_terms.values()), axis=0))
        if is_bad_R.any():
            r = int(np.argmax(is_bad_R))
            names = [name for name, is_bad_term_R in bad_terms.items() if is_bad_term_R[r]]
            names = [name for name in names if name != "total"] or names  # their sum is no news
            if bad_step_R[r] > 0:
                first_step = last_step = int(bad_step_R[r])
            what = f"loss term {', '.join(names)}" if names else "gradient"
            raise not_finite(what, *self._names[r], first_step, last_step)
        self._log_first_skip(np.where(is_active_R, skipped_R, 0), bad_step_R)
        kept_R = last_step - first_step + 1 - skipped_R
        for name, mean_R in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean_R * kept_R
        self._count_R += kept_R
        self._skipped_R += skipped_R
        self.loss = float(np.mean(terms["total"][is_active_R]))

    def _log_first_skip(self, skipped_R: np.ndarray, step_R: np.ndarray) -> None:
        """Says once per epoch and replica that batches are skipped; train/skipped has the number."""
        for r in np.flatnonzero((skipped_R > 0) & (self._skipped_R == 0)):
            LOGGER.warning(
                "horizon %s, seed %d: skipping batches whose loss or gradient is not finite, first at step %d",
                *self._names[r],
                step_R[r],
            )

    def means(self) -> list[dict[str, float]]:
        """Returns the epoch's means per replica as train/term, and train/skipped: the number of batches left out."""
        return [
            {f"train/{name}": float(sum_R[r] / max(self._count_R[r], 1)) for name, sum_R in self._sums.items()}
            | {"train/skipped": float(self._skipped_R[r])}
            for r in range(len(self._names))
        ]
