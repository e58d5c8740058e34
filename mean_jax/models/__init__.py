"""The models by the name that `config.model.name` gives."""

from typing import NamedTuple, TypeAlias

from flax import linen as nn

from mean_jax.models.mean import Mean, MeanConfig

Model: TypeAlias = nn.Module  # with the methods that ModelDefinition names


class ModelDefinition(NamedTuple):
    """A Flax module with `loss`, `predict`, `bucket_probabilities` and `diagnostics`, and its config section."""

    module: type[nn.Module]
    config: type


MODELS = {"mean": ModelDefinition(Mean, MeanConfig)}
MODEL_CONFIGS = {name: definition.config for name, definition in MODELS.items()}
