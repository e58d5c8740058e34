"""The numbers of the epoch under way."""

import jax
import numpy as np

from mean_jax.errors import UserError


def not_finite(what: str, horizon: str, seed: int, first_step: int, last_step: int) -> UserError:
    """Returns the error for a replica that has left the finite numbers."""
    return UserError(
        f"{what} of horizon {horizon}, seed {seed} is not finite within steps {first_step} to {last_step}; "
        "checkpoints before it are kept, lower --config.train.learning_rate in a new run"
    )


class EpochMeter:
    """Means over an epoch of each loss term per replica, and the guard against values that are not finite.

    Of an epoch that a restart cut in two it sees the second part alone; nothing but the log depends on it.
    """

    def __init__(self, names: list[tuple[str, int]]) -> None:
        self._names = names
        self._pending: tuple[int, int, dict[str, jax.Array]] | None = None
        self.loss = float("nan")
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._count = 0

    def push(self, first_step: int, last_step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatch without waiting for them."""
        self._pending = (first_step, last_step, metrics)

    def read(self, is_active_R: np.ndarray) -> None:
        """Waits for the metrics taken last and adds them.

        Raises:
          UserError: a term of a replica that still trains is not finite.
        """
        if self._pending is None:
            return
        first_step, last_step, metrics = self._pending
        self._pending = None
        for name, values in metrics.items():
            value_R = np.asarray(values, np.float64)
            is_bad_R = ~np.isfinite(value_R) & is_active_R
            if is_bad_R.any():
                raise not_finite(f"loss term {name}", *self._names[int(np.argmax(is_bad_R))], first_step, last_step)
            self._sums[name] = self._sums.get(name, 0.0) + value_R
        self._count += 1
        self.loss = float(np.mean(np.asarray(metrics["total"], np.float64)[is_active_R]))

    def means(self) -> list[dict[str, float]]:
        """Returns the epoch's means per replica as train/term."""
        return [
            {f"train/{name}": float(sums[r]) / self._count for name, sums in self._sums.items()}
            for r in range(len(self._names))
        ]
