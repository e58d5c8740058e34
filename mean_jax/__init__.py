"""Customer lifetime value prediction on JAX."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mean_jax.scoring.predictor import Predictor


def load(run: Any) -> "Predictor":
    """Opens a finished run folder; `load(run).predict(table)` gives the columns of the score files.

    Raises:
      UserError: not a finished run, another version, or a file that is missing, cut or altered.
    """
    from mean_jax.scoring.predictor import load as load_predictor  # JAX is imported only where it is used

    return load_predictor(run)
