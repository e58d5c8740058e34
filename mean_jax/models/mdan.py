"""MDAN, the Multi-channel Distribution Adaptive Network (Liu et al., PAKDD 2024; BASELINES.md section 4).

Only the paper's abstract and what others say of it are public, so this is a reconstruction. A controller, the CLC,
classifies the label's bucket against the imbalance of the classes; its probabilities fuse one channel per bucket into
the embedding e, from which the label is regressed. A distance loss makes embeddings as similar as their labels are
close: `pairwise` compares similarities with label distances, `ranksim` the order of both (Gong et al. 2022).
"""

import dataclasses
from typing import Any, ClassVar, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax import losses
from mean_jax.config import require
from mean_jax.labels import LabelConstants
from mean_jax.models import blocks
from mean_jax.models.base import Model, Outputs, Terms
from mean_jax.types import Array, Targets

MIN_SQUARED_NORM = 1e-12  # of an embedding; that of a row whose channels are all dead is 0
INTERPOLATION_OFFSET = 1e-8  # of the divisor in the gradient of ranks (BASELINES.md 4.4)


@dataclasses.dataclass(frozen=True)
class MdanConfig:
    """The recommended choices of BASELINES.md section 4; the paper's own sizes and weights are not known."""

    SCALARS: ClassVar[tuple[str, ...]] = ("huber_delta", "classification_weight", "distance_weight", "interpolation")

    name: Literal["mdan"] = "mdan"
    multi_task: bool = False  # one bottom for all horizons, channels and controller of each its own; losses summed
    bottom_sizes: tuple[int, ...] = (512, 256)
    channel_sizes: tuple[int, ...] = (128, 64)  # of each of the N channels; the last is the width of the embedding
    channel_output: Literal["relu", "linear"] = "relu"  # linear: cosines below 0 can occur, similarities below 1/2
    clc_sizes: tuple[int, ...] = (256, 128, 64)
    regression: Literal["mse", "huber"] = "mse"
    huber_delta: float = 1.0
    classification_weight: float = 1.0  # of the class-weighted cross entropy
    distance: Literal["pairwise", "ranksim"] = "pairwise"
    distance_weight: float = 1.0
    num_anchors: int = 256  # A, at most: rows with distinct labels that the distance loss compares, at a cost of A^2
    interpolation: float = 2.0  # lambda of the gradient of ranks; ranksim only
    anchor_reduction: Literal["mean", "sum"] = "mean"  # ranksim only; sum: as its authors, it grows with the anchors
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("bottom_sizes", "channel_sizes", "clc_sizes"):
            sizes = getattr(self, name)
            require(min(sizes, default=1) >= 1, f"model.{name}", sizes, "sizes of 1 or more")
        require(len(self.channel_sizes) >= 1, "model.channel_sizes", self.channel_sizes, "one size or more")
        require(self.num_anchors >= 2, "model.num_anchors", self.num_anchors, "2 or more")
        for name in ("huber_delta", "interpolation"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a positive number")
        for name in ("classification_weight", "distance_weight"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")


def class_weights(positive_rate_K: Array, num_buckets: int) -> jax.Array:
    """Returns weight_KxN proportional to 1 / frequency of each bucket, with mean 1 over the buckets (BASELINES.md 4.2).

    Bucket 0 holds the zeros, a share 1 - rate of the labels; the others are quantile buckets of the positive labels and
    share the rate equally. Where labels tie across an edge that is an approximation. A bucket that no label falls in
    has weight 0 and does not enter the mean.
    """
    positive_KxE = jnp.repeat(positive_rate_K[:, None], num_buckets - 1, axis=1) / (num_buckets - 1)
    frequency_KxN = jnp.concatenate([1.0 - positive_rate_K[:, None], positive_KxE], axis=1)
    is_seen_KxN = frequency_KxN > 0
    inverse_KxN = jnp.where(is_seen_KxN, 1.0 / jnp.where(is_seen_KxN, frequency_KxN, 1.0), 0.0)
    scale_Kx1 = is_seen_KxN.sum(axis=1, keepdims=True) / inverse_KxN.sum(axis=1, keepdims=True)
    return inverse_KxN * scale_Kx1


def choose_anchors(label_B: Array, priority_B: Array, mask_B: Array, num_anchors: int) -> tuple[jax.Array, jax.Array]:
    """Returns index_A into the rows and valid_A: known rows with distinct labels, the first by priority.

    Of the rows with one label the one of least priority survives (BASELINES.md 4.4 step 1), so that the zeros, most of
    a batch, count once; A = min(num_anchors, B) survivors of least priority are kept, in the order of priority. With
    random priorities a label that many rows share is thus likelier to be kept.
    """
    known_B = jnp.where(mask_B, label_B, jnp.inf)
    order_B = jnp.lexsort((priority_B, known_B))
    sorted_B = known_B[order_B]
    is_first_B = jnp.concatenate([jnp.ones(1, bool), sorted_B[1:] != sorted_B[:-1]])
    score_B = jnp.where(is_first_B & jnp.isfinite(sorted_B), -jnp.asarray(priority_B)[order_B], -jnp.inf)
    score_A, position_A = jax.lax.top_k(score_B, min(num_anchors, len(label_B)))
    return order_B[position_A], score_A > -jnp.inf


def cosine_similarities(embedding_AxH: Array) -> jax.Array:
    """Returns the cosines of all pairs [A, A]; a zero embedding has cosine 0 with all, and a gradient of 0."""
    squared_Ax1 = jnp.sum(embedding_AxH**2, axis=1, keepdims=True)
    inverse_Ax1 = jax.lax.rsqrt(jnp.maximum(squared_Ax1, MIN_SQUARED_NORM))
    unit_AxH = embedding_AxH * jnp.where(squared_Ax1 > MIN_SQUARED_NORM, inverse_Ax1, 0.0)
    return jnp.matmul(unit_AxH, unit_AxH.T)


def pairwise_loss(embedding_AxH: Array, label_A: Array, valid_A: Array, max_label: Array) -> jax.Array:
    """Returns the mean over pairs i != j of (S_ij - R_ij)^2 (BASELINES.md 4.3), and 0 without a pair.

    S = (1 + cos) / 2 and R = 1 - |y_i - y_j| / max_label.
    """
    similarity_AxA = 0.5 * (1.0 + cosine_similarities(embedding_AxH))
    target_AxA = 1.0 - jnp.abs(label_A[:, None] - label_A[None]) / jnp.where(max_label > 0, max_label, 1.0)
    is_pair_AxA = valid_A[:, None] & valid_A[None] & ~jnp.eye(len(label_A), dtype=bool)
    return losses.masked_mean((similarity_AxA - target_AxA) ** 2, is_pair_AxA)


def _places(value_xA: Array, valid_xA: Array) -> jax.Array:
    """Returns the place of each value from above, 1 to n, ties by position; 0 where invalid. int32."""
    order_xA = jnp.argsort(jnp.where(valid_xA, -value_xA, jnp.inf), axis=-1)
    numbers_xA = jnp.broadcast_to(jnp.arange(1, value_xA.shape[-1] + 1), value_xA.shape)
    # The inverse of the permutation; a second argsort gives it at twice the cost.
    place_xA = jnp.put_along_axis(jnp.zeros_like(order_xA), order_xA, numbers_xA, axis=-1, inplace=False)
    return jnp.where(valid_xA, place_xA, 0)


def _share(place_xA: Array, valid_xA: Array) -> jax.Array:
    return jnp.asarray(place_xA) / jnp.maximum(valid_xA.sum(axis=-1, keepdims=True), 1)


@jax.custom_vjp
def ranks(value_xA: Array, valid_xA: Array, interpolation: Array | float) -> jax.Array:
    """Returns rank / n of each value among the n valid ones of the last axis: the largest has 1 / n, invalid ones 0.

    Ties go by position. Ranks are piecewise constant; the gradient is that of the interpolation between the ranks of
    v and of v + lambda g, g the incoming gradient (black-box differentiation; BASELINES.md 4.4 step 4).

    Args:
      value_xA: any leading shape.
      valid_xA: bool of the same shape.
      interpolation: lambda > 0, how far the gradient looks.
    """
    return _share(_places(value_xA, valid_xA), valid_xA)


def _ranks_forward(value_xA: Array, valid_xA: Array, interpolation: Array | float) -> tuple[jax.Array, Any]:
    place_xA = _places(value_xA, valid_xA)
    return _share(place_xA, valid_xA), (value_xA, valid_xA, interpolation, place_xA)


def _ranks_backward(residuals: Any, gradient_xA: Array) -> tuple[jax.Array, None, None]:
    value_xA, valid_xA, interpolation, place_xA = residuals
    # Subtracted as integers: equal ranks, the most of them, must give a gradient of exactly 0.
    change_xA = _places(value_xA + interpolation * gradient_xA, valid_xA) - place_xA
    return _share(change_xA, valid_xA) / (interpolation + INTERPOLATION_OFFSET), None, None


ranks.defvjp(_ranks_forward, _ranks_backward)


def ranksim_loss(
    embedding_AxH: Array,
    label_A: Array,
    valid_A: Array,
    interpolation: Array | float,
    reduction: Literal["mean", "sum"],
) -> jax.Array:
    """Returns how far, per anchor, the order by similarity is from that by label (BASELINES.md 4.4).

    The reference sums over the anchors. `mean` divides value and gradient by their number n: lambda grows by n there,
    so that lambda times the incoming gradient, which decides the ranks that are compared, is that of the sum.
    """
    num_anchors = len(label_A)
    valid_AxA = jnp.broadcast_to(valid_A[None], (num_anchors, num_anchors))
    count = jnp.maximum(valid_A.sum(), 1)
    divisor = count if reduction == "mean" else 1
    rank_AxA = ranks(cosine_similarities(embedding_AxH), valid_AxA, interpolation * divisor)
    distance_AxA = jnp.abs(label_A[:, None] - label_A[None])
    target_AxA = _share(_places(-distance_AxA, valid_AxA), valid_AxA)
    error_A = jnp.sum((rank_AxA - target_AxA) ** 2, axis=1) / count
    return jnp.sum(jnp.where(valid_A, error_A, 0.0)) / divisor


class MdanHead(nn.Module):
    """Channels, controller and regression of one horizon."""

    config: MdanConfig
    num_buckets: int

    @nn.compact
    def __call__(self, bottom_BxD: Array, mask_B: Array, train: bool) -> Outputs:
        """Returns value [B], embedding [B, H] and the controller's logits [B, N]."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        *sizes, width = config.channel_sizes
        hidden_sizes, output_size = (sizes, width) if config.channel_output == "linear" else (config.channel_sizes, 0)
        channels = blocks.Experts(self.num_buckets, hidden_sizes, output_size, dtype=dtype, name="channels")
        channel_BxNxH = channels(bottom_BxD, mask_B, train)
        logits_BxN = blocks.MLP(config.clc_sizes, self.num_buckets, dtype, name="clc")(bottom_BxD).astype(jnp.float32)
        gate_BxN = jax.nn.softmax(logits_BxN, axis=-1).astype(dtype)
        embedding_BxH = jnp.einsum("bn,bnh->bh", gate_BxN, channel_BxNxH)
        value_Bx1 = blocks.Dense(1, dtype=dtype, name="value")(embedding_BxH)
        return {
            "value": value_Bx1[:, 0].astype(jnp.float32),
            "embedding": embedding_BxH.astype(jnp.float32),
            "logits": logits_BxN,
        }


class Mdan(Model):
    """MDAN for K horizons; K > 1 shares the bottom alone."""

    @nn.compact
    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns the heads' outputs stacked along axis 1 (K), see `MdanHead`, and priority [B, K].

        The priority decides which rows the distance loss compares: random in training, the order of rows without. The
        arguments are those of `Model`.
        """
        x_BxF = self.encode(numeric_BxC, categorical_BxD)
        bottom_BxD = blocks.MLP(self.config.bottom_sizes, dtype=self.dtype, name="bottom")(x_BxF)
        outputs = self.stack_horizons(
            lambda k: MdanHead(self.config, self.num_buckets, name=f"head_{k}")(bottom_BxD, mask_B, train)
        )
        shape = outputs["value"].shape
        if train:
            priority_BxK = self.draw_rows(jax.random.uniform, shape)
        else:
            priority_BxK = jnp.broadcast_to(jnp.arange(shape[0], dtype=jnp.float32)[:, None], shape)
        return {**outputs, "priority": priority_BxK}

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns regression + w_c * cross entropy + w_d * distance (BASELINES.md 4.2), and these terms, summed over K.

        The distance is a mean over the anchors' pairs and the other two are means over the known rows, the rows of the
        cross entropy weighted by class. Its weights have mean 1 over the buckets, not over the rows.
        """
        config, mask = self.config, targets.mask
        if config.regression == "mse":
            error_BxK = (outputs["value"] - targets.scaled) ** 2
        else:
            error_BxK = losses.huber(outputs["value"], targets.scaled, config.huber_delta)
        weight_KxN = class_weights(labels.positive_rate, self.num_buckets)
        weight_BxK = jnp.take_along_axis(weight_KxN, targets.bucket.T, axis=1).T
        entropy_BxK = losses.cross_entropy(jax.nn.log_softmax(outputs["logits"], axis=-1), targets.bucket)
        terms = {
            "regression": losses.sum_of_means(error_BxK, mask, targets.num_known),
            "cross_entropy": losses.sum_of_means(weight_BxK * entropy_BxK, mask, targets.num_known),
            "distance": self._distance(outputs, targets, labels),
        }
        classification = config.classification_weight * terms["cross_entropy"]
        return terms["regression"] + classification + config.distance_weight * terms["distance"], terms

    def _distance(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> jax.Array:
        config = self.config

        def of_horizon(embedding_BxH: Array, label_B: Array, priority_B: Array, mask_B: Array, largest: Array) -> Array:
            index_A, valid_A = choose_anchors(label_B, priority_B, mask_B, config.num_anchors)
            anchors = (embedding_BxH[index_A], label_B[index_A], valid_A)
            if config.distance == "pairwise":
                return pairwise_loss(*anchors, largest)
            return ranksim_loss(*anchors, config.interpolation, config.anchor_reduction)

        # The largest label after truncation; under an automatic scale that is the cap, BASELINES.md's y_max.
        rows = (outputs["embedding"], targets.scaled, outputs["priority"], targets.mask)
        # The anchors come from the whole batch: every device compares all of them.
        arguments = (*map(self.batch_axis.all_rows, rows), labels.quantiles[:, -1])
        return self.batch_axis.share(jnp.sum(jax.vmap(of_horizon, in_axes=(1, 1, 1, 1, 0))(*arguments)))

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the regressed label on the training scale [B, K].

        It may be negative and is not clipped at 0, as amounts are by BASELINES.md 4.2: ranking and calibration need the
        order below 0 too.
        """
        return outputs["value"]

    def bucket_probabilities(self, outputs: Outputs) -> jax.Array | None:
        """Returns the controller's probabilities [B, K, N], which are the weights of the channels too."""
        return jax.nn.softmax(outputs["logits"], axis=-1)

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Returns the weights of the channels as `attention` [B, K, N]."""
        return {"attention": jax.nn.softmax(outputs["logits"], axis=-1)}
