"""MDAN: one channel per bucket, fused by a controller, with a distance loss on the embedding (Liu et al. 2024).

Only the abstract of its paper is public; sizes, weights and both losses are a reconstruction.

Command:  mean-jax-train --config=mdan --data=STORE --workdir=RUN
Data:     CDNOW as mean-jax-experiment --config=table1 prepares it (split seed 8), four horizons
Expected: test Gini 0.64 / 0.65 / 0.64 / 0.65, calibrated bias 1.06 / 1.07 / 1.04 / 1.05 (means of three seeds)
Runtime:  64 s for three seeds on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mdan import MdanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MdanConfig())
