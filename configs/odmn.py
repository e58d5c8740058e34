"""ODMN with MDME: one network for all horizons, chained by mono units (Li et al. 2022).

It predicts the likeliest bucket, as its paper; `--config.model.decode=expected` the mean of the same distribution.

Command:  mean-jax-train --config=odmn --data=STORE --workdir=RUN
Data:     CDNOW as mean-jax-experiment --config=table1 prepares it (split seed 8), four horizons
Expected: test Gini 0.15 / 0.26 / 0.35 / 0.43, calibrated bias 1.05 / 1.06 / 1.03 / 1.06 (means of three seeds)
Runtime:  110 s for three seeds on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.odmn import OdmnConfig


def get_config() -> ConfigDict:
    return to_config_dict(OdmnConfig())
