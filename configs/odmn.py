"""ODMN with MDME: one network for all horizons, chained by mono units (Li et al. 2022); decoded by the likeliest bucket.

`--config.model.decode=expected` decodes by the mean of the same distribution, which BASELINES.md 3.4 finds far better.

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
