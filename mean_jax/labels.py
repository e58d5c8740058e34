"""Labels between currency and the training scale, and their buckets (paper section 4.1, BASELINES.md section 6).

A label y in currency becomes y_scaled = min(t(y) / scale, cap), t the identity or log1p, with one scale per horizon.
Bucket 0 holds the zeros; the others split the positive labels of the training split into equal parts.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mean_jax.config import LabelConfig
from mean_jax.types import Array, Targets


class LabelConstants(NamedTuple):
    """Fitted per horizon; the leading axes are those of the horizons asked for."""

    scale: Array  # [T] float32, (transformed) currency per unit of the training scale
    edges: Array  # [T, N-1] float32, currency; upper edges of the positive buckets, the last one infinite
    quantiles: Array  # [T, Q] float32, training scale; quantiles of the positive labels at equally spaced levels 0..1
    positive_rate: Array  # [T] float32, share of positive labels among the known ones


def fit_label_constants(
    positive_quantiles_TxQ: np.ndarray, positive_rate_T: np.ndarray, config: LabelConfig
) -> LabelConstants:
    """Returns scale, bucket edges and the distribution of the scaled labels per horizon.

    Args:
      positive_quantiles_TxQ: quantiles of the positive training labels in currency, at equally spaced levels 0..1.
      positive_rate_T: share of positive training labels.
      config: the scale (a number, or fitted so that `scale_quantile` of the positives maps to `cap`) and N.
    """
    levels_Q = np.linspace(0.0, 1.0, positive_quantiles_TxQ.shape[1])

    def quantile(level: float) -> np.ndarray:
        return np.array([np.interp(level, levels_Q, quantiles) for quantiles in positive_quantiles_TxQ])

    if config.scale == "auto":
        high_T = quantile(config.scale_quantile)
        scale_T = (np.log1p(high_T) if config.transform == "log1p" else high_T) / config.cap
    else:
        scale_T = np.full(len(positive_quantiles_TxQ), config.scale)
    num_positive = config.num_buckets - 1
    inner = [quantile(index / num_positive) for index in range(1, num_positive)]
    edges_TxE = np.stack([*inner, np.full(len(scale_T), np.inf)], axis=1)
    scaled_TxQ = to_scaled(positive_quantiles_TxQ, scale_T[:, None], config)
    arrays = (scale_T, edges_TxE, scaled_TxQ, np.asarray(positive_rate_T))
    return LabelConstants(*(array.astype(np.float32) for array in arrays))


def make_targets(labels_BxK: Array, constants: LabelConstants, mask_B: Array, config: LabelConfig) -> Targets:
    """Returns scaled labels, buckets, the mask of the known ones and their number.

    Args:
      labels_BxK: currency, NaN where unknown.
      constants: of the same K horizons.
      mask_B: False on padding rows.
      config: transform and cap.
    """
    mask_BxK = ~jnp.isnan(labels_BxK) & mask_B[:, None]
    raw_BxK = jnp.where(mask_BxK, labels_BxK, 0.0)
    transformed_BxK = jnp.log1p(raw_BxK) if config.transform == "log1p" else raw_BxK
    scaled_BxK = jnp.minimum(transformed_BxK / constants.scale[None], config.cap)
    above_BxKxE = raw_BxK[..., None] > constants.edges[None]
    bucket_BxK = jnp.where(raw_BxK > 0, 1 + above_BxKxE.sum(axis=-1), 0)
    return Targets(scaled_BxK, bucket_BxK.astype(jnp.int32), mask_BxK, mask_BxK.sum(axis=0, dtype=jnp.int32))


def to_currency(scaled: np.ndarray, scale: np.ndarray | np.float64, config: LabelConfig) -> np.ndarray:
    """Returns predictions of the training scale in currency, float64, not clipped: a negative one stays negative."""
    transformed = np.asarray(scaled, np.float64) * np.asarray(scale, np.float64)
    return np.sign(transformed) * np.expm1(np.abs(transformed)) if config.transform == "log1p" else transformed


def to_scaled(raw: np.ndarray, scale: np.ndarray | np.float64, config: LabelConfig) -> np.ndarray:
    """Returns labels in currency on the training scale, float64, truncated at the cap."""
    raw = np.asarray(raw, np.float64)
    transformed = np.log1p(raw) if config.transform == "log1p" else raw
    return np.minimum(transformed / scale, config.cap)
