"""The interface that every model keeps: what training, evaluation and scoring know of one.

A model is a pure Flax module for K horizons of one replica. `__call__` maps raw columns to a dict of outputs whose
arrays all begin with [B, K]; `loss` and `predict` are pure functions of these outputs. K = 1 is a single-horizon model,
K > 1 a multi-task one; which of them a config asks for is its field `multi_task`.
"""

from collections.abc import Callable
import copy
from typing import Any, ClassVar, Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp

from mean_jax.batch_axis import WHOLE_BATCH, BatchAxis
from mean_jax.config import EncoderConfig
from mean_jax.labels import LabelConstants
from mean_jax.models.encoder import InputEncoder
from mean_jax.types import Array, EncoderConstants, Targets

Outputs = dict[str, jax.Array]
Terms = dict[str, jax.Array]


class ModelConfig(Protocol):
    """What is asked of a model's config section besides its own fields."""

    SCALARS: ClassVar[tuple[str, ...]]  # fields that enter `loss` alone, as numbers: a sweep may vary them by replica

    @property
    def multi_task(self) -> bool:
        """Whether one network serves all horizons; a constant of the class where it is no choice."""

    @property
    def compute_dtype(self) -> str:
        """float32 or bfloat16."""


class Model(nn.Module):
    """Base of all models; a subclass defines `__call__`, `loss` and `predict`."""

    config: Any  # its ModelConfig
    encoder_config: EncoderConfig
    encoder_constants: EncoderConstants
    num_horizons: int  # K
    num_buckets: int  # N
    batch_axis: BatchAxis = WHOLE_BATCH  # over which the rows given to `__call__` and `loss` are divided

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations and matrix products; parameters and losses are float32."""
        return jnp.dtype(self.config.compute_dtype)

    def __call__(
        self, numeric_BxC: Array, categorical_BxD: Array, mask_B: Array, labels: LabelConstants, train: bool
    ) -> Outputs:
        """Returns the outputs, each [B, K, ...].

        Args:
          numeric_BxC: raw values, NaN missing.
          categorical_BxD: codes.
          mask_B: rows that enter batch statistics.
          labels: of the K horizons.
          train: use batch statistics, update the running ones, and draw from the stream `sample`.
        """
        raise NotImplementedError

    def loss(self, outputs: Outputs, targets: Targets, labels: LabelConstants) -> tuple[jax.Array, Terms]:
        """Returns the total loss, a scalar, and what is logged beside it, scalars by name.

        Of rows that are a part of the batch (`batch_axis`) they are the part's share: the sum over the parts is the
        batch's value.
        """
        raise NotImplementedError

    def predict(self, outputs: Outputs, labels: LabelConstants) -> jax.Array:
        """Returns the prediction on the training scale [B, K]; it is not clipped, so it may be negative."""
        raise NotImplementedError

    def bucket_probabilities(self, outputs: Outputs) -> jax.Array | None:
        """Returns the probabilities of the label's N buckets [B, K, N], or None for models without buckets."""
        return None

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Returns what the report averages per true bucket: `attention` [B, K, N], `gate` [B, K, N, M]."""
        return {}

    def draw_rows(self, draw_fn: Callable[..., jax.Array], shape: tuple[int, ...]) -> jax.Array:
        """Returns `draw_fn(key, shape)` of the stream `sample`, for the rows of a divided batch as for an undivided."""
        whole = (shape[0] * self.batch_axis.size, *shape[1:])
        return self.batch_axis.own_rows(draw_fn(self.make_rng("sample"), whole))

    def encode(self, numeric_BxC: Array, categorical_BxD: Array) -> jax.Array:
        """Returns x_BxF of the input encoder; to be called once, in the compact `__call__`."""
        encoder = InputEncoder(self.encoder_config, self.encoder_constants, name="encoder")
        return encoder(numeric_BxC, categorical_BxD).astype(self.dtype)

    def stack_horizons(self, head_fn: Callable[[int], Outputs]) -> Outputs:
        """Returns the outputs [B, ...] of `head_fn(k)` for each horizon stacked along axis 1."""
        heads = [head_fn(index) for index in range(self.num_horizons)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *heads)


def with_scalars(model: Model, scalars: dict[str, Array]) -> Model:
    """Returns the model with some SCALARS of its config replaced by numbers that may be traced, such as a sweep's."""
    if not scalars:
        return model
    config = copy.copy(model.config)  # not dataclasses.replace: it would check the range of a traced number
    for name, value in scalars.items():
        object.__setattr__(config, name, value)
    return model.clone(config=config)
