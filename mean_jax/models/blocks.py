"""Blocks that several models share: stacks of dense layers, experts, gates."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax.types import Array


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
            x_BxF = nn.relu(nn.Dense(size, dtype=self.dtype)(x_BxF))
        return nn.Dense(self.output_size, dtype=self.dtype)(x_BxF) if self.output_size else x_BxF


class Experts(nn.Module):
    """M experts E_j of one Dense layer, BatchNorm and ReLU each, computed as one product (paper section 4.1)."""

    num_experts: int
    size: int
    batch_norm_momentum: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxD: Array, mask_B: Array, train: bool) -> jax.Array:
        """Returns expert_BxMxH; only rows under the mask enter the batch statistics."""
        shape = (x_BxD.shape[1], self.num_experts, self.size)
        kernel_DxMxH = self.param("kernel", nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2)), shape)
        # No bias: the mean that BatchNorm subtracts would cancel it, and its shift takes the place.
        # One matrix product over all experts: a contraction over a flat last axis runs as a plain GEMM everywhere.
        flat_BxE = x_BxD.astype(self.dtype) @ kernel_DxMxH.reshape(shape[0], -1).astype(self.dtype)
        norm = nn.BatchNorm(use_running_average=not train, momentum=self.batch_norm_momentum, dtype=self.dtype)
        # A batch without any labelled row would give 0/0; its loss is 0 whatever the statistics are.
        mask_B = jnp.asarray(mask_B) | ~jnp.any(mask_B)
        hidden_BxE = nn.relu(norm(flat_BxE, mask=mask_B[:, None]))
        return hidden_BxE.reshape(-1, *shape[1:])


def softmax_gates(x_BxD: Array, num_gates: int, num_experts: int, dtype: jnp.dtype) -> jax.Array:
    """Returns gate_BxNxM, one softmax over the experts per gate, from a bias-free product W_g x (eq. 3).

    Called inside a compact module, which then owns the kernel.
    """
    logits_BxE = nn.Dense(num_gates * num_experts, use_bias=False, dtype=dtype, name="gate")(x_BxD)
    return jax.nn.softmax(logits_BxE.reshape(-1, num_gates, num_experts), axis=-1)


def mix_experts(gate_BxNxM: Array, expert_BxMxH: Array) -> jax.Array:
    """Returns f_BxNxH = sum_m gate[n, m] * expert[m] (eq. 2 with the expert index the MMoE form means)."""
    return jnp.einsum("bnm,bmh->bnh", gate_BxNxM, expert_BxMxH)
