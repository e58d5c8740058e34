"""MEAN as the paper prints it (section 4.1): one model per horizon.

Command:  mean-jax-train --config=mean --data=STORE --workdir=RUN
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mean import MeanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MeanConfig())
