"""The systems outside JAX that models are compared with, by name; for comparison only, never on the way of the data."""

from collections.abc import Sequence
import dataclasses
import importlib

from mean_jax.experiments.peers.boosting import lightgbm_l2, lightgbm_tweedie, two_stage_boosting
from mean_jax.experiments.peers.contain import contained, quiet
from mean_jax.experiments.peers.forest import two_stage_forest
from mean_jax.experiments.peers.markov_chain import MARKOV_COLUMNS, markov
from mean_jax.experiments.peers.purchase_history import HISTORY_COLUMNS
from mean_jax.experiments.peers.repeat_purchases import bgnbd, paretonbd
from mean_jax.experiments.peers.rfm_segments import RFM_COLUMNS, rfm
from mean_jax.experiments.peers.task import Peer
from mean_jax.experiments.peers.trivial import SPEND_COLUMN, constant_mean, constant_zero, past_spend


@dataclasses.dataclass(frozen=True)
class PeerDefinition:
    """A peer and what it needs.

    Attributes:
      fit: fits it, see `task.Peer`.
      library: the package that does the work, by its name for pip.
      is_random: whether the seed matters.
      needs_log: whether the length of the log's observation window must be known.
      description: one line for tables.
      columns: numeric columns that it cannot do without.
    """

    fit: Peer
    library: str
    is_random: bool
    needs_log: bool
    description: str
    columns: tuple[str, ...] = ()


_DEFINITIONS = {
    "constant_zero": PeerDefinition(constant_zero, "numpy", False, False, "0 for everybody"),
    "constant_mean": PeerDefinition(constant_mean, "numpy", False, False, "mean label of the training split"),
    "past_spend": PeerDefinition(
        past_spend, "numpy", False, False, "spend in the observation window times one factor", (SPEND_COLUMN,)
    ),
    "rfm": PeerDefinition(
        rfm, "numpy", False, False, "mean label of the recency-frequency-monetary segment", tuple(RFM_COLUMNS)
    ),
    "markov": PeerDefinition(markov, "numpy", False, True, "Markov chain over recency", MARKOV_COLUMNS),
    "lightgbm_l2": PeerDefinition(lightgbm_l2, "lightgbm", True, False, "gradient boosting, squared error"),
    "lightgbm_tweedie": PeerDefinition(
        lightgbm_tweedie, "lightgbm", True, False, "gradient boosting, Tweedie deviance of power 1.5"
    ),
    "two_stage_forest": PeerDefinition(
        two_stage_forest, "scikit-learn", True, False, "random forests: probability times amount"
    ),
    "two_stage_boosting": PeerDefinition(
        two_stage_boosting, "lightgbm", True, False, "gradient boosting: probability times amount"
    ),
    "bgnbd": PeerDefinition(bgnbd, "lifetimes", False, True, "BG/NBD with Gamma-Gamma", HISTORY_COLUMNS),
    "paretonbd": PeerDefinition(paretonbd, "lifetimes", False, True, "Pareto/NBD with Gamma-Gamma", HISTORY_COLUMNS),
}
PEERS = {
    name: dataclasses.replace(definition, fit=contained(name, definition.fit))
    for name, definition in _DEFINITIONS.items()
}
_MODULES = {"scikit-learn": "sklearn"}  # where the import has another name than the package


def unavailable(name: str) -> str | None:
    """Returns why the library of a peer cannot be used and how to mend it, or None. Imports the library."""
    library = PEERS[name].library
    module = _MODULES.get(library, library)
    mend = 'pip install "mean-jax[peers]"'
    try:
        with quiet():
            importlib.import_module(module)
    except Exception as error:  # also what a library raises when a newer dependency took something away
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"{library} is not installed; {mend}"
        return f"{library} cannot be imported: {error}; {mend}"
    return None


def applies(name: str, numeric_names: Sequence[str], observation_days: float | None) -> str | None:
    """Returns why a peer cannot run on this data, or None.

    Args:
      name: a key of PEERS.
      numeric_names: numeric columns of the data.
      observation_days: length of the log's observation window, None for data that is not a log.
    """
    peer = PEERS[name]
    missing = [column for column in peer.columns if column not in numeric_names]
    if missing:
        return f"the data has no column {', '.join(missing)}"
    if peer.needs_log and observation_days is None:
        return "the data is not a transaction log with a known observation window"
    return None
