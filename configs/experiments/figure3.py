"""Figure 3 of the paper: MEAN over the number n of sub-distributions.

Command:  mean-jax-experiment --config=figure3 --output=DIR [--config.data.name=synthetic] [--data=STORE]
Data:     CDNOW, 90 days observed, then 30 / 90 / 180 / 365 days
"""

from ml_collections import ConfigDict

from mean_jax.experiments.spec import ExperimentSpec, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="MEAN over the number of sub-distributions (Figure 3)",
            layout="curve",
            networks=tuple((str(n), "mean", f"labels.num_buckets={n}") for n in range(2, 8)),
            reference="5",
            metrics=("percentile_mape", "gini"),
            horizontal="number of sub-distributions n",
        )
    )
