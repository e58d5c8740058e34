"""OptDist: five candidate zero-inflated log-normals per customer and a selector of the best (Weng et al. 2024).

Command:  mean-jax-train --config=optdist --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: see README
Runtime:  see README
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.optdist import OptDistConfig


def get_config() -> ConfigDict:
    return to_config_dict(OptDistConfig())
