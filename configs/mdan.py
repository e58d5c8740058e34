"""MDAN: one channel per bucket, fused by a controller, with a distance loss on the embedding (Liu et al. 2024).

Only the abstract of its paper is public; sizes, weights and both losses are a reconstruction.

Command:  mean-jax-train --config=mdan --data=STORE --workdir=RUN
Data:     CDNOW as launch/quickstart.sh prepares it, four horizons
Expected: see README
Runtime:  see README
"""

from ml_collections import ConfigDict

from mean_jax.config import to_config_dict
from mean_jax.models.mdan import MdanConfig


def get_config() -> ConfigDict:
    return to_config_dict(MdanConfig())
