"""MTL-MEAN: one network with an output per horizon, the horizons' losses summed (paper section 4.2).

Bottom and experts are shared; gates, attention, output and DAM are each horizon's own. The paper does not say.

Command:  mean-jax-train --config=mtl_mean --data=STORE --workdir=RUN
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mean import MeanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MeanConfig(multi_task=True))
