"""OptDist: the best of L candidate distributions per customer (Weng et al., CIKM 2024; BASELINES.md section 5).

L sub-distribution networks (SDN) each give the three logits of a zero-inflated log-normal; a selector (the paper's DSM)
gives the probability alpha that each of them is the customer's. Training weights the likelihoods of the candidates by a
Gumbel-softmax sample of alpha and aligns alpha with the candidates' own likelihoods. As ZILN, OptDist reads the scaled
labels and does not depend on their unit.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mean_jax import losses
from mean_jax.config import require
from mean_jax.labels import LabelConstants
from mean_jax.models import blocks
from mean_jax.models.base import Model, Outputs, Terms
from mean_jax.types import Array, Targets

MIN_RATE = 1e-4  # of positive labels, and of zeros, in the initial logit: that of 0 is infinite
MIN_LABEL = 1e-6  # on the training scale, in the initial log means: training labels may be all but 0


@dataclasses.dataclass(frozen=True)
class OptDistConfig:
    """The recommended choices of BASELINES.md 5.2 where the paper's are not known."""

    SCALARS: ClassVar[tuple[str, ...]] = ("w_fce", "w_kl", "focal_gamma")

    name: Literal["optdist"] = "optdist"
    multi_task: bool = False  # one bottom for all horizons, candidates and selector of each its own; losses summed
    bottom_sizes: tuple[int, ...] = (512, 256)
    num_experts: int = 5  # L, candidate distributions; the paper finds 4 or 5 best
    expert_sizes: tuple[int, ...] = (128, 64)  # of each SDN, before its 3 logits
    selector_sizes: tuple[int, ...] = (128, 64)
    selection: Literal["soft", "straight_through"] = "soft"  # straight_through: one-hot, with the gradient of soft
    temperature: float = 1.0  # tau of the Gumbel-softmax, constant over training
    inference: Literal["hard", "soft"] = "hard"  # hard: the likeliest candidate's mean; soft: the mean over alpha
    w_fce: float = 1.0  # weight of the focal cross entropy with the best candidate
    focal_gamma: float = 2.0  # its exponent
    w_kl: float = 1.0  # weight of the divergence from the soft pseudo-label
    kl_direction: Literal["selector", "label"] = "selector"  # selector: KL(alpha || label); label: KL(label || alpha)
    init: Literal["labels", "random"] = "labels"  # labels: biases from the training labels; random: zero biases
    max_sigma: float = losses.MAX_SIGMA
    max_log_mean: float = losses.MAX_LOG_MEAN
    cap_at_largest: bool = False  # bound predictions at the largest (truncated) training label
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, "model.num_experts", self.num_experts, "1 or more")
        for name in ("bottom_sizes", "expert_sizes", "selector_sizes"):
            sizes = getattr(self, name)
            require(min(sizes, default=1) >= 1, f"model.{name}", sizes, "sizes of 1 or more")
        for name in ("temperature", "max_sigma", "max_log_mean"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a positive number")
        for name in ("w_fce", "focal_gamma", "w_kl"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")


def label_biases(labels: LabelConstants, horizon: int) -> Callable[..., jax.Array]:
    """Returns an initialiser of the SDNs' output biases [L, 3] from the training labels (BASELINES.md 5.2).

    The purchase logits start at the logit of the positive rate, the log means at the (i - 1/2) / L quantiles of the log
    positive labels, i = 1..L: without it candidates differ by their random kernels alone.
    """

    def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        num_experts = shape[0]
        rate = jnp.clip(labels.positive_rate[horizon], MIN_RATE, 1.0 - MIN_RATE)
        log_quantiles_Q = jnp.log(jnp.maximum(labels.quantiles[horizon], MIN_LABEL))
        levels_L = (np.arange(num_experts) + 0.5) / num_experts
        mu_L = jnp.interp(levels_L, np.linspace(0.0, 1.0, len(log_quantiles_Q)), log_quantiles_Q)
        purchase_L = jnp.full(num_experts, jnp.log(rate) - jnp.log1p(-rate))
        return jnp.stack([purchase_L, mu_L, jnp.zeros(num_experts)], axis=1).astype(dtype)

    return init


class OptDist(Model):
    """OptDist for K horizons; K > 1 shares the bottom alone."""

    @nn.compact
    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns logits [B, K, L, 3], selector [B, K, L] (logits of alpha) and selection [B, K, L] (the paper's pi).

        The selection has Gumbel noise in training only. The arguments are those of `Model`.
        """
        config, dtype = self.config, self.dtype
        x_BxF = self.encode(numeric_BxC, categorical_BxD)
        bottom_BxD = blocks.MLP(config.bottom_sizes, dtype=dtype, name="bottom")(x_BxF)

        def head(k: int) -> Outputs:
            bias_init = label_biases(labels, k) if config.init == "labels" else nn.initializers.zeros
            experts = blocks.Experts(
                config.num_experts,
                config.expert_sizes,
                3,
                dtype=dtype,
                output_bias_init=bias_init,
                name=f"experts_{k}",
            )
            selector = blocks.MLP(config.selector_sizes, config.num_experts, dtype, name=f"selector_{k}")
            outputs = {"logits": experts(bottom_BxD, mask_B, train), "selector": selector(bottom_BxD)}
            return {name: value.astype(jnp.float32) for name, value in outputs.items()}

        outputs = self.stack_horizons(head)
        shape = outputs["selector"].shape
        noise_BxKxL = self.draw_rows(jax.random.gumbel, shape) if train else jnp.zeros(shape)
        soft_BxKxL = jax.nn.softmax((outputs["selector"] + noise_BxKxL) / config.temperature, axis=-1)
        if config.selection == "soft":
            return {**outputs, "selection": soft_BxKxL}
        hard_BxKxL = jax.nn.one_hot(jnp.argmax(soft_BxKxL, axis=-1), config.num_experts)
        return {**outputs, "selection": soft_BxKxL + jax.lax.stop_gradient(hard_BxKxL - soft_BxKxL)}

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns likelihood + w_fce * focal cross entropy + w_kl * KL (BASELINES.md 5.2), its terms and the usage.

        The first term is the selection's mean of the candidates' negative log likelihoods. The pseudo-labels, the
        candidate of least loss and softmax(-loss), get no gradient. `usage_i` is the share of rows whose likeliest
        candidate is i, `selection_entropy` the mean entropy of alpha in nats; both are means over the K horizons.
        """
        config, known = self.config, (targets.mask, targets.num_known)
        nll_BxKxL = losses.ziln(outputs["logits"], targets.scaled[..., None], config.max_sigma)
        log_alpha_BxKxL = jax.nn.log_softmax(outputs["selector"], axis=-1)
        frozen_BxKxL = jax.lax.stop_gradient(nll_BxKxL)
        log_label_BxKxL = jax.nn.log_softmax(-frozen_BxKxL, axis=-1)
        pair = (log_alpha_BxKxL, log_label_BxKxL)
        terms_BxK = {
            "nll": jnp.sum(outputs["selection"] * nll_BxKxL, axis=-1),
            "focal": losses.focal_cross_entropy(log_alpha_BxKxL, jnp.argmin(frozen_BxKxL, axis=-1), config.focal_gamma),
            "kl": losses.kl_divergence(*(pair if config.kl_direction == "selector" else pair[::-1])),
        }
        terms = {name: losses.sum_of_means(values_BxK, *known) for name, values_BxK in terms_BxK.items()}
        total = terms["nll"] + config.w_fce * terms["focal"] + config.w_kl * terms["kl"]
        chosen_BxK = jnp.argmax(outputs["selector"], axis=-1)
        logged_BxK = {f"usage_{index + 1}": chosen_BxK == index for index in range(config.num_experts)}
        logged_BxK["selection_entropy"] = losses.soft_cross_entropy(jnp.exp(log_alpha_BxKxL), log_alpha_BxKxL)
        averages = {name: losses.sum_of_means(v_BxK, *known) / self.num_horizons for name, v_BxK in logged_BxK.items()}
        return total, terms | averages

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the mean of the likeliest candidate, or the mean over alpha, on the training scale [B, K]."""
        config, selector_BxKxL = self.config, outputs["selector"]
        mean_BxKxL = losses.ziln_mean(outputs["logits"], config.max_sigma, config.max_log_mean)
        if config.inference == "hard":
            chosen_BxKx1 = jnp.argmax(selector_BxKxL, axis=-1, keepdims=True)
            mean_BxK = jnp.take_along_axis(mean_BxKxL, chosen_BxKx1, axis=-1)[..., 0]
        else:
            mean_BxK = jnp.sum(jax.nn.softmax(selector_BxKxL, axis=-1) * mean_BxKxL, axis=-1)
        return jnp.minimum(mean_BxK, labels.quantiles[None, :, -1]) if config.cap_at_largest else mean_BxK
