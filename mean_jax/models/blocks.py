"""Blocks that several models share: stacks of dense layers, alone or in parallel, and gates over experts."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax.batch_axis import WHOLE_BATCH, BatchAxis
from mean_jax.models.initial import Normal
from mean_jax.types import Array

Dense = functools.partial(nn.Dense, kernel_init=Normal(fan_in_axis=0))
MIN_VARIANCE = 1e-5  # added to the variance by which BatchNorm divides, as everywhere


class MLP(nn.Module):
    """Dense + ReLU layers, then a linear layer of `output_size` if that is not 0."""

    hidden_sizes: Sequence[int]
    output_size: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxF: Array) -> jax.Array:
        """Returns [B, output_size or hidden_sizes[-1]]."""
        x_BxF = jnp.asarray(x_BxF, self.dtype)
        for size in self.hidden_sizes:
            x_BxF = nn.relu(Dense(size, dtype=self.dtype)(x_BxF))
        return Dense(self.output_size, dtype=self.dtype)(x_BxF) if self.output_size else x_BxF


class BatchNorm(nn.Module):
    """Normalises each column over the masked rows of the whole batch, however many devices share it.

    Flax's own averages the means of the devices, which is the mean of the batch only if as many rows are under the mask
    on each; the running statistics would move on a batch without any.
    """

    momentum: float
    batch_axis: BatchAxis = WHOLE_BATCH
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxE: Array, mask_B: Array, train: bool) -> jax.Array:
        """Returns [B, E]; in training by the statistics of the batch, which the running ones follow."""
        x_BxE = jnp.asarray(x_BxE, jnp.float32)
        width = x_BxE.shape[1]
        mean_E = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        variance_E = self.variable("batch_stats", "var", jnp.ones, (width,))
        mean, variance = mean_E.value, variance_E.value
        if train:
            masked_BxE = jnp.where(mask_B[:, None], x_BxE, 0.0)
            count_1 = jnp.sum(mask_B, dtype=jnp.float32)[None]
            # One sum over the devices for all three.
            parts = (masked_BxE.sum(axis=0), (masked_BxE**2).sum(axis=0), count_1)
            total, squares, count_1 = jnp.split(self.batch_axis.sum(jnp.concatenate(parts)), (width, 2 * width))
            mean = total / jnp.maximum(count_1, 1.0)
            variance = jnp.maximum(squares / jnp.maximum(count_1, 1.0) - mean**2, 0.0)
            if not self.is_initializing():
                weight_1 = jnp.where(count_1 > 0, 1.0 - self.momentum, 0.0)
                mean_E.value += weight_1 * (mean - mean_E.value)
                variance_E.value += weight_1 * (variance - variance_E.value)
        scale_E = self.param("scale", nn.initializers.ones, (width,))
        bias_E = self.param("bias", nn.initializers.zeros, (width,))
        factor_E = jax.lax.rsqrt(variance + MIN_VARIANCE) * scale_E
        return ((x_BxE - mean[None]) * factor_E[None] + bias_E[None]).astype(self.dtype)


class Experts(nn.Module):
    """M networks of one shape and separate parameters on the same input, each layer computed as one product.

    The layers are Dense, BatchNorm if `batch_norm_momentum` is given, and ReLU; then a linear layer of `output_size` if
    that is not 0. MEAN's experts have one layer with BatchNorm (paper section 4.1), those of MMoE several without.
    """

    num_experts: int
    hidden_sizes: Sequence[int]
    output_size: int = 0
    batch_norm_momentum: float | None = None
    batch_axis: BatchAxis = WHOLE_BATCH  # of the batch statistics
    dtype: jnp.dtype = jnp.float32
    output_bias_init: nn.initializers.Initializer = nn.initializers.zeros  # of the output layer, [M, output_size]

    @nn.compact
    def __call__(self, x_BxD: Array, mask_B: Array, train: bool) -> jax.Array:
        """Returns expert_BxMxH; only rows under the mask enter the batch statistics."""
        hidden = jnp.asarray(x_BxD, self.dtype)
        for index, size in enumerate(self.hidden_sizes):
            # No bias before BatchNorm: the mean that it subtracts would cancel it, and its shift takes the place.
            hidden = self._dense(hidden, index, size, use_bias=self.batch_norm_momentum is None)
            if self.batch_norm_momentum is not None:
                norm = BatchNorm(self.batch_norm_momentum, self.batch_axis, self.dtype)
                hidden = norm(hidden.reshape(len(hidden), -1), mask_B, train).reshape(hidden.shape)
            hidden = nn.relu(hidden)
        if not self.output_size:
            return hidden
        return self._dense(hidden, len(self.hidden_sizes), self.output_size, bias_init=self.output_bias_init)

    def _dense(
        self,
        x: jax.Array,
        index: int,
        size: int,
        use_bias: bool = True,
        bias_init: nn.initializers.Initializer = nn.initializers.zeros,
    ) -> jax.Array:
        """Returns [B, M, size] from x_BxD, which all experts read, or from x_BxMxH, of which each reads its own."""
        num_experts, width = self.num_experts, x.shape[-1]
        if x.ndim == 2:
            init, shape = Normal(fan_in_axis=0), (width, num_experts, size)
            kernel_DxMxH = self.param(f"kernel_{index}", init, shape).astype(self.dtype)
            # One matrix product over all experts: a contraction over a flat last axis is a plain GEMM everywhere.
            y_BxMxH = (x @ kernel_DxMxH.reshape(width, -1)).reshape(-1, num_experts, size)
        else:
            init, shape = Normal(fan_in_axis=1), (num_experts, width, size)
            kernel_MxDxH = self.param(f"kernel_{index}", init, shape).astype(self.dtype)
            # Experts first: XLA's batched product over a middle axis takes half as long again on a CPU.
            y_BxMxH = (x.transpose(1, 0, 2) @ kernel_MxDxH).transpose(1, 0, 2)
        if not use_bias:
            return y_BxMxH
        bias_MxH = self.param(f"bias_{index}", bias_init, (num_experts, size)).astype(self.dtype)
        return y_BxMxH + bias_MxH[None]


def softmax_gates(x_BxD: Array, num_gates: int, num_experts: int, dtype: jnp.dtype) -> jax.Array:
    """Returns gate_BxNxM, one softmax over the experts per gate, from a bias-free product W_g x (eq. 3).

    Called inside a compact module, which then owns the kernel.
    """
    logits_BxE = Dense(num_gates * num_experts, use_bias=False, dtype=dtype, name="gate")(x_BxD)
    return jax.nn.softmax(logits_BxE.reshape(-1, num_gates, num_experts), axis=-1)


def mix_experts(gate_BxNxM: Array, expert_BxMxH: Array) -> jax.Array:
    """Returns f_BxNxH = sum_m gate[n, m] * expert[m] (eq. 2 with the expert index the MMoE form means)."""
    return jnp.einsum("bnm,bmh->bnh", gate_BxNxM, expert_BxMxH)
