"""ODMN with MDME: one network for all horizons, chained by mono units (Li et al. 2022).

It predicts the likeliest bucket, as its paper; `--config.model.decode=expected` the mean of the same distribution.

Command:  mean-jax-train --config=odmn --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: see README
Runtime:  see README
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.odmn import OdmnConfig


def get_config() -> ConfigDict:
    return to_config_dict(OdmnConfig())
