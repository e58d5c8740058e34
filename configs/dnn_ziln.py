"""DNN-ZILN: one network per horizon with a zero-inflated log-normal head (Wang et al. 2019).

Command:  mean-jax-train --config=dnn_ziln --data=STORE --workdir=RUN
Data:     CDNOW as mean-jax-experiment --config=table1 prepares it (split seed 8), four horizons
Expected: test Gini 0.64 / 0.65 / 0.65 / 0.66, calibrated bias 1.06 / 1.06 / 1.04 / 1.03 (means of three seeds)
Runtime:  44 s for three seeds on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.ziln import ZilnConfig


def get_config() -> ConfigDict:
    return to_config_dict(ZilnConfig())
