"""The models by the name that `config.model.name` gives."""

from typing import NamedTuple

from mean_jax.models.base import Model
from mean_jax.models.mdan import Mdan, MdanConfig
from mean_jax.models.mean import Mean, MeanConfig
from mean_jax.models.odmn import Odmn, OdmnConfig
from mean_jax.models.optdist import OptDist, OptDistConfig
from mean_jax.models.ziln import Ziln, ZilnConfig


class ModelDefinition(NamedTuple):
    """A model and the config section that it reads."""

    module: type[Model]
    config: type


MODELS = {
    "mdan": ModelDefinition(Mdan, MdanConfig),
    "mean": ModelDefinition(Mean, MeanConfig),
    "odmn": ModelDefinition(Odmn, OdmnConfig),
    "optdist": ModelDefinition(OptDist, OptDistConfig),
    "ziln": ModelDefinition(Ziln, ZilnConfig),
}
MODEL_CONFIGS = {name: definition.config for name, definition in MODELS.items()}
