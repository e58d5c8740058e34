"""OptDist: five candidate zero-inflated log-normals per customer and a selector of the best (Weng et al. 2024).

Command:  mean-jax-train --config=optdist --data=STORE --workdir=RUN
Data:     CDNOW as mean-jax-experiment --config=table1 prepares it (split seed 8), four horizons
Expected: test Gini 0.64 / 0.65 / 0.64 / 0.66, calibrated bias 1.05 / 1.06 / 1.02 / 1.02 (means of three seeds)
Runtime:  77 s for three seeds on 2 processors of an AMD EPYC
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.optdist import OptDistConfig


def get_config() -> ConfigDict:
    return to_config_dict(OptDistConfig())
