"""BG/NBD, Pareto/NBD and Gamma-Gamma against published CDNOW values and integrals over the hidden parameters."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from mean_jax.errors import UserError
from mean_jax.experiments.peers import repeat_purchases
from mean_jax.experiments.peers.contain import quiet
from mean_jax.experiments.peers.purchase_history import History, purchase_history
from mean_jax.experiments.peers.repeat_purchases import (
    GammaGamma,
    bgnbd,
    bgnbd_expectation,
    fit_bgnbd,
    fit_gamma_gamma,
    fit_paretonbd,
    paretonbd,
)
from mean_jax.experiments.peers.task import PeerTask
from tests.peers_data import make_table, make_task, skip_unless_available, with_columns

TASK = make_task()
TEST = make_table(400, seed=2)
# Histories that the models treat differently: (frequency, recency, age).
CASES = np.array([[0, 0, 90], [1, 1, 90], [1, 80, 90], [6, 40, 90], [6, 88, 90], [40, 89, 90], [0, 0, 10.0]])


def history_of(cases: np.ndarray, money: float | np.ndarray = 0.0) -> History:
    return History(*cases.T, np.broadcast_to(money, len(cases)).astype(float))


@pytest.fixture(scope="module", autouse=True)
def _lifetimes():
    skip_unless_available("bgnbd")


@pytest.fixture(scope="module")
def cdnow() -> History:
    """The 2,357 customers of the 1/10 sample; frequency, recency and age in weeks, first 39 weeks."""
    folder = Path(importlib.util.find_spec("lifetimes").origin).parent / "datasets"
    rows = np.genfromtxt(folder / "cdnow_customers_summary.csv", delimiter=",", skip_header=1)
    assert rows.shape == (2357, 4)
    return history_of(rows[:, 1:])


@pytest.fixture(scope="module")
def bgnbd_cdnow(cdnow):
    with quiet():
        return fit_bgnbd(cdnow)


@pytest.fixture(scope="module")
def paretonbd_cdnow(cdnow):
    with quiet():
        return fit_paretonbd(cdnow)


@pytest.fixture(scope="module")
def train() -> History:
    return purchase_history(TASK, TASK.train)


class TestPublishedValues:
    def test_bgnbd(self, bgnbd_cdnow):
        """Fader, Hardie and Lee (2005), table 2."""
        expected = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}
        assert bgnbd_cdnow.parameters == pytest.approx(expected, abs=6e-4)

    def test_paretonbd(self, paretonbd_cdnow):
        """Fader, Hardie and Lee (2005), table 2."""
        expected = {"r": 0.553, "alpha": 10.578, "s": 0.606, "beta": 11.669}
        assert paretonbd_cdnow.parameters == pytest.approx(expected, rel=1e-3)

    def test_bgnbd_expectation(self, bgnbd_cdnow):
        """The customer of Fader, Hardie and Lee's worked example: 1.226 purchases in the next 39 weeks."""
        customer = history_of(np.array([[2, 30.43, 38.86]]))
        assert bgnbd_cdnow.expected_purchases(customer, 39.0) == pytest.approx([1.226], abs=5e-4)


def quantile_grid(num_points: int = 1500) -> np.ndarray:
    """Returns points of (0, 1) and their weights; denser towards both ends, where small shapes have their mass."""
    u = (np.arange(num_points) + 0.5) / num_points
    return np.stack([u**3 * (10 - 15 * u + 6 * u**2), 30 * u**2 * (1 - u) ** 2 / num_points])


class TestExpectationsByIntegration:
    """E[purchases] = integral of what an active customer buys, over the posterior of the two hidden parameters."""

    HORIZON = 60.0

    def test_bgnbd(self, train):
        with quiet():
            model = fit_bgnbd(train)
        r, alpha, a, b = (model.parameters[name] for name in ("r", "alpha", "a", "b"))
        (u, weight) = quantile_grid()
        rate = stats.gamma(r, scale=1 / alpha).ppf(u)[:, None]
        drop = stats.beta(a, b).ppf(u)[None, :]
        weights = weight[:, None] * weight[None, :]
        for (x, recency, age), value in zip(
            CASES, model.expected_purchases(history_of(CASES), self.HORIZON), strict=True
        ):
            alive = (1 - drop) ** x * rate**x * np.exp(-rate * age)
            gone = drop * (1 - drop) ** (x - 1) * rate**x * np.exp(-rate * recency) if x else 0.0
            future = -np.expm1(-rate * drop * self.HORIZON) / drop
            expected = (weights * alive * future).sum() / (weights * (alive + gone)).sum()
            assert value == pytest.approx(expected, rel=2e-3)

    @pytest.mark.parametrize("horizon_days", [30.0, 365.0])
    @pytest.mark.parametrize(
        ("r", "alpha", "a", "b"),
        # As on CDNOW (in weeks); two with a + b < 1, as on Ta-Feng and Online Retail II; one with a > 1.
        [(0.243, 4.414, 0.793, 2.426), (0.822, 19.2, 0.033, 0.543), (0.9, 60.0, 0.082, 0.78), (2.0, 10.0, 1.7, 3.0)],
    )
    def test_bgnbd_expectation(self, r, alpha, a, b, horizon_days):
        """The purchase rate is integrated in closed form, the chance to leave after a purchase numerically."""
        cases = np.concatenate([CASES, [[0, 0, 2.0], [300, 700, 730.0]]])
        values = bgnbd_expectation(horizon_days, *cases.T, r=r, alpha=alpha, a=a, b=b)
        for (x, recency, age), value in zip(cases, values, strict=True):

            def future(drop, shape=r + x, share=horizon_days / (alpha + age)):
                return -np.expm1(-shape * np.log1p(drop * share)) / drop if drop else shape * share

            integral, _ = integrate.quad(future, 0, 1, weight="alg", wvar=(a - 1, b + x - 1))
            gone = special.beta(a + 1, b + x - 1) * ((alpha + age) / (alpha + recency)) ** (r + x) if x else 0.0
            assert value == pytest.approx(integral / (special.beta(a, b + x) + gone), rel=1e-7)

    @pytest.mark.parametrize(("a", "b"), [(20.0, 80.0), (400.0, 1600.0), (246088.0, 4525453.0)])
    def test_bgnbd_expectation_where_all_leave_at_nearly_one_rate(self, a, b):
        values = bgnbd_expectation(365.0, *CASES.T, r=0.5, alpha=10.0, a=a, b=b)
        (u, weight) = quantile_grid()
        for (x, recency, age), value in zip(CASES, values, strict=True):
            drop = stats.beta(a, b + x).ppf(u)
            future = -np.expm1(-(0.5 + x) * np.log1p(drop * 365.0 / (10.0 + age))) / drop
            gone = a / (b + x - 1) * ((10.0 + age) / (10.0 + recency)) ** (0.5 + x) if x else 0.0
            assert value == pytest.approx((weight * future).sum() / weight.sum() / (1 + gone), rel=1e-4)

    def test_paretonbd(self, train):
        with quiet():
            model = fit_paretonbd(train)
        r, alpha, s, beta = (model.parameters[name] for name in ("r", "alpha", "s", "beta"))
        (u, weight) = quantile_grid()
        rate = stats.gamma(r, scale=1 / alpha).ppf(u)[:, None]
        death = stats.gamma(s, scale=1 / beta).ppf(u)[None, :]
        weights = weight[:, None] * weight[None, :]
        for (x, recency, age), value in zip(
            CASES, model.expected_purchases(history_of(CASES), self.HORIZON), strict=True
        ):
            total = rate + death
            alive = rate**x * np.exp(-total * age)
            gone = rate**x * death / total * (np.exp(-total * recency) - np.exp(-total * age))
            future = -np.expm1(-death * self.HORIZON) * rate / death
            expected = (weights * alive * future).sum() / (weights * (alive + gone)).sum()
            assert value == pytest.approx(expected, rel=2e-3)

    @pytest.mark.parametrize("q", [1.0, 1.5, 4.0])
    def test_gamma_gamma(self, q):
        model = GammaGamma(p=2.0, q=q, v=30.0, observed_mean=50.0)
        frequency_V, money_V = np.array([1, 3, 30.0]), np.array([12, 80, 20.0])
        nu = np.linspace(1e-5, 8, 400_000)[:, None]  # spend of a purchase ~ gamma(p, nu), nu ~ gamma(q, v)
        shape_V = 2.0 * frequency_V
        log_posterior = stats.gamma.logpdf(money_V, shape_V, scale=1 / (frequency_V * nu))
        posterior = np.exp(log_posterior - log_posterior.max(axis=0)) * stats.gamma.pdf(nu, q, scale=1 / 30.0)
        expected_V = (2.0 / nu * posterior).sum(axis=0) / posterior.sum(axis=0)
        history = History(frequency_V, frequency_V, frequency_V, money_V)
        np.testing.assert_allclose(model.expected_money(history), expected_V, rtol=1e-4)


class TestGammaGamma:
    def test_without_known_money_the_population_mean(self):
        model = GammaGamma(p=2.0, q=3.0, v=30.0, observed_mean=50.0)
        history = History(np.array([0, 4, 4, 4.0]), np.zeros(4), np.zeros(4), np.array([0, 0, -7, 10.0]))
        np.testing.assert_allclose(model.expected_money(history), [30, 30, 30, 2 * (30 + 40) / (8 + 2)])

    def test_no_mean_in_the_population(self):
        model = GammaGamma(p=2.0, q=1.0, v=30.0, observed_mean=50.0)
        np.testing.assert_array_equal(model.expected_money(history_of(CASES[:1])), [50])

    def test_highest_likelihood_in_any_currency(self):
        rng = np.random.default_rng(0)
        frequency_V = rng.integers(1, 12, 1000).astype(float)
        money_V = rng.gamma(5 * frequency_V) / (frequency_V * rng.gamma(4, 1 / 20, 1000))

        def loss(log_parameters):  # m x / (m x + v) is beta distributed, written as a density of m
            p, q, v = np.exp(log_parameters)
            total_V = frequency_V * money_V
            log_jacobian_V = np.log(frequency_V * v) - 2 * np.log(total_V + v)
            return -(stats.beta.logpdf(total_V / (total_V + v), p * frequency_V, q) + log_jacobian_V).mean()

        expected = np.exp(optimize.minimize(loss, np.log([5, 4, 20]), method="Nelder-Mead", tol=1e-9).x)
        for unit in (1.0, 1e5):
            with quiet():
                model = fit_gamma_gamma(History(frequency_V, frequency_V, frequency_V, unit * money_V))
            np.testing.assert_allclose((model.p, model.q, model.v / unit), expected, rtol=1e-2)

    def test_money_that_is_not_positive_is_left_out(self, train):
        more = History(*(np.append(part, part[train.frequency > 0][:2]) for part in train))
        more.money[-2:] = [0, -30]
        with quiet():
            assert fit_gamma_gamma(more) == fit_gamma_gamma(train)

    def test_equal_money_for_all(self, train):
        """Without any spread p grows without bound; a penalty ends that and draws the expectation a little upwards."""
        with quiet():
            model = fit_gamma_gamma(train._replace(money=np.full(len(train.money), 20.0)))
        money_V = model.expected_money(train._replace(money=np.full(len(train.money), 20.0)))
        np.testing.assert_allclose(money_V, 20.0, rtol=0.1)

    def test_no_money_at_all(self, train):
        with pytest.raises(UserError, match="spent anything after the first order"):
            fit_gamma_gamma(train._replace(money=-train.money))


class TestPurchaseHistory:
    def test_columns(self):
        nan = np.nan
        task = with_columns(
            TASK,
            active_days=[1, 3, 2, nan, 4],
            tenure_days=[0.4, 50.2, 0.2, 30, 10],
            recency_days=[89.6, 39.8, 89.8, 60, nan],
            amount_sum=[70, 100, 20, 9, 30],
            amount_first=[40, 40, 25, 9, nan],
        )
        history = purchase_history(task, task.train)
        np.testing.assert_array_equal(history.frequency, [0, 2, 1, 0, 3])
        np.testing.assert_array_equal(history.recency, [0, 50, 0, 0, 10])
        np.testing.assert_array_equal(history.age, [90, 90, 90, 90, 90])
        np.testing.assert_array_equal(history.money, [0, 30, -5, 0, 0])

    def test_age_where_the_window_ends_at_a_date(self):
        columns = {
            "active_days": [2],
            "tenure_days": [20],
            "recency_days": [15],
            "amount_sum": [2],
            "amount_first": [1],
        }
        task = with_columns(TASK, **columns)
        assert purchase_history(task, task.train).age == [35]

    def test_without_a_window(self):
        with pytest.raises(UserError, match="the length of the observation window is not known"):
            purchase_history(dataclasses.replace(TASK, observation_days=None), TASK.train)


class TestFitting:
    @pytest.mark.parametrize("fit", [fit_bgnbd, fit_paretonbd])
    def test_weights_stand_for_repeated_customers(self, fit, train):
        with quiet():
            once = fit(train)
            twice = fit(History(*(np.tile(part, 2) for part in train)))
        assert twice.parameters == pytest.approx(once.parameters, rel=1e-2)

    @pytest.mark.parametrize("peer", [bgnbd, paretonbd])
    def test_value_is_purchases_times_money(self, peer, train):
        with quiet():
            fit = fit_bgnbd if peer is bgnbd else fit_paretonbd
            test = purchase_history(TASK, TEST)
            expected_V = fit(train).expected_purchases(test, 60.0) * fit_gamma_gamma(train).expected_money(test)
            value_V = peer(TASK)(TEST)
        np.testing.assert_array_equal(value_V, expected_V)

    @pytest.mark.parametrize("peer", [bgnbd, paretonbd])
    def test_grows_with_the_horizon_and_stays_finite_for_heavy_buyers(self, peer):
        history = {"active_days": 90, "tenure_days": 89, "recency_days": 1, "amount_sum": 1e6, "amount_first": 1}
        numeric_VxC = TEST.numeric.copy()
        for name, value in history.items():
            numeric_VxC[0, TASK.numeric_names.index(name)] = value
        table = TEST._replace(numeric=numeric_VxC)
        with quiet():
            short_V, long_V = (peer(dataclasses.replace(TASK, horizon_days=days))(table) for days in (30.0, 365.0))
        assert np.isfinite(long_V).all()
        assert (short_V > 0).all()
        assert (short_V < long_V).all()

    @pytest.mark.parametrize("peer", [bgnbd, paretonbd])
    def test_no_repeat_purchase(self, peer):
        numeric_VxC = TASK.train.numeric.copy()
        numeric_VxC[:, TASK.numeric_names.index("active_days")] = 1
        task: PeerTask = dataclasses.replace(TASK, train=TASK.train._replace(numeric=numeric_VxC))
        with pytest.raises(UserError, match="purchased on two days or more"):
            peer(task)

    def test_a_fit_that_fails_is_tried_with_penalties(self, train, monkeypatch):
        from lifetimes import BetaGeoFitter
        from lifetimes.utils import ConvergenceError

        fitters = []
        fit = BetaGeoFitter.fit

        def fail_twice(self, *args, **kwargs):
            fitters.append(self)
            if len(fitters) == 1:
                raise ConvergenceError("no")
            if len(fitters) == 2:
                raise np.linalg.LinAlgError("singular")
            return fit(self, *args, **kwargs)

        monkeypatch.setattr(BetaGeoFitter, "fit", fail_twice)
        with quiet():
            model = fit_bgnbd(train)
        assert [fitter.penalizer_coef for fitter in fitters] == [0.0, 1e-3, 1e-2]
        assert model.parameters == dict(fitters[-1].params_)

    def test_a_fit_that_never_converges(self, train, monkeypatch):
        monkeypatch.setattr(repeat_purchases, "_MAX_RESTARTS", 1)  # one search alone shows no convergence
        with quiet(), pytest.raises(UserError, match="Pareto/NBD did not converge on 500 customers"):
            fit_paretonbd(train)
