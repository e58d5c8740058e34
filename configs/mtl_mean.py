"""MTL-MEAN: one network with an output per horizon, the horizons' losses summed (paper section 4.2).

Bottom and experts are shared; gates, attention, output and DAM are each horizon's own. The paper does not say.

Command:  mean-jax-train --config=mtl_mean --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: test Gini 0.59 / 0.61 / 0.64 / 0.65, calibrated bias 0.97 / 1.00 / 0.97 / 0.97 (one seed)
Runtime:  25 s on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mean import MeanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MeanConfig(multi_task=True))
