"""Who the synthetic customers are and what they spend: traits, four types of customer, cumulative labels, the oracle.

A customer's traits decide, mostly through products, the type, the activity and the level of spend. The time after the
activation falls into periods, one up to each horizon. In each a customer is active or not: one who was not starts with
a probability given by the activity, and one who was goes on with a probability given by the type as well. An active
customer spends a mean amount, set by level, type and season, times a noise of mean 1 whose law is the type's. All
expectations given these latent variables are closed forms, so the oracle needs no simulation.

Dimensions beyond the legend of types.py: Z traits, Y types of customer; T stands for horizons and for periods.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

HORIZON_DAYS = (30, 90, 180, 365)
# Of the labels, by horizon. The paper does not publish how many of its labels are 0.
ZERO_SHARES = (0.90, 0.84, 0.78, 0.70)
TRAITS = ("income", "tempo", "thrift", "novelty", "contact", "calendar")
CHANNELS = ("search", "social_media", "store", "referral", "partner", "campaign")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_CHANNEL_SHARES = np.array([0.30, 0.22, 0.16, 0.14, 0.10, 0.08])
_CHANNEL_LOG_RATES = np.array([0.0, -0.3, 0.3, 0.5, -0.1, -0.6])
_PERIOD_ENDS = np.array((0, *HORIZON_DAYS))
_PEAK_MONTH = 10.5  # the middle of November
# At a horizon, exp(-rate * exposure) of the customers have not started yet. These exposures give ZERO_SHARES on average
# over customers; solved once for two million of them, so they change with anything that moves the rate.
_EXPOSURES = np.array((0.01665, 0.03439, 0.05883, 0.10473))


@dataclasses.dataclass(frozen=True)
class CustomerType:
    """How customers of one type spend.

    Attributes:
      name: of the type.
      log_odds: of the type before traits and channel.
      channel_log_odds: added to it, in the order of CHANNELS.
      log_rate: added to the log of the activity.
      persistence: probability that an active customer goes on for that reason alone.
      log_level: mean of the log of the currency spent in 30 active days.
      spread: how far traits move that log.
      growth: the mean amount of a period of d days grows as (d / 30) ** growth.
      season: amplitude of the yearly wave around 1, below 1.
      noise: (generator, shape) -> positive noise of mean 1.
    """

    name: str
    log_odds: float
    channel_log_odds: tuple[float, ...]
    log_rate: float
    persistence: float
    log_level: float
    spread: float
    growth: float
    season: float
    noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


_LOG_NORMAL_SIGMA = 0.8
_SUBSCRIPTION_SHAPE = 60.0
_SEASONAL_SHAPE = 1.5
_TAIL_INDEX = 3.0  # of the Lomax law of big tickets: its third moment is infinite already

TYPES = (
    CustomerType(
        name="small_ticket",
        log_odds=0.8,
        channel_log_odds=(0.2, 0.5, 0.0, -0.3, -0.2, 0.3),
        log_rate=0.3,
        persistence=0.6,
        log_level=2.8,
        spread=0.6,
        growth=0.8,
        season=0.1,
        noise=lambda rng, shape: rng.lognormal(-(_LOG_NORMAL_SIGMA**2) / 2, _LOG_NORMAL_SIGMA, shape),
    ),
    CustomerType(
        name="subscription",
        log_odds=-0.2,
        channel_log_odds=(0.0, 0.3, -0.6, 0.6, 0.2, -0.3),
        log_rate=0.1,
        persistence=0.9,
        log_level=3.6,
        spread=0.15,
        growth=1.0,
        season=0.0,
        noise=lambda rng, shape: rng.gamma(_SUBSCRIPTION_SHAPE, 1 / _SUBSCRIPTION_SHAPE, shape),
    ),
    CustomerType(
        name="big_ticket",
        log_odds=-1.0,
        channel_log_odds=(-0.2, -0.6, 0.8, 0.3, 0.0, -0.5),
        log_rate=-0.6,
        persistence=0.15,
        log_level=5.6,
        spread=0.8,
        growth=0.4,
        season=0.2,
        noise=lambda rng, shape: (_TAIL_INDEX - 1) * rng.pareto(_TAIL_INDEX, shape),
    ),
    CustomerType(
        name="seasonal",
        log_odds=-0.4,
        channel_log_odds=(0.0, 0.0, 0.2, -0.4, 0.4, 0.8),
        log_rate=0.0,
        persistence=0.4,
        log_level=4.4,
        spread=0.5,
        growth=0.9,
        season=0.95,
        noise=lambda rng, shape: rng.gamma(_SEASONAL_SHAPE, 1 / _SEASONAL_SHAPE, shape),
    ),
)


def _by_type(field: str) -> np.ndarray:
    """Returns a field of every type, [Y] or [Y, channels]."""
    return np.array([getattr(customer_type, field) for customer_type in TYPES])


@dataclasses.dataclass(frozen=True)
class Customers:
    """Latent variables of B customers: all that decides their labels, except luck."""

    traits: np.ndarray  # [Z, B] standard normal, in the order of TRAITS
    channel: np.ndarray  # [B] index into CHANNELS
    month: np.ndarray  # [B] of the activation, index into MONTHS
    type: np.ndarray  # [B] index into TYPES
    log_rate: np.ndarray  # [B] log of the activity
    log_level: np.ndarray  # [B] log of the currency spent in 30 active days, before the season


def draw_customers(rng: np.random.Generator, num_rows: int) -> Customers:
    """Returns the latent variables of `num_rows` customers."""
    traits_ZxB = rng.standard_normal((len(TRAITS), num_rows))
    income_B, tempo_B, thrift_B, novelty_B, contact_B, calendar_B = traits_ZxB
    channel_B = np.searchsorted(np.cumsum(_CHANNEL_SHARES)[:-1], rng.random(num_rows), "right")
    month_B = rng.integers(len(MONTHS), size=num_rows)

    # No trait alone tells the type: products of two do, or how far from the mean one is.
    pull_YxB = np.stack(
        [np.zeros(num_rows), 1.8 * tempo_B * thrift_B, 1.8 * income_B * novelty_B, 1.2 * (calendar_B**2 - 1)]
    )
    log_odds_YxB = _by_type("log_odds")[:, None] + _by_type("channel_log_odds")[:, channel_B] + pull_YxB
    type_B = np.argmax(log_odds_YxB + rng.gumbel(size=log_odds_YxB.shape), axis=0)

    hidden_rate_B, hidden_level_B = rng.standard_normal((2, num_rows))  # what no trait tells
    log_rate_B = _by_type("log_rate")[type_B] + _CHANNEL_LOG_RATES[channel_B]
    log_rate_B += 1.2 * tempo_B + 1.0 * contact_B * novelty_B + 0.7 * np.abs(contact_B) + 0.8 * hidden_rate_B
    push_B = 0.8 * income_B - 0.6 * thrift_B * tempo_B + 0.6 * hidden_level_B
    log_level_B = _by_type("log_level")[type_B] + _by_type("spread")[type_B] * push_B
    return Customers(traits_ZxB, channel_B, month_B, type_B, log_rate_B, log_level_B)


def _mean_amounts() -> np.ndarray:
    """Returns the mean amount of an active period over exp(log_level): [Y, 12 months of activation, T].

    The wave of the season, 1 + amplitude * cos, is averaged over the days of the period.
    """
    days_T = np.diff(_PERIOD_ENDS)
    months_12x1 = np.arange(len(MONTHS))[:, None]
    phase_12xE = 2 * np.pi * ((months_12x1 - _PEAK_MONTH) / 12 + _PERIOD_ENDS / 365)
    wave_12xT = np.diff(np.sin(phase_12xE), axis=1) / (2 * np.pi * days_T / 365)
    growth_YxT = (days_T / 30) ** _by_type("growth")[:, None]
    return growth_YxT[:, None] * (1 + _by_type("season")[:, None, None] * wave_12xT)


_MEAN_AMOUNTS_Yx12xT = _mean_amounts()


def _periods(customers: Customers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the probabilities to start [B, T] and to persist [B] and the mean amounts [B, T] of the periods."""
    exposure_T = np.diff(_EXPOSURES, prepend=0.0)
    start_BxT = -np.expm1(-np.exp(customers.log_rate)[:, None] * exposure_T)
    persist_B = _by_type("persistence")[customers.type]
    amount_BxT = _MEAN_AMOUNTS_Yx12xT[customers.type, customers.month] * np.exp(customers.log_level)[:, None]
    return start_BxT, persist_B, amount_BxT


def expected_spend(customers: Customers) -> np.ndarray:
    """Returns E[label | latent variables] [B, T] in currency.

    With s_t the probability to start and r that to persist, a customer is active in period t with probability
    q_t = s_t + (1 - s_t) r q_{t-1}, q_0 = 0, and spends the sum of q_t times the mean amount.
    """
    start_BxT, persist_B, amount_BxT = _periods(customers)
    active_BxT = start_BxT.copy()
    for period in range(1, len(HORIZON_DAYS)):
        active_BxT[:, period] += (1 - start_BxT[:, period]) * persist_B * active_BxT[:, period - 1]
    return np.cumsum(active_BxT * amount_BxT, axis=1)


def draw_spend(rng: np.random.Generator, customers: Customers) -> np.ndarray:
    """Returns labels [B, T] in currency, cumulative over the horizons; each call is new luck of the same customers."""
    start_BxT, persist_B, amount_BxT = _periods(customers)
    is_active_BxT = rng.random(start_BxT.shape) < start_BxT
    persists_BxT = rng.random(start_BxT.shape) < persist_B[:, None]
    for period in range(1, len(HORIZON_DAYS)):
        is_active_BxT[:, period] |= persists_BxT[:, period] & is_active_BxT[:, period - 1]
    noise_BxT = np.empty_like(amount_BxT)
    for index, customer_type in enumerate(TYPES):
        rows = np.flatnonzero(customers.type == index)
        noise_BxT[rows] = customer_type.noise(rng, (len(rows), len(HORIZON_DAYS)))
    return np.cumsum(np.where(is_active_BxT, amount_BxT * noise_BxT, 0.0), axis=1)
