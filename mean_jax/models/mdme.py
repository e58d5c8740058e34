"""MDME, the module of ODMN that predicts one horizon (Li et al., CIKM 2022; BASELINES.md sections 3.1-3.4).

Labels are cut into N sub-distributions: zero, and P = N - 1 of positive labels with equal shares; each of the latter
into J buckets with equal shares. Towers classify the sub-distribution and, given it, the bucket, each helped by an
ordinal tower as its teacher, and say where in the bucket the label lies. All of it happens on the training scale.

Where quantiles coincide, buckets and whole sub-distributions are empty. Shapes are static, so they keep their outputs,
but have probability 0 and no part in any loss: as if they had been merged with their neighbours.

Letters beside those of `types.py`: P positive sub-distributions, J buckets in each, E = P J of them in one row,
L = 1 + E with zero; C classes of an ordinal tower and its M = C - 1 logits.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mean_jax import losses
from mean_jax.labels import LabelConstants
from mean_jax.models import blocks
from mean_jax.types import Array

EMPTY_LOGIT = -1e9  # of a class that no label can fall in: its probability is exactly 0 in float32
# Relative. Edges and labels come to the training scale on different ways and round differently there; a price that
# many customers pay is an edge, and must not lie above it by rounding.
EDGE_TOLERANCE = 1e-6


class Grid(NamedTuple):
    """The buckets of one horizon or of several, with leading axes of the horizons."""

    low: jax.Array  # [P, J] training scale; bucket (p, j) holds the labels in (low, low + width]
    width: jax.Array  # [P, J] >= 0

    @property
    def has_bucket(self) -> jax.Array:
        """[P, J] False where equal quantiles leave a bucket empty."""
        return self.width > 0

    @property
    def has_class(self) -> jax.Array:
        """[N] whether a label can fall in the sub-distribution; zero always."""
        positive_xP = self.has_bucket.any(axis=-1)
        return jnp.concatenate([jnp.ones_like(positive_xP[..., :1]), positive_xP], axis=-1)


ValueFn: TypeAlias = Callable[[dict[str, jax.Array], Grid], jax.Array]  # outputs and grid of one horizon -> value_B


class GridTargets(NamedTuple):
    """Where the labels of one horizon lie in its grid."""

    sub_distribution: Array  # [B] int32 in [0, N)
    bucket: Array  # [B] int32 in [0, J), within the sub-distribution; 0 for zero labels
    bias: Array  # [B] position within the bucket in [0, 1]; 0 for zero labels


def make_grid(labels: LabelConstants, num_positive: int, num_buckets: int) -> Grid:
    """Returns the grid [K, P, J]: edges at equal steps of the positive labels' quantiles, from 0 to the largest label.

    The first edge is 0, not the smallest label of training: a smaller one belongs to the first bucket, and so do labels
    that all have the smallest value.
    """
    last = labels.quantiles.shape[1] - 1
    position_E = np.linspace(0.0, last, num_positive * num_buckets + 1)
    below_E = np.minimum(position_E.astype(int), last - 1)
    weight_1xE = (position_E - below_E).astype(np.float32)[None]
    quantiles_KxQ = jnp.asarray(labels.quantiles)
    low_KxE, high_KxE = quantiles_KxQ[:, below_E], quantiles_KxQ[:, below_E + 1]
    # The interpolation rounds, so that of two all but equal edges the second may come out smaller.
    edges_KxE = jax.lax.cummax(low_KxE + weight_1xE * (high_KxE - low_KxE), axis=1).at[:, 0].set(0.0)
    shape = (len(edges_KxE), num_positive, num_buckets)
    low, high = edges_KxE[:, :-1].reshape(shape), edges_KxE[:, 1:].reshape(shape)
    return Grid(low, high - low)


def locate(grid: Grid, scaled_B: Array) -> GridTargets:
    """Returns where labels on the training scale lie in the grid [P, J] of their horizon.

    The sub-distribution is the label's bucket of `Targets`, up to labels that scaling or truncation puts on the other
    side of an edge. No label lies in an empty bucket: one beyond the last edge counts as lying on it.
    """
    num_buckets = grid.low.shape[1]
    low_E, width_E = grid.low.reshape(-1), grid.width.reshape(-1)
    scaled_B = jnp.minimum(scaled_B, low_E[-1] + width_E[-1])
    is_above_BxE = scaled_B[:, None] > low_E[None] * (1.0 + EDGE_TOLERANCE)
    index_B = jnp.maximum(is_above_BxE.sum(axis=1) - 1, 0)
    is_positive_B = scaled_B > 0
    width_B = width_E[index_B]
    bias_B = jnp.clip((scaled_B - low_E[index_B]) / jnp.where(width_B > 0, width_B, 1.0), 0.0, 1.0)
    return GridTargets(
        jnp.where(is_positive_B, 1 + index_B // num_buckets, 0),
        jnp.where(is_positive_B, index_B % num_buckets, 0),
        jnp.where(is_positive_B, bias_B, 0.0),
    )


def separates(is_possible_xC: Array) -> jax.Array:
    """Returns [..., C - 1]: whether "class > j" divides the possible classes anew, the others being merged away."""
    is_possible_xC = jnp.asarray(is_possible_xC)
    num_from_xC = jnp.cumsum(is_possible_xC[..., ::-1], axis=-1)[..., ::-1]
    return is_possible_xC[..., :-1] & (num_from_xC[..., 1:] > 0)


def ordinal_loss(logits_xM: Array, label: Array, is_possible_xC: Array) -> jax.Array:
    """Returns the sum of the binary cross entropies of "class > j", j = 0..C-2, that divide the classes (3.2, 3.3).

    Args:
      logits_xM: M = C - 1, any leading shape.
      label: int32 class of the leading shape.
      is_possible_xC: False for classes that no label can fall in; its leading shape broadcasts.
    """
    is_above_xM = label[..., None] > jax.lax.broadcasted_iota(jnp.int32, logits_xM.shape, logits_xM.ndim - 1)
    entropy_xM = jax.nn.softplus(logits_xM) - jnp.where(is_above_xM, logits_xM, 0.0)
    return jnp.sum(jnp.where(separates(is_possible_xC), entropy_xM, 0.0), axis=-1)


def ordinal_probabilities(logits_xM: Array, is_possible_xC: Array) -> jax.Array:
    """Returns the probabilities of the C classes from P(class > j) = sigmoid(logit_j) (3.2).

    Differences of neighbouring exceedances, cut at 0 and normalised, as free logits need not be in order. Before the
    cut they sum to 1, so their sum is never less and needs no guard against 0 but where no class is possible, which
    gives zeros. The arguments are those of `ordinal_loss`.
    """
    above_xM = jnp.where(separates(is_possible_xC), jax.nn.sigmoid(logits_xM), 0.0)
    above_xC = jnp.concatenate([above_xM, jnp.zeros_like(above_xM[..., :1])], axis=-1)
    previous, masses = jnp.ones_like(above_xC[..., 0]), []
    for index in range(above_xC.shape[-1]):
        is_possible, above = is_possible_xC[..., index], above_xC[..., index]
        masses.append(jnp.where(is_possible, jnp.maximum(previous - above, 0.0), 0.0))
        previous = jnp.where(is_possible, above, previous)
    mass_xC = jnp.stack(masses, axis=-1)
    return mass_xC / jnp.maximum(mass_xC.sum(axis=-1, keepdims=True), 1.0)


class OrdinalOutput(nn.Module):
    """Logits of the exceedances of M towers: free, or CORAL's one score with ordered thresholds (3.2)."""

    form: Literal["free", "coral"]
    num_towers: int
    size: int

    @nn.compact
    def __call__(self, hidden_BxMxH: Array, mask_B: Array, train: bool) -> jax.Array:
        """Returns [B, M, size]."""
        dtype = jnp.asarray(hidden_BxMxH).dtype
        width = self.size if self.form == "free" else 1
        score_BxMxS = blocks.Experts(self.num_towers, (), width, dtype=dtype, name="score")(hidden_BxMxH, mask_B, train)
        if self.form == "free":
            return score_BxMxS
        steps_MxS = jax.nn.softplus(self.param("steps", nn.initializers.zeros, (self.num_towers, self.size)))
        return score_BxMxS - jnp.cumsum(steps_MxS, axis=1).astype(dtype)[None]


class MdmeHead(nn.Module):
    """The towers of one horizon."""

    tower_sizes: tuple[int, ...]
    num_positive: int  # P
    num_buckets: int  # J
    ordinal: Literal["free", "coral"]
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h_BxD: Array, grid: Grid, mono_class_BxN: Array, mono_bucket_BxPxJ: Array, mask_B: Array, train: bool
    ) -> dict[str, jax.Array]:
        """Returns float32 logits: class [B, N] (DCT), class_ordinal [B, P] (DOT), bucket [B, P, J] (BCT),
        bucket_ordinal [B, P, J - 1] (BOT), and bias [B, P, J] (BBT), the logit of the position in the bucket.

        Args:
          h_BxD: representation of the customer for this horizon.
          grid: [P, J] of this horizon.
          mono_class_BxN: what the horizon before adds to the classification towers, see `odmn.MonoUnit`.
          mono_bucket_BxPxJ: likewise within the sub-distributions.
          mask_B: rows that count.
          train: as for all modules.
        """
        size, dtype = self.num_positive, self.dtype
        towers = blocks.Experts(2 + 3 * size, self.tower_sizes, dtype=dtype, name="towers")
        hidden_BxMxH = towers(h_BxD, mask_B, train)
        bucket_parts = (hidden_BxMxH[:, 2 + part * size : 2 + (part + 1) * size] for part in range(3))
        hidden_class, hidden_ordinal, hidden_bias = bucket_parts
        output = blocks.Experts(size, (), self.num_buckets, dtype=dtype, name="bct")
        outputs = {
            "class": blocks.Dense(1 + size, dtype=dtype, name="dct")(hidden_BxMxH[:, 0]) + mono_class_BxN,
            "class_ordinal": OrdinalOutput(self.ordinal, 1, size, name="dot")(hidden_BxMxH[:, 1:2], mask_B, train)[
                :, 0
            ],
            "bucket": output(hidden_class, mask_B, train) + mono_bucket_BxPxJ,
            "bucket_ordinal": OrdinalOutput(self.ordinal, size, self.num_buckets - 1, name="bot")(
                hidden_ordinal, mask_B, train
            ),
            "bias": blocks.Experts(size, (), self.num_buckets, dtype=dtype, name="bbt")(hidden_bias, mask_B, train),
        }
        outputs = {name: value.astype(jnp.float32) for name, value in outputs.items()}
        outputs["class"] = jnp.where(grid.has_class[None], outputs["class"], EMPTY_LOGIT)
        outputs["bucket"] = jnp.where(grid.has_bucket[None], outputs["bucket"], EMPTY_LOGIT)
        return outputs


def joint_probabilities(outputs: dict[str, jax.Array]) -> jax.Array:
    """Returns joint_BxL, the multinomial over zero and all buckets, P(d) P(j | d) (3.5); rows sum to 1."""
    class_BxN = jax.nn.softmax(outputs["class"], axis=-1)
    joint_BxPxJ = class_BxN[:, 1:, None] * jax.nn.softmax(outputs["bucket"], axis=-1)
    return jnp.concatenate([class_BxN[:, :1], joint_BxPxJ.reshape(len(joint_BxPxJ), -1)], axis=1)


def _values(outputs: dict[str, jax.Array], grid: Grid) -> jax.Array:
    """Returns the value that each bucket would predict [B, P, J], low + bias * width."""
    return grid.low[None] + jax.nn.sigmoid(outputs["bias"]) * grid.width[None]


def expected_value(outputs: dict[str, jax.Array], grid: Grid) -> jax.Array:
    """Returns sum_d P(d) sum_j P(j | d) (low + bias * width) [B] (3.4)."""
    joint_BxE = joint_probabilities(outputs)[:, 1:]
    return jnp.sum(joint_BxE * _values(outputs, grid).reshape(joint_BxE.shape), axis=1)


def hard_value(outputs: dict[str, jax.Array], grid: Grid) -> jax.Array:
    """Returns the value of the likeliest bucket of the likeliest sub-distribution [B] (3.4)."""
    class_B = jnp.argmax(outputs["class"], axis=-1)
    bucket_BxPx1 = jnp.argmax(outputs["bucket"], axis=-1)[..., None]
    value_BxP = jnp.take_along_axis(_values(outputs, grid), bucket_BxPx1, axis=-1)[..., 0]
    chosen_B = jnp.take_along_axis(value_BxP, jnp.maximum(class_B - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(class_B > 0, chosen_B, 0.0)


def loss_terms(
    outputs: dict[str, jax.Array], grid: Grid, scaled_B: Array, is_teacher_stopped: bool
) -> dict[str, jax.Array]:
    """Returns the seven terms of one horizon per row, unreduced (3.3).

    The bucket terms of a row are those of the towers of its true sub-distribution; zero labels have none.
    """
    targets = locate(grid, scaled_B)
    is_positive_B = targets.sub_distribution > 0
    own_B = jnp.maximum(targets.sub_distribution - 1, 0)
    is_own_BxPx1 = jax.nn.one_hot(own_B, grid.low.shape[0])[..., None]

    def own(values_BxPxX: Array) -> jax.Array:
        return jnp.sum(is_own_BxPx1 * values_BxPxX, axis=1)

    has_class_1xN, has_bucket_BxJ = grid.has_class[None], grid.has_bucket[own_B]
    bucket_ordinal_BxM = own(outputs["bucket_ordinal"])
    class_teacher_BxN = ordinal_probabilities(outputs["class_ordinal"], has_class_1xN)
    bucket_teacher_BxJ = ordinal_probabilities(bucket_ordinal_BxM, has_bucket_BxJ)
    if is_teacher_stopped:
        class_teacher_BxN, bucket_teacher_BxJ = jax.lax.stop_gradient((class_teacher_BxN, bucket_teacher_BxJ))
    log_class_BxN = jax.nn.log_softmax(outputs["class"], axis=-1)
    log_bucket_BxJ = jax.nn.log_softmax(own(outputs["bucket"]), axis=-1)
    is_bucket_BxJ = jax.nn.one_hot(targets.bucket, grid.low.shape[1])
    bias_B = jnp.sum(is_bucket_BxJ * jax.nn.sigmoid(own(outputs["bias"])), axis=1)
    bucket_terms = {
        "bucket": losses.cross_entropy(log_bucket_BxJ, targets.bucket),
        "bucket_ordinal": ordinal_loss(bucket_ordinal_BxM, targets.bucket, has_bucket_BxJ),
        "bucket_distillation": losses.soft_cross_entropy(bucket_teacher_BxJ, log_bucket_BxJ),
        "bias": (bias_B - targets.bias) ** 2,
    }
    return {
        "class": losses.cross_entropy(log_class_BxN, targets.sub_distribution),
        "class_ordinal": ordinal_loss(outputs["class_ordinal"], targets.sub_distribution, has_class_1xN),
        "class_distillation": losses.soft_cross_entropy(class_teacher_BxN, log_class_BxN),
        **{name: jnp.where(is_positive_B, value_B, 0.0) for name, value_B in bucket_terms.items()},
    }
