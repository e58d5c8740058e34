"""MTL-ZILN: one network for all horizons, a gate and a ZILN head of each over shared experts (MMoE).

The paper defines it in one sentence; the form is that of Ma et al. 2018.

Command:  mean-jax-train --config=mtl_ziln --data=STORE --workdir=RUN
Data:     CDNOW as mean-jax-experiment --config=table1 prepares it (split seed 8), four horizons
Expected: test Gini 0.65 / 0.65 / 0.65 / 0.66, calibrated bias 1.07 / 1.07 / 1.04 / 1.03 (means of three seeds)
Runtime:  31 s for three seeds on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.ziln import ZilnConfig


def get_config() -> ConfigDict:
    return to_config_dict(ZilnConfig(multi_task=True, bottom="mmoe", tower_sizes=(64,)))
