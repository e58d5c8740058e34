"""Figure 2 of the paper: MEAN over the turning point delta of the Huber loss; one program trains all values.

Command:  mean-jax-experiment --config=figure2 --output=DIR [--config.data.name=synthetic] [--data=STORE]
Data:     CDNOW, 90 days observed, then 30 / 90 / 180 / 365 days
"""

from ml_collections import ConfigDict

from mean_jax.experiments.spec import ExperimentSpec, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="MEAN over the delta of the Huber loss (Figure 2)",
            layout="curve",
            networks=(("MEAN", "mean", "sweep.field=huber_delta", "sweep.values=(0.25, 0.5, 1.0, 2.0, 5.0, 20.0)"),),
            metrics=("percentile_mape", "gini"),
            horizontal="Huber delta",
        )
    )
