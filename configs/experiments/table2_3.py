"""Tables 2 and 3 of the paper: MEAN without parts of its alignment.

Command:  mean-jax-experiment --config=table2_3 --output=DIR [--config.data.name=synthetic] [--data=STORE]
Data:     CDNOW, 90 days observed, then 30 / 90 / 180 / 365 days
"""

from ml_collections import ConfigDict

from mean_jax.experiments.spec import ExperimentSpec, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="Ablations of MEAN (Tables 2 and 3)",
            networks=(
                ("MEAN", "mean"),
                ("without KL", "mean", "model.kl_weight=0.0"),
                ("without soft distillation", "mean", "model.gamma=0.0"),
                ("MVFE", "mean", "model.dam=False"),
            ),
            metrics=("percentile_mape", "auc", "gini"),
            paper="table2_3",
        )
    )
