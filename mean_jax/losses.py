"""Losses, elementwise over rows and unreduced, on logits and log probabilities; reduce with `masked_mean`."""

import jax
import jax.numpy as jnp

from mean_jax.types import Array


def masked_mean(values: Array, mask: Array) -> jax.Array:
    """Returns sum(where(mask, v, 0)) / sum(mask), and 0 where the mask is empty; shapes of both are equal."""
    count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)


def huber(prediction: Array, target: Array, delta: float) -> jax.Array:
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
