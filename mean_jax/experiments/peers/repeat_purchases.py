"""BG/NBD and Pareto/NBD for the number of purchases, each with Gamma-Gamma for the money, fitted by `lifetimes`.

Fader, Hardie and Lee 2005 (BG/NBD); Schmittlein, Morrison and Colombo 1987 (Pareto/NBD); Fader and Hardie 2013
(Gamma-Gamma). They see four numbers of each customer, see `purchase_history`, and no label: the prediction is

    E[purchase days within the horizon | frequency, recency, age] * E[money per purchase day | frequency, money]

lifetimes 0.11.3 is the last release of its line; it works with NumPy 2, SciPy 1.17 and pandas 3, whose deprecation
warnings `contain.quiet` drops. Its BG/NBD expectation takes the logarithm of a hypergeometric function that is negative
where a + b < 1 and a customer never came back; that formula is our own here. Customers with equal histories are fitted
and predicted once, with their number as the weight. Where a fit does not converge it is tried again with an L2 penalty
on the parameters.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypeAlias

import numpy as np
from scipy import special

from mean_jax.errors import UserError
from mean_jax.experiments.peers.purchase_history import History, purchase_history
from mean_jax.experiments.peers.task import PeerTask, Predict, Table

_PENALTIES = (0.0, 1e-3, 1e-2, 1e-1)
_MAX_RESTARTS = 6
_RESTART_TOLERANCE = 1e-3  # relative change of an expected number of purchases
_MIN_Q = 1.001  # at q <= 1 the Gamma-Gamma has no mean


class _NotConverged(Exception):
    """A fit that is not to be trusted."""


@dataclasses.dataclass(frozen=True)
class PurchaseModel:
    """A fitted model of the number of purchases.

    Attributes:
      parameters: by their names in the literature; alpha and beta in days.
      expectation: expected purchase days [U] of (horizon_days, frequency_U, recency_U, age_U).
    """

    parameters: dict[str, float]
    expectation: Callable[..., np.ndarray]

    def expected_purchases(self, history: History, horizon_days: float) -> np.ndarray:
        """Returns the expected number of purchase days in the `horizon_days` after each customer's window, [V]."""
        unique, index_V, _ = _unique_histories(history)
        return self.expectation(horizon_days, *unique)[index_V]


PurchaseFit: TypeAlias = Callable[[History], PurchaseModel]


def _unique_histories(history: History) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (unique frequency, recency and age [3, U], index_V into them, their counts_U)."""
    rows_Vx3 = np.stack([history.frequency, history.recency, history.age], axis=1)
    unique_Ux3, index_V, counts_U = np.unique(rows_Vx3, axis=0, return_inverse=True, return_counts=True)
    return unique_Ux3.T, index_V.reshape(-1), counts_U


def _with_penalties(fit: Callable[[float], Any], what: str, num_customers: int) -> Any:
    """Returns the first of the fits with growing penalties that converges, or raises UserError."""
    from lifetimes.utils import ConvergenceError

    for penalty in _PENALTIES:
        try:
            fitter = fit(penalty)
        except (ConvergenceError, np.linalg.LinAlgError, _NotConverged):
            continue
        if np.isfinite(fitter.params_).all():
            return fitter
    raise UserError(
        f"{what} did not converge on {num_customers} customers of the training split, even with a penalty of "
        f"{_PENALTIES[-1]}; leave this peer out"
    )


def _check_repeats(history: History) -> None:
    if not history.frequency.any():
        raise UserError("no customer of the training split purchased on two days or more; leave this peer out")


def _parameters(fitter: Any) -> dict[str, float]:
    return {name: float(value) for name, value in fitter.params_.items()}


def bgnbd_expectation(
    horizon_days: float,
    frequency_U: np.ndarray,
    recency_U: np.ndarray,
    age_U: np.ndarray,
    *,
    r: float,
    alpha: float,
    a: float,
    b: float,
) -> np.ndarray:
    """Returns the expected purchase days of the next `horizon_days`, [U] (Fader, Hardie and Lee 2005, eq. 10).

    Euler's transformation takes the power of (alpha + age) / (alpha + age + horizon) into the hypergeometric function,
    whose first two arguments are then small for any number of purchases, and any sign is right. Only a huge `a`, where
    all customers leave at nearly one rate, is beyond it; the equation as printed holds there.

    Args:
      horizon_days: > 0.
      frequency_U: days with a repeat purchase.
      recency_U, age_U: days from the first purchase to the last one and to the end of the window.
      r, alpha, a, b: parameters of the model, a != 1 and a + b != 1.
    """
    share_U = horizon_days / (alpha + age_U + horizon_days)
    c_U = a + b + frequency_U - 1
    with np.errstate(over="ignore", invalid="ignore"):
        lost_U = (1 - share_U) ** (a - 1) * special.hyp2f1(a + b - 1 - r, a - 1, c_U, share_U)
        x_U = r + frequency_U
        printed_U = (1 - share_U) ** x_U * special.hyp2f1(x_U, b + frequency_U, c_U, share_U)
    lost_U = np.where(np.isfinite(lost_U), lost_U, printed_U)
    odds_U = np.zeros(len(frequency_U))  # of having left; 0 without a repeat purchase
    has_repeat_U = frequency_U > 0
    x, recency, age = frequency_U[has_repeat_U], recency_U[has_repeat_U], age_U[has_repeat_U]
    odds_U[has_repeat_U] = a / (b + x - 1) * np.exp((r + x) * np.log((alpha + age) / (alpha + recency)))
    return c_U / (a - 1) * (1 - lost_U) / (1 + odds_U)


def fit_bgnbd(history: History) -> PurchaseModel:
    """Returns the BG/NBD model (r, alpha, a, b) with the highest likelihood.

    Raises:
      UserError: there is no repeat purchase, or no fit converges.
    """
    from lifetimes import BetaGeoFitter

    _check_repeats(history)
    unique, _, counts_U = _unique_histories(history)
    parameters = _parameters(
        _with_penalties(
            lambda penalty: BetaGeoFitter(penalizer_coef=penalty).fit(*unique, weights=counts_U),
            "BG/NBD",
            len(history.frequency),
        )
    )
    r, alpha, a, b = (parameters[name] for name in ("r", "alpha", "a", "b"))
    return PurchaseModel(parameters, functools.partial(bgnbd_expectation, r=r, alpha=alpha, a=a, b=b))


def fit_paretonbd(history: History) -> PurchaseModel:
    """Returns the Pareto/NBD model (r, alpha, s, beta) with the highest likelihood.

    lifetimes starts at random and does not look whether its simplex search converged. Here it starts at 1 and again at
    its own result, until that no longer moves an expected number of purchases. Where the data have customers leave at
    one constant rate, s and beta grow without bound together and only their ratio counts.

    Raises:
      UserError: there is no repeat purchase, or no fit converges.
    """
    from lifetimes import ParetoNBDFitter

    _check_repeats(history)
    unique, _, counts_U = _unique_histories(history)
    unit_days = unique[2].max()

    def fit(penalty: float) -> Any:
        start = np.ones(4)  # in units of unit_days, as inside lifetimes
        previous_U = np.full(len(counts_U), np.nan)
        for _ in range(_MAX_RESTARTS):
            fitter = ParetoNBDFitter(penalizer_coef=penalty)
            fitter.fit(*unique, weights=counts_U, initial_params=start)
            expected_U = fitter.conditional_expected_number_of_purchases_up_to_time(unit_days, *unique)
            if np.allclose(expected_U, previous_U, rtol=_RESTART_TOLERANCE, atol=0.0):
                return fitter
            previous_U = expected_U
            start = np.array(fitter.params_) / (1.0, unit_days, 1.0, unit_days)
        raise _NotConverged

    fitter = _with_penalties(fit, "Pareto/NBD", len(history.frequency))
    return PurchaseModel(_parameters(fitter), fitter.conditional_expected_number_of_purchases_up_to_time)


@dataclasses.dataclass(frozen=True)
class GammaGamma:
    """Spend per purchase: gamma(p, nu) for a customer, nu ~ gamma(q, v) over customers.

    Attributes:
      p: shape of a purchase's spend.
      q: shape of nu, >= 1.
      v: rate of nu, currency.
      observed_mean: mean money per repeat purchase day, for q so near 1 that the model's mean is infinite.
    """

    p: float
    q: float
    v: float
    observed_mean: float

    def expected_money(self, history: History) -> np.ndarray:
        """Returns the expected spend on a future purchase day, [V], > 0.

        p (v + x m) / (p x + q - 1) for x repeat purchase days of mean m, which is the paper's weighted mean of m and
        the population's p v / (q - 1). Customers without repeat purchases, or with m <= 0, get the population's.
        """
        population = self.p * self.v / (self.q - 1) if self.q > _MIN_Q else self.observed_mean
        is_known_V = (history.frequency > 0) & (history.money > 0)
        frequency_V = np.where(is_known_V, history.frequency, 1.0)
        expected_V = self.p * (self.v + frequency_V * history.money) / (self.p * frequency_V + self.q - 1)
        return np.where(is_known_V, expected_V, population)


def fit_gamma_gamma(history: History) -> GammaGamma:
    """Returns the Gamma-Gamma model of the customers with repeat purchases and money > 0.

    Raises:
      UserError: there are none, or no fit converges.
    """
    from lifetimes import GammaGammaFitter

    is_known_V = (history.frequency > 0) & (history.money > 0)
    if not is_known_V.any():
        raise UserError("no customer of the training split spent anything after the first order; leave this peer out")
    frequency_V, money_V = history.frequency[is_known_V], history.money[is_known_V]
    # In units of the mean spend the search starts near its end, and a penalty does not depend on the currency.
    unit = float(money_V.mean())

    def fit(penalty: float) -> Any:
        return GammaGammaFitter(penalizer_coef=penalty).fit(frequency_V, money_V / unit, q_constraint=True)

    p, q, v = map(float, _with_penalties(fit, "Gamma-Gamma", len(money_V)).params_)
    return GammaGamma(p, q, v * unit, unit)


def _predict_value(task: PeerTask, fit_purchases: PurchaseFit) -> Predict:
    horizon_days = task.required_horizon_days()
    train = purchase_history(task, task.train)
    purchases, money = fit_purchases(train), fit_gamma_gamma(train)

    def predict(table: Table) -> np.ndarray:
        history = purchase_history(task, table)
        return purchases.expected_purchases(history, horizon_days) * money.expected_money(history)

    return predict


def bgnbd(task: PeerTask) -> Predict:
    """BG/NBD with Gamma-Gamma."""
    return _predict_value(task, fit_bgnbd)


def paretonbd(task: PeerTask) -> Predict:
    """Pareto/NBD with Gamma-Gamma."""
    return _predict_value(task, fit_paretonbd)
