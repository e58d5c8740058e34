"""DNN-ZILN and MTL-ZILN: zero-inflated log-normal regression (Wang et al. 2019; BASELINES.md sections 1 and 2).

The head gives three logits per customer: purchase probability, mean and deviation of the logarithm of the amount.
DNN-ZILN is one network per horizon; MTL-ZILN gives every horizon its own gate over shared experts (MMoE, Ma et al.
2018) and its own head. Both share MEAN's bottom. ZILN does not depend on the unit of the labels, so it reads the scaled
ones, and only their truncation changes what it learns.
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
from mean_jax.types import Array, Targets


@dataclasses.dataclass(frozen=True)
class ZilnConfig:
    """Defaults are DNN-ZILN with the body that all compared systems share."""

    SCALARS: ClassVar[tuple[str, ...]] = ("mu_penalty", "sigma_penalty")

    name: Literal["ziln"] = "ziln"
    multi_task: bool = False  # MTL-ZILN: one network for all horizons, losses summed
    bottom_sizes: tuple[int, ...] = (512, 256)
    # What stands between bottom and tower: nothing, one expert for all horizons, or a gate per horizon over experts.
    bottom: Literal["none", "shared", "mmoe"] = "none"
    num_experts: int = 5  # of mmoe
    expert_sizes: tuple[int, ...] = (256, 128)  # of mmoe and shared
    tower_sizes: tuple[int, ...] = (256, 128, 64)
    max_sigma: float = losses.MAX_SIGMA
    max_log_mean: float = losses.MAX_LOG_MEAN
    cap_at_largest: bool = False  # bound predictions at the largest (truncated) training label
    normalise_by: Literal["rows", "positives"] = "rows"  # of the log-normal term; positives: as EasyRec does
    mu_penalty: float = 0.0  # weight of mean(mu^2); EasyRec: 0.01
    sigma_penalty: float = 0.0  # weight of mean(r^2), r the logit of sigma; EasyRec: 0.01
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, "model.num_experts", self.num_experts, "1 or more")
        for name in ("bottom_sizes", "expert_sizes", "tower_sizes"):
            sizes = getattr(self, name)
            require(min(sizes, default=1) >= 1, f"model.{name}", sizes, "sizes of 1 or more")
        for name in ("max_sigma", "max_log_mean"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "a positive number")
        for name in ("mu_penalty", "sigma_penalty"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")


class Ziln(Model):
    """ZILN for K horizons: K = 1 is DNN-ZILN, K > 1 with `bottom=mmoe` MTL-ZILN."""

    @nn.compact
    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns logits [B, K, 3]; the arguments are those of `Model`."""
        config, dtype = self.config, self.dtype
        x_BxF = self.encode(numeric_BxC, categorical_BxD)
        bottom_BxD = blocks.MLP(config.bottom_sizes, dtype=dtype, name="bottom")(x_BxF)
        body_BxKxD = jnp.repeat(bottom_BxD[:, None], self.num_horizons, axis=1)
        if config.bottom != "none":
            num_experts = config.num_experts if config.bottom == "mmoe" else 1
            experts = blocks.Experts(num_experts, config.expert_sizes, dtype=dtype, name="experts")
            expert_BxMxH = experts(bottom_BxD, mask_B, train)
            if config.bottom == "mmoe":
                gate_BxKxM = blocks.softmax_gates(bottom_BxD, self.num_horizons, num_experts, dtype)
                body_BxKxD = blocks.mix_experts(gate_BxKxM, expert_BxMxH)
            else:
                body_BxKxD = jnp.repeat(expert_BxMxH, self.num_horizons, axis=1)
        towers = [
            blocks.MLP(config.tower_sizes, 3, dtype, name=f"head_{k}")(body_BxKxD[:, k])
            for k in range(self.num_horizons)
        ]
        return {"logits": jnp.stack(towers, axis=1).astype(jnp.float32)}

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns the negative log likelihood (BASELINES.md 1.2), its two parts and the penalties, summed over K."""
        config = self.config
        logits, y, known = outputs["logits"], targets.scaled, (targets.mask, targets.num_known)
        log_normal_BxK = losses.log_normal_nll(logits, y, config.max_sigma)
        counted = known
        if config.normalise_by != "rows":
            positive_BxK = targets.mask & (y > 0)
            counted = (positive_BxK, self.batch_axis.sum(positive_BxK.sum(axis=0)))
        terms = {
            "purchase": losses.sum_of_means(losses.purchase_nll(logits, y), *known),
            "log_normal": losses.sum_of_means(log_normal_BxK, *counted),
            "mu_squared": losses.sum_of_means(logits[..., 1] ** 2, *known),
            "sigma_squared": losses.sum_of_means(logits[..., 2] ** 2, *known),
        }
        penalty = config.mu_penalty * terms["mu_squared"] + config.sigma_penalty * terms["sigma_squared"]
        return terms["purchase"] + terms["log_normal"] + penalty, terms

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the mean of the mixture on the training scale [B, K] (BASELINES.md 1.3)."""
        mean_BxK = losses.ziln_mean(outputs["logits"], self.config.max_sigma, self.config.max_log_mean)
        return jnp.minimum(mean_BxK, labels.quantiles[None, :, -1]) if self.config.cap_at_largest else mean_BxK
