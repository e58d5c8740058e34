"""What a peer is given, and what it gives back.

V rows, C numeric and D categorical columns, as in `mean_jax.types`.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

from mean_jax.errors import UserError


class Table(NamedTuple):
    """Rows of one split as the training store holds them."""

    numeric: np.ndarray  # [V, C] float32 raw values, NaN missing
    categorical: np.ndarray  # [V, D] int32 codes: 0 unknown, 1 missing, 2.. values
    label: np.ndarray  # [V] float64 currency of the horizon at hand, NaN where not observed

    def rows(self, is_kept_V: np.ndarray) -> "Table":
        """Returns the rows where `is_kept_V` is true."""
        return Table(*(part[is_kept_V] for part in self))


@dataclasses.dataclass(frozen=True)
class PeerTask:
    """One horizon of one data set, for one seed.

    Attributes:
      numeric_names: names of the C numeric columns.
      categorical_names: names of the D categorical columns.
      train: rows to fit on, labels known.
      validation: rows for early stopping and nothing else, labels known.
      horizon_days: of the label cltv_<days>; None if the label's name has no number.
      observation_days: length of the observation window of the log; None for data that is not a log.
      seed: of everything random.
    """

    numeric_names: tuple[str, ...]
    categorical_names: tuple[str, ...]
    train: Table
    validation: Table
    horizon_days: float | None
    observation_days: float | None
    seed: int

    def column(self, table: Table, name: str) -> np.ndarray:
        """Returns a numeric column as float64, NaN where missing.

        Raises:
          UserError: there is no such column.
        """
        if name not in self.numeric_names:
            raise UserError(f"column {name} is not in the data; make the customer table with mean-jax-features")
        return table.numeric[:, self.numeric_names.index(name)].astype(np.float64)

    def required_horizon_days(self) -> float:
        """Raises UserError if the label's name does not say how many days it covers."""
        if self.horizon_days is None:
            raise UserError("the label's name has no number of days; call it cltv_<days>")
        return self.horizon_days

    def required_observation_days(self) -> float:
        """Raises UserError if the data is not a customer table of a log with a known window."""
        if self.observation_days is None:
            raise UserError("the length of the observation window is not known; the data must come from a log")
        return self.observation_days


Predict: TypeAlias = Callable[[Table], np.ndarray]  # [V] float64 currency, finite, of any sign
Peer: TypeAlias = Callable[[PeerTask], Predict]  # fits on train; validation is for early stopping only
