"""Keeps what foreign libraries do to a process inside one call: warnings, prints, floating-point faults."""

from collections.abc import Iterator
import contextlib
import io
import warnings

import numpy as np

from mean_jax.errors import UserError
from mean_jax.experiments.peers.task import Peer, PeerTask, Predict, Table


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops warnings and standard output, and restores the warning filters, which lifetimes changes on import."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def contained(name: str, fit: Peer) -> Peer:
    """Returns the peer `fit` made quiet, with its result checked and its name in front of its errors.

    The returned peer raises UserError for a training split without rows, for predictions that are not finite, and
    where `fit` does.
    """

    def fit_quietly(task: PeerTask) -> Predict:
        if not len(task.train.label):
            raise UserError(f"{name}: the training split has no row with a known label; take another horizon")
        try:
            with quiet():
                predict = fit(task)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

        def predict_quietly(table: Table) -> np.ndarray:
            with quiet():
                value_V = np.asarray(predict(table), np.float64)
            num_bad = int((~np.isfinite(value_V)).sum())
            if num_bad:
                raise UserError(f"{name}: {num_bad} of {len(value_V)} predictions are not finite; leave this peer out")
            return value_V

        return predict_quietly

    return fit_quietly
