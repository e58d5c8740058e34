"""MEAN, the Multi-Expert Adaptive Network (paper section 3; equation numbers are the paper's).

A shared bottom feeds two branches per horizon. MVFE mixes M experts into N bucket embeddings, lets them attend to
each other and regresses the label. DAM classifies the label's bucket. The alignment pulls DAM's probabilities b and
the mean attention theta towards each other from both sides.
"""

import dataclasses
from typing import ClassVar, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax import losses
from mean_jax.config import require
from mean_jax.labels import LabelConstants
from mean_jax.models import blocks
from mean_jax.models.base import Model, Outputs, Terms
from mean_jax.models.initial import Normal
from mean_jax.types import Array, Targets


@dataclasses.dataclass(frozen=True)
class MeanConfig:
    """The paper's settings (section 4.1) and the choices that it leaves open."""

    SCALARS: ClassVar[tuple[str, ...]] = ("huber_delta", "kl_weight", "beta", "gamma", "tau")

    name: Literal["mean"] = "mean"
    multi_task: bool = False  # MTL-MEAN: one network with an output per horizon, losses summed
    bottom_sizes: tuple[int, ...] = (512, 256)
    num_experts: int = 5
    expert_size: int = 64
    # mmoe: a softmax over the experts per bucket, which eq. 2 means. printed: eq. 2-3 to the letter, one softmax over
    # the buckets whose entry i scales the plain sum of all experts.
    gate: Literal["mmoe", "printed"] = "mmoe"
    attention: Literal["row", "pairwise"] = "row"  # row: as eq. 4-5 print it; pairwise: tanh(W_q h_t + W_k h_t')
    dam: bool = True  # False: MVFE alone, without DAM and alignment
    dam_sizes: tuple[int, ...] = (256, 128, 64)
    dam_bottom: Literal["shared", "own"] = "shared"  # own: DAM gets a bottom of its own instead of the shared one
    huber_delta: float = 1.0
    kl_weight: float = 1.0  # 0: without the KL term
    beta: float = 1.0  # weight of the bucket cross entropy; the paper does not give it
    gamma: float = 1.0  # weight of the soft distillation; 0: without
    tau: float = 2.0  # distillation temperature
    log_theta: bool = False  # soften log theta instead of theta in eq. 14
    stop_gradient_kl: Literal["none", "b", "theta"] = "none"  # side of eq. 13 that gets no gradient
    stop_gradient_distillation: Literal["none", "b", "theta"] = "none"  # likewise for the soft term of eq. 14
    batch_norm_momentum: float = 0.9  # of the running statistics; the paper does not give it
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("num_experts", "expert_size"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        for name in ("huber_delta", "tau"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a positive number")
        for name in ("kl_weight", "beta", "gamma"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")
        for name in ("bottom_sizes", "dam_sizes"):
            require(
                min(getattr(self, name), default=1) >= 1, f"model.{name}", getattr(self, name), "sizes of 1 or more"
            )
        require(0 <= self.batch_norm_momentum < 1, "model.batch_norm_momentum", self.batch_norm_momentum, "in [0, 1)")


def _is_zero(weight: float | Array) -> bool:
    return isinstance(weight, float) and weight == 0.0


class DistributionAttention(nn.Module):
    """The attention over bucket embeddings (eq. 4-5): A_BxNxN, each row a softmax over the buckets."""

    form: Literal["row", "pairwise"]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, f_BxNxH: Array) -> jax.Array:
        """Returns log A_BxNxN float32."""
        num_buckets, size = f_BxNxH.shape[1:]
        init = Normal(fan_in_axis=0)
        query_HxH = self.param("query", init, (size, size)).astype(self.dtype)
        key_HxH = self.param("key", init, (size, size)).astype(self.dtype)
        bias_1xH = self.param("bias", nn.initializers.zeros, (size,)).astype(self.dtype)[None]
        if self.form == "row":
            # W_q h_t + W_k h_t is one product with the sum of both matrices. Rows and buckets are one axis BN in it,
            # so that the gradients of the kernels are plain GEMMs without a transposed copy.
            hidden_BNxH = jnp.tanh(f_BxNxH.reshape(-1, size) @ (query_HxH + key_HxH) + bias_1xH)
            logits_BNxN = blocks.Dense(num_buckets, dtype=self.dtype, name="score")(hidden_BNxH)
            logits_BxNxN = logits_BNxN.reshape(-1, num_buckets, num_buckets)
        else:
            query_BxNx1xH = (f_BxNxH @ query_HxH)[:, :, None]
            key_Bx1xNxH = (f_BxNxH @ key_HxH)[:, None]
            hidden_BxNxNxH = jnp.tanh(query_BxNx1xH + key_Bx1xNxH + bias_1xH[None, None])
            logits_BxNxN = blocks.Dense(1, dtype=self.dtype, name="score")(hidden_BxNxNxH)[..., 0]
        return jax.nn.log_softmax(logits_BxNxN.astype(jnp.float32), axis=-1)


class MeanHead(nn.Module):
    """Gates, attention, regression and DAM of one horizon."""

    config: MeanConfig
    num_buckets: int

    @nn.compact
    def __call__(self, bottom_BxD: Array, expert_BxMxH: Array, dam_input_BxD: Array) -> dict[str, jax.Array]:
        """Returns value [B], gate [B, N, M], the weights of the experts, log_theta [B, N] and, with DAM, logits [B, N].

        The logits are the paper's k.
        """
        dtype = jnp.dtype(self.config.compute_dtype)
        num_experts = self.config.num_experts
        if self.config.gate == "mmoe":
            gate_BxNxM = blocks.softmax_gates(bottom_BxD, self.num_buckets, num_experts, dtype)
        else:
            gate_Bx1xN = blocks.softmax_gates(bottom_BxD, 1, self.num_buckets, dtype)
            gate_BxNxM = jnp.repeat(gate_Bx1xN.transpose(0, 2, 1), num_experts, axis=2)
        f_BxNxH = blocks.mix_experts(gate_BxNxM, expert_BxMxH)
        log_a_BxNxN = DistributionAttention(self.config.attention, dtype, name="attention")(f_BxNxH)
        # Eq. 12 in log space, so that the divergence below stays finite where a softmax underflows.
        log_theta_BxN = jax.nn.logsumexp(log_a_BxNxN, axis=1) - jnp.log(self.num_buckets)
        # Eq. 6: the mean over t of A_t H is theta^T H, one weighted sum instead of N.
        embedding_BxH = jnp.einsum("bn,bnh->bh", jnp.exp(log_theta_BxN).astype(dtype), f_BxNxH)
        value_Bx1 = blocks.Dense(1, dtype=dtype, name="value")(embedding_BxH)
        outputs = {
            "value": value_Bx1[:, 0].astype(jnp.float32),
            "gate": gate_BxNxM,
            "log_theta": log_theta_BxN,
        }
        if self.config.dam:
            logits_BxN = blocks.MLP(self.config.dam_sizes, self.num_buckets, dtype, name="dam")(dam_input_BxD)
            outputs["logits"] = logits_BxN.astype(jnp.float32)
        return outputs


class Mean(Model):
    """MEAN for K horizons: K = 1 is the paper's model, K > 1 MTL-MEAN with shared bottom and experts."""

    @nn.compact
    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns the heads' outputs stacked along axis 1 (K), see `MeanHead`; the arguments are those of `Model`."""
        config, dtype = self.config, self.dtype
        x_BxF = self.encode(numeric_BxC, categorical_BxD)
        bottom_BxD = blocks.MLP(config.bottom_sizes, dtype=dtype, name="bottom")(x_BxF)
        own_bottom = config.dam and config.dam_bottom == "own"
        dam_input_BxD = (
            blocks.MLP(config.bottom_sizes, dtype=dtype, name="dam_bottom")(x_BxF) if own_bottom else bottom_BxD
        )
        experts = blocks.Experts(
            config.num_experts,
            (config.expert_size,),
            batch_norm_momentum=config.batch_norm_momentum,
            batch_axis=self.batch_axis,
            dtype=dtype,
            name="experts",
        )
        expert_BxMxH = experts(bottom_BxD, mask_B, train)
        return self.stack_horizons(
            lambda k: MeanHead(config, self.num_buckets, name=f"head_{k}")(bottom_BxD, expert_BxMxH, dam_input_BxD)
        )

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns the total loss (eq. 17), a scalar, and its terms; each term is a masked mean, summed over K."""
        config = self.config
        terms_BxK = {"huber": losses.huber(outputs["value"], targets.scaled, config.huber_delta)}
        if config.dam:
            terms_BxK |= self._alignment(outputs, targets)
        known = (targets.mask, targets.num_known)
        terms = {name: losses.sum_of_means(values_BxK, *known) for name, values_BxK in terms_BxK.items()}
        weights = {"huber": 1.0, "kl": config.kl_weight, "cross_entropy": config.beta, "distillation": config.gamma}
        # An ablated term is still logged, but must not touch the gradient. A swept weight is an array, never skipped.
        weighted = [weights[name] * term for name, term in terms.items() if not _is_zero(weights[name])]
        return jnp.sum(jnp.stack(weighted)), terms

    def _alignment(self, outputs: Outputs, targets: Targets) -> dict[str, jax.Array]:
        config = self.config
        logits, log_theta = outputs["logits"], outputs["log_theta"]
        stop = jax.lax.stop_gradient
        kl_logits = stop(logits) if config.stop_gradient_kl == "b" else logits
        kl_log_theta = stop(log_theta) if config.stop_gradient_kl == "theta" else log_theta
        soft_logits = stop(logits) if config.stop_gradient_distillation == "b" else logits
        soft_log_theta = stop(log_theta) if config.stop_gradient_distillation == "theta" else log_theta
        # As printed, theta is a probability vector under a second softmax (eq. 14).
        theta_score = soft_log_theta if config.log_theta else jnp.exp(soft_log_theta)
        teacher = jax.nn.softmax(theta_score / config.tau, axis=-1)
        return {
            "kl": losses.kl_divergence(jax.nn.log_softmax(kl_logits, axis=-1), kl_log_theta),
            "cross_entropy": losses.cross_entropy(jax.nn.log_softmax(logits, axis=-1), targets.bucket),
            "distillation": losses.soft_cross_entropy(teacher, jax.nn.log_softmax(soft_logits / config.tau, axis=-1)),
        }

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the prediction on the training scale [B, K]; it may be negative, and often is for zero spend."""
        return outputs["value"]

    def bucket_probabilities(self, outputs: Outputs) -> jax.Array | None:
        """Returns b (eq. 10) [B, K, N], or None without DAM."""
        return jax.nn.softmax(outputs["logits"], axis=-1) if self.config.dam else None

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Returns what the report shows per true bucket: mean attention [B, K, N] and gates [B, K, N, M]."""
        return {"attention": jnp.exp(outputs["log_theta"]), "gate": outputs["gate"]}
