"""What to compute from a transaction log: columns, windows and horizons, checked once."""

from collections.abc import Iterator
import dataclasses
import datetime

from mean_jax.errors import UserError

MICROS_PER_SECOND = 1_000_000
MICROS_PER_DAY = 86_400 * MICROS_PER_SECOND
# Largest 32-bit float, in which training and scoring hold every number; numpy.finfo(numpy.float32).max.
FLOAT32_MAX = 3.4028234663852886e38
# A century: far beyond any use, and products of window lengths in microseconds stay inside 64-bit integers.
_MAX_DAYS = 36_500
_MAX_SUB_WINDOWS = 366
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The definition of a customer table, in the words of the command's flags.

    Attributes:
      id_column: customer id, integer or text.
      time_column: instant of the transaction: timestamp, date or ISO 8601 text.
      amount_column: amount in currency; negative amounts are returns.
      excluded: columns to leave out.
      observation_days: length of the observation window in days.
      horizons: days after the window of each label; empty for a table without labels (scoring).
      as_of: None for windows after each customer's first transaction, else the (exclusive) end of one window for all.
      net: True nets returns in sums of amounts, False counts negative amounts as 0.
      sub_windows: number of equal parts of the observation window with their own sum and count.
    """

    id_column: str = "customer_id"
    time_column: str = "timestamp"
    amount_column: str = "amount"
    excluded: tuple[str, ...] = ()
    observation_days: int = 90
    horizons: tuple[int, ...] = (30, 90, 180, 365)
    as_of: datetime.date | None = None
    net: bool = True
    sub_windows: int = 3

    def __post_init__(self) -> None:
        """Raises UserError for a number out of range, a horizon given twice or a column with two roles."""
        _check_days("--observation_days", self.observation_days)
        for horizon in self.horizons:
            _check_days("--horizons", horizon)
            if self.horizons.count(horizon) > 1:
                raise UserError(f"--horizons: {horizon} is given twice; give each horizon once")
        if not 1 <= self.sub_windows <= _MAX_SUB_WINDOWS:
            raise UserError(f"--sub_windows={self.sub_windows}: expected a whole number from 1 to {_MAX_SUB_WINDOWS}")
        roles = [name for _, name in self.roles()]
        for flag, name in self.roles():
            if roles.count(name) > 1 or name in self.excluded:
                raise UserError(
                    f"{flag}={name}: the column has two roles among --id_column, --time_column, --amount_column and "
                    "--exclude; give each its own"
                )

    def roles(self) -> Iterator[tuple[str, str]]:
        """Yields flag and column name of the id, the time and the amount."""
        yield "--id_column", self.id_column
        yield "--time_column", self.time_column
        yield "--amount_column", self.amount_column

    @property
    def window_micros(self) -> int:
        """Length of the observation window in microseconds."""
        return self.observation_days * MICROS_PER_DAY

    @property
    def as_of_micros(self) -> int | None:
        """Midnight UTC at the start of the day `as_of`, in microseconds since 1970."""
        return None if self.as_of is None else (self.as_of - _EPOCH.date()).days * MICROS_PER_DAY


def label_name(horizon: int) -> str:
    """Returns the label column of a horizon in days."""
    return f"cltv_{horizon}"


def to_datetime(micros: int) -> datetime.datetime:
    """Returns the UTC time of microseconds since 1970; raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + datetime.timedelta(microseconds=micros)


def _check_days(flag: str, days: int) -> None:
    if not 1 <= days <= _MAX_DAYS:
        raise UserError(f"{flag}={days}: expected a whole number of days from 1 to {_MAX_DAYS}")
