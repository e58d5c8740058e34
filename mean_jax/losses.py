"""Losses, elementwise over rows and unreduced, on logits and log probabilities; reduce with `masked_mean`."""

import jax
import jax.numpy as jnp

from mean_jax.types import Array

MIN_SIGMA = 1e-7**0.5  # of log-normal densities: below it their logarithm exceeds what float32 can square
MAX_SIGMA = 5.0  # exp(sigma^2 / 2) is 2.7e5 there; an early step beyond it would own every mean
MAX_LOG_MEAN = 20.0  # of log means: 4.9e8 on any scale
MIN_MISS = 1e-6  # of 1 - q in the focal weight


def masked_mean(values: Array, mask: Array, count: Array | None = None) -> jax.Array:
    """Returns sum(where(mask, v, 0)) / sum(mask), and 0 where the mask is empty; shapes of both are equal.

    Args:
      values: of any shape.
      mask: which of them count.
      count: true elements of the mask in the whole batch, where `values` are one device's part of it: the result is
        that part's share of the mean then.
    """
    count = jnp.sum(mask) if count is None else count
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)


def sum_of_means(values_BxK: Array, mask_BxK: Array, count_K: Array) -> jax.Array:
    """Returns the masked mean over the rows of each horizon, summed over the K horizons; `count_K` as in the mean."""
    return jnp.sum(jax.vmap(masked_mean, in_axes=(1, 1, 0))(values_BxK, mask_BxK, count_K))


def huber(prediction: Array, target: Array, delta: float | Array) -> jax.Array:
    """Returns the Huber loss per element, quadratic within delta > 0 of the target and linear beyond (eq. 8)."""
    error = jnp.abs(target - prediction)
    return jnp.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))


def cross_entropy(log_q_xN: Array, label: Array) -> jax.Array:
    """Returns -log q[label] (eq. 11, and eq. 15 with a one-hot p).

    Args:
      log_q_xN: log probabilities, any leading shape.
      label: int32 class of the leading shape.
    """
    one_hot_xN = jax.nn.one_hot(label, log_q_xN.shape[-1], dtype=log_q_xN.dtype)
    return -jnp.sum(one_hot_xN * log_q_xN, axis=-1)


def soft_cross_entropy(p_xN: Array, log_q_xN: Array) -> jax.Array:
    """Returns H(p, q) = -sum p log q (eq. 15).

    The paper adds a small constant inside the logarithm; log q comes from log-softmax here, which needs none.
    """
    return -jnp.sum(p_xN * log_q_xN, axis=-1)


def kl_divergence(log_p_xN: Array, log_q_xN: Array) -> jax.Array:
    """Returns KL(p || q) = sum p log(p / q) from log probabilities (eq. 13)."""
    return jnp.sum(jnp.exp(log_p_xN) * (log_p_xN - log_q_xN), axis=-1)


def focal_cross_entropy(log_q_xN: Array, label: Array, exponent: float | Array) -> jax.Array:
    """Returns -(1 - q[label])^exponent log q[label] (Lin et al. 2017); exponent 0 is the cross entropy.

    Args:
      log_q_xN: log probabilities, any leading shape.
      label: int32 class of the leading shape.
      exponent: >= 0, how far well-classified rows are weighted down.
    """
    log_q_label = -cross_entropy(log_q_xN, label)
    # 1 - q is kept off 0, where the gradient of a power below 1 is infinite.
    miss = jnp.maximum(-jnp.expm1(log_q_label), MIN_MISS)
    return -(miss**exponent) * log_q_label


def _log_normal_parameters(logits_x3: Array, max_sigma: float) -> tuple[jax.Array, jax.Array]:
    """Returns mu and the clamped sigma; one clamp for loss and prediction."""
    return jnp.asarray(logits_x3)[..., 1], jnp.clip(jax.nn.softplus(logits_x3[..., 2]), MIN_SIGMA, max_sigma)


def purchase_nll(logits_x3: Array, target: Array) -> jax.Array:
    """Returns the binary cross entropy of "the target is positive" (BASELINES.md 1.2); see `ziln`."""
    logit = logits_x3[..., 0]
    return jax.nn.softplus(logit) - jnp.where(target > 0, logit, 0.0)


def log_normal_nll(logits_x3: Array, target: Array, max_sigma: float) -> jax.Array:
    """Returns -log LN(y; mu, sigma) where the target is positive, and 0 where it is 0 (BASELINES.md 1.2)."""
    mu, sigma = _log_normal_parameters(logits_x3, max_sigma)
    is_positive = target > 0
    log_y = jnp.log(jnp.where(is_positive, target, 1.0))
    nll = log_y + jnp.log(sigma) + 0.5 * jnp.log(2 * jnp.pi) + 0.5 * ((log_y - mu) / sigma) ** 2
    return jnp.where(is_positive, nll, 0.0)


def ziln(logits_x3: Array, target: Array, max_sigma: float = MAX_SIGMA) -> jax.Array:
    """Returns the zero-inflated log-normal negative log likelihood per element (BASELINES.md 1.2, Wang et al. 2019).

    Args:
      logits_x3: (a, mu, r) with p = sigmoid(a) and sigma = softplus(r), any leading shape.
      target: labels >= 0 of the leading shape, any unit.
      max_sigma: upper bound of sigma; the lower one is MIN_SIGMA.
    """
    return purchase_nll(logits_x3, target) + log_normal_nll(logits_x3, target, max_sigma)


def ziln_mean(logits_x3: Array, max_sigma: float = MAX_SIGMA, max_log: float = MAX_LOG_MEAN) -> jax.Array:
    """Returns the mean p exp(mu + sigma^2 / 2) of the zero-inflated log-normal (BASELINES.md 1.3).

    It is computed in log space and bounded at exp(max_log): exp overflows on what an untrained network gives.
    """
    mu, sigma = _log_normal_parameters(logits_x3, max_sigma)
    return jnp.exp(jnp.minimum(jax.nn.log_sigmoid(logits_x3[..., 0]) + mu + 0.5 * sigma**2, max_log))
