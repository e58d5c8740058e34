"""MEAN as the paper prints it (section 4.1): one model per horizon.

Command:  mean-jax-train --config=mean --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: test Gini 0.61 / 0.64 / 0.64 / 0.63, calibrated bias 0.96 / 1.00 / 0.97 / 0.97 (means of five seeds)
Runtime:  25 s for one seed on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mean import MeanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MeanConfig())
