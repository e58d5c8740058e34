"""Losses against hand values and SciPy, their masks, gradients and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mean_jax import losses

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(5), 7)
Q = RNG.dirichlet(np.ones(5), 7)


def test_huber_is_equation_8():
    prediction, target = RNG.normal(size=50) * 3, RNG.normal(size=50)
    for delta in (0.3, 1.0, 2.5):
        expected = scipy.special.huber(delta, target - prediction)
        np.testing.assert_allclose(losses.huber(prediction, target, delta), expected, rtol=1e-5, atol=1e-7)


def test_huber_hand_values():
    assert losses.huber(jnp.array([0.0, 0.5, 3.0]), jnp.zeros(3), 1.0).tolist() == [0.0, 0.125, 2.5]


def test_cross_entropy_is_equation_11():
    labels = RNG.integers(0, 5, 7)
    expected = -np.log(Q[np.arange(7), labels])
    np.testing.assert_allclose(losses.cross_entropy(jnp.log(Q), labels), expected, rtol=1e-5)


def test_soft_cross_entropy_is_equation_15():
    expected = scipy.stats.entropy(P, axis=1) + scipy.stats.entropy(P, Q, axis=1)
    np.testing.assert_allclose(losses.soft_cross_entropy(P, jnp.log(Q)), expected, rtol=1e-5)


def test_kl_divergence_is_equation_13():
    expected = scipy.special.rel_entr(P, Q).sum(axis=1)
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(P), jnp.log(Q)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(P), jnp.log(P)), np.zeros(7), atol=1e-6)


def test_masked_mean_equals_the_mean_of_the_subset():
    values, mask = RNG.normal(size=20).astype(np.float32), RNG.random(20) < 0.4
    assert losses.masked_mean(values, mask) == pytest.approx(values[mask].mean(), rel=1e-5)
    hidden = np.where(mask, values, np.nan)
    assert losses.masked_mean(hidden, mask) == pytest.approx(values[mask].mean(), rel=1e-5)
    assert losses.masked_mean(values, np.zeros(20, bool)) == 0.0


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0, 1e30, -1e30])
def test_huber_gradient_is_finite_and_bounded_by_delta(error):
    gradient = jax.grad(lambda x: losses.huber(x, jnp.float32(0.0), 1.0))(jnp.float32(error))
    assert abs(gradient) <= 1.0


def test_divergences_have_finite_gradients_at_extreme_logits():
    def loss(logits_p, logits_q):
        log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
        return losses.kl_divergence(log_p, log_q) + losses.soft_cross_entropy(jnp.exp(log_p), log_q)

    logits = jnp.array([200.0, -200.0, 0.0])
    gradients = jax.grad(loss, argnums=(0, 1))(logits, -logits)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
