"""The synthetic customers: the oracle is the true mean of their spend, which is the mixture that it claims to be."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mean_jax.data import synthetic_laws as laws


@pytest.fixture(scope="module")
def customers() -> laws.Customers:
    return laws.draw_customers(np.random.default_rng(3), 200_000)


def test_zero_shares(customers):
    label_BxT = laws.draw_spend(np.random.default_rng(4), customers)
    # Four standard errors of a share among 200,000, and as much again for the draw of the customers.
    np.testing.assert_allclose((label_BxT == 0).mean(axis=0), laws.ZERO_SHARES, atol=0.006)


def test_every_channel_and_month_and_type_is_common(customers):
    for values, names in (
        (customers.channel, laws.CHANNELS),
        (customers.month, laws.MONTHS),
        (customers.type, laws.TYPES),
    ):
        shares = np.bincount(values) / len(values)
        assert len(shares) == len(names)
        assert shares.min() > 0.05
    by_channel = [np.bincount(customers.type[customers.channel == channel], minlength=4) for channel in range(6)]
    assert stats.chi2_contingency(by_channel).pvalue < 1e-9, "channels shift types"


@pytest.mark.parametrize("customer_type", laws.TYPES, ids=lambda customer_type: customer_type.name)
def test_noise_has_mean_one(customer_type):
    noise = customer_type.noise(np.random.default_rng(0), (200_000, 2))
    assert noise.shape == (200_000, 2)
    assert noise.min() > 0
    assert noise.mean() == pytest.approx(1.0, abs=4 * noise.std() / np.sqrt(noise.size))


def test_the_oracle_is_the_mean_of_many_draws():
    """For customers of every type, of low, middle and high activity, in two months."""
    few = laws.Customers(
        traits=np.zeros((len(laws.TRAITS), 24)),
        channel=np.zeros(24, np.int64),
        month=np.repeat([1, 9], 12),
        type=np.tile(np.repeat(np.arange(4), 3), 2),
        log_rate=np.tile([1.5, 3.0, 4.5], 8),
        log_level=np.tile(np.linspace(2.0, 5.0, 12), 2),
    )
    num_draws = 40_000
    many = laws.Customers(**{name: np.repeat(value, num_draws, axis=-1) for name, value in vars(few).items()})
    label_BxT = laws.draw_spend(np.random.default_rng(1), many).reshape(24, num_draws, 4)
    error_BxT = label_BxT.std(axis=1) / np.sqrt(num_draws)
    deviation_BxT = (label_BxT.mean(axis=1) - laws.expected_spend(few)) / error_BxT
    assert np.abs(deviation_BxT).max() < 4.5, "96 means, each a standard normal from its expectation"
    assert (error_BxT / laws.expected_spend(few)).max() < 0.1, "else the test could not fail"


def test_the_oracle_by_hand():
    """A seasonal customer who is active in every period, the wave by quadrature; and one who never is."""
    (index,) = (i for i, customer_type in enumerate(laws.TYPES) if customer_type.name == "seasonal")
    seasonal = laws.TYPES[index]
    days = np.diff((0, *laws.HORIZON_DAYS))
    one = laws.Customers(
        traits=np.zeros((6, 1)),
        channel=np.array([0]),
        month=np.array([9]),
        type=np.array([index]),
        log_rate=np.array([np.log(1e6)]),
        log_level=np.array([2.0]),
    )
    amounts, end = [], 0
    for length in days:
        at = end + (np.arange(100_000) + 0.5) / 100_000 * length
        wave = 1 + seasonal.season * np.cos(2 * np.pi * (at / 365 + (9 - 10.5) / 12))
        amounts.append(np.exp(2.0) * (length / 30) ** seasonal.growth * wave.mean())
        end += length
    np.testing.assert_allclose(laws.expected_spend(one)[0], np.cumsum(amounts), rtol=1e-8)
    idle = dataclasses.replace(one, log_rate=np.array([-700.0]))
    np.testing.assert_allclose(laws.expected_spend(idle), 0, atol=1e-200)


def test_spending_is_a_mixture_that_no_log_normal_fits(customers):
    label_BxT = laws.draw_spend(np.random.default_rng(5), customers)
    for label_B in label_BxT.T:
        is_positive_B = label_B > 0
        log_P = np.log(label_B[is_positive_B])
        standard_P = (log_P - log_P.mean()) / log_P.std()
        assert stats.kstest(standard_P, "norm").statistic > 0.04, "a normal of as many rows stays below 0.013"
    variation = {
        customer_type.name: log_P[customers.type[is_positive_B] == index].std()
        for index, customer_type in enumerate(laws.TYPES)
    }
    assert min(variation, key=lambda name: variation[name]) == "subscription"
    big_P = label_BxT[(customers.type == 2) & (label_BxT[:, 0] > 0), 0]
    assert stats.kurtosis(big_P) > 50


def test_products_of_traits_tell_what_traits_alone_do_not(customers):
    is_big_B = (customers.type == 2).astype(np.float64)
    income_B, novelty_B = (customers.traits[laws.TRAITS.index(name)] for name in ("income", "novelty"))
    for trait_B in customers.traits:
        assert abs(np.corrcoef(trait_B, is_big_B)[0, 1]) < 0.02
    assert np.corrcoef(income_B * novelty_B, is_big_B)[0, 1] > 0.3
