"""ODMN, the Order Dependency Monotonic Network (Li et al., CIKM 2022; BASELINES.md section 3).

One network for all horizons: a shared backbone, an MDME module per horizon (`mdme.py`, whose letters P and J are used
here too), and mono units that pass each horizon's distribution on to the next, in the order of the labels. A soft
penalty asks that no horizon is predicted lower than the one before it: horizons nest, the shortest comes first. The
paper was read through notes; its sizes and weights are not known.
"""

import dataclasses
from typing import ClassVar, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax import losses
from mean_jax.batch_axis import WHOLE_BATCH, BatchAxis
from mean_jax.config import require
from mean_jax.labels import LabelConstants
from mean_jax.models import blocks, mdme
from mean_jax.models.base import Model, Outputs, Terms
from mean_jax.types import Array, Targets


@dataclasses.dataclass(frozen=True)
class OdmnConfig:
    """The recommended choices of BASELINES.md section 3."""

    SCALARS: ClassVar[tuple[str, ...]] = ("ordinal_weight", "distillation_weight", "bias_weight", "calibration_weight")
    multi_task: ClassVar[bool] = True  # the dependency between horizons is the model

    name: Literal["odmn"] = "odmn"
    bottom_sizes: tuple[int, ...] = (512, 256)
    backbone: Literal["shared", "mmoe"] = "shared"  # mmoe: experts on the bottom, mixed by a gate per horizon
    num_experts: int = 5  # of mmoe
    expert_sizes: tuple[int, ...] = (256,)  # of mmoe
    tower_sizes: tuple[int, ...] = (128, 64)
    num_sub_buckets: int = 4  # J, buckets within each positive sub-distribution, of which there are num_buckets - 1
    ordinal: Literal["free", "coral"] = "free"  # coral: one score with ordered thresholds per ordinal tower
    mono: bool = True  # False: without mono units
    mono_size: int = 64  # hidden width of a mono unit
    mono_input: Literal["pmf", "survival"] = "pmf"  # survival: P(bucket >= j) in place of P(bucket = j)
    decode: Literal["hard", "expected"] = "hard"  # hard: the likeliest bucket, as the paper; expected: the mean
    running_maximum: bool = False  # raise predictions, in currency, to those of the horizons before
    stop_teacher: bool = True  # no gradient from the distillation to the ordinal towers
    ordinal_weight: float = 1.0
    distillation_weight: float = 1.0
    bias_weight: float = 1.0
    calibration_weight: float = 1.0  # lambda of the penalty on a prediction below the horizon's before
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("bottom_sizes", "expert_sizes", "tower_sizes"):
            sizes = getattr(self, name)
            require(min(sizes, default=1) >= 1, f"model.{name}", sizes, "sizes of 1 or more")
        for name in ("expert_sizes", "tower_sizes"):
            require(len(getattr(self, name)) >= 1, f"model.{name}", getattr(self, name), "one size or more")
        for name in ("num_experts", "mono_size"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        require(self.num_sub_buckets >= 2, "model.num_sub_buckets", self.num_sub_buckets, "2 or more")
        for name in self.SCALARS:
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")


def _non_negative(module: nn.Module, name: str, shape: tuple[int, int]) -> jax.Array:
    """Returns a parameter softplus(V) >= 0, called inside a compact module; it starts around 1 / fan-in."""

    def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jnp.log(jnp.expm1(1.0 / shape[0])) + 0.5 * jax.random.normal(key, shape, dtype)

    return jax.nn.softplus(module.param(name, init, shape))


def calibration_loss(
    value_BxK: Array, mask_BxK: Array, scale_K: Array, batch_axis: BatchAxis = WHOLE_BATCH
) -> jax.Array:
    """Returns the mean of max(y_t - y_t+1, 0) over the rows, summed over neighbouring horizons (3.3).

    Every horizon has a unit of its own on the training scale, so both values are compared in that of the later horizon.
    The penalty needs predictions only: it counts the rows on which either of the two labels is known.

    Args:
      value_BxK: predictions on the training scale. They are the expected values, whatever the decoding: these have
        gradients to all towers, the likeliest bucket's value to its bias alone.
      mask_BxK: known labels.
      scale_K: (transformed) currency per unit of the training scale.
      batch_axis: how the rows are divided.
    """
    ratio_1xU = (scale_K[:-1] / scale_K[1:])[None]  # U = K - 1 neighbours
    excess_BxU = jnp.maximum(value_BxK[:, :-1] * ratio_1xU - value_BxK[:, 1:], 0.0)
    mask_BxU = mask_BxK[:, :-1] | mask_BxK[:, 1:]
    return losses.sum_of_means(excess_BxU, mask_BxU, batch_axis.sum(mask_BxU.sum(axis=0)))


class MonoUnit(nn.Module):
    """Passes the distribution of a horizon on to the next one's classification towers (3.5).

    All weights are non-negative, and no gradient flows back: the harder task must not disturb the easier one. They make
    every logit of the next horizon increase with every probability; an order of the distributions follows from that
    only in tendency.
    """

    size: int
    num_positive: int
    num_buckets: int
    form: Literal["pmf", "survival"]

    @nn.compact
    def __call__(self, joint_BxL: Array) -> tuple[jax.Array, jax.Array]:
        """Returns what is added to the next horizon's class logits [B, N] and bucket logits [B, P, J]."""
        joint_BxL = jax.lax.stop_gradient(joint_BxL)
        if self.form == "survival":
            joint_BxL = jnp.cumsum(joint_BxL[:, ::-1], axis=1)[:, ::-1]
        bias_1xH = self.param("bias", nn.initializers.zeros, (self.size,))[None]
        hidden_BxH = nn.relu(joint_BxL @ _non_negative(self, "hidden", (joint_BxL.shape[1], self.size)) + bias_1xH)
        to_class_BxN = hidden_BxH @ _non_negative(self, "class", (self.size, 1 + self.num_positive))
        to_bucket_BxE = hidden_BxH @ _non_negative(self, "bucket", (self.size, self.num_positive * self.num_buckets))
        return to_class_BxN, to_bucket_BxE.reshape(-1, self.num_positive, self.num_buckets)


class Odmn(Model):
    """ODMN for K horizons in the order of the labels, shortest first; K = 1 is MDME alone."""

    def _grid(self, labels: LabelConstants) -> mdme.Grid:
        return mdme.make_grid(labels, self.num_buckets - 1, self.config.num_sub_buckets)

    @nn.compact
    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns the heads' outputs stacked along axis 1 (K), see `MdmeHead`; the arguments are those of `Model`."""
        config, dtype = self.config, self.dtype
        num_positive, num_buckets = self.num_buckets - 1, config.num_sub_buckets
        x_BxF = self.encode(numeric_BxC, categorical_BxD)
        bottom_BxD = blocks.MLP(config.bottom_sizes, dtype=dtype, name="bottom")(x_BxF)
        body_BxKxD = jnp.repeat(bottom_BxD[:, None], self.num_horizons, axis=1)
        if config.backbone == "mmoe":
            experts = blocks.Experts(config.num_experts, config.expert_sizes, dtype=dtype, name="experts")
            gate_BxKxM = blocks.softmax_gates(bottom_BxD, self.num_horizons, config.num_experts, dtype)
            body_BxKxD = blocks.mix_experts(gate_BxKxM, experts(bottom_BxD, mask_B, train))
        grid = self._grid(labels)
        heads: list[Outputs] = []

        def head(k: int) -> Outputs:
            mono = (jnp.zeros((1, self.num_buckets)), jnp.zeros((1, num_positive, num_buckets)))
            if heads and config.mono:
                unit = MonoUnit(config.mono_size, num_positive, num_buckets, config.mono_input, name=f"mono_{k}")
                mono = unit(mdme.joint_probabilities(heads[-1]))
            module = mdme.MdmeHead(
                config.tower_sizes, num_positive, num_buckets, config.ordinal, dtype, name=f"head_{k}"
            )
            own_grid = jax.tree.map(lambda leaf: leaf[k], grid)
            heads.append(module(body_BxKxD[:, k], own_grid, *mono, mask_B, train))
            return heads[-1]

        return self.stack_horizons(head)

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns the weighted sum of MDME's seven terms and, for K > 1, the calibration loss (3.3), and these terms.

        The former are means over the known rows, zero labels among them, summed over K.
        """
        config, grid = self.config, self._grid(labels)

        def of_horizon(outputs: Outputs, grid: mdme.Grid, scaled_B: Array) -> Terms:
            return mdme.loss_terms(outputs, grid, scaled_B, config.stop_teacher)

        terms_BxK = jax.vmap(of_horizon, in_axes=(1, 0, 1), out_axes=1)(outputs, grid, targets.scaled)
        terms = {
            name: losses.sum_of_means(value_BxK, targets.mask, targets.num_known)
            for name, value_BxK in terms_BxK.items()
        }
        if self.num_horizons > 1:
            expected_BxK = self._decode(mdme.expected_value, outputs, grid)
            terms["calibration"] = calibration_loss(expected_BxK, targets.mask, labels.scale, self.batch_axis)
        weights = {
            "class_ordinal": config.ordinal_weight,
            "bucket_ordinal": config.ordinal_weight,
            "class_distillation": config.distillation_weight,
            "bucket_distillation": config.distillation_weight,
            "bias": config.bias_weight,
            "calibration": config.calibration_weight,
        }
        return jnp.sum(jnp.stack([weights.get(name, 1.0) * term for name, term in terms.items()])), terms

    def _decode(self, value_fn: mdme.ValueFn, outputs: Outputs, grid: mdme.Grid) -> jax.Array:
        return jax.vmap(value_fn, in_axes=(1, 0), out_axes=1)(outputs, grid)

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the decoded value on the training scale [B, K] (3.4)."""
        value_fn = mdme.hard_value if self.config.decode == "hard" else mdme.expected_value
        value_BxK = self._decode(value_fn, outputs, self._grid(labels))
        if not self.config.running_maximum:
            return value_BxK
        scale_1xK = jnp.asarray(labels.scale)[None]
        return jax.lax.cummax(value_BxK * scale_1xK, axis=1) / scale_1xK

    def bucket_probabilities(self, outputs: Outputs) -> jax.Array | None:
        """Returns the probabilities of the sub-distributions [B, K, N], which are the label's buckets."""
        return jax.nn.softmax(outputs["class"], axis=-1)
