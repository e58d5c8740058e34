"""DNN-ZILN: one network per horizon with a zero-inflated log-normal head (Wang et al. 2019).

Command:  mean-jax-train --config=dnn_ziln --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: see README
Runtime:  see README
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.ziln import ZilnConfig


def get_config() -> ConfigDict:
    return to_config_dict(ZilnConfig())
