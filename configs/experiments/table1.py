"""Table 1 of the paper: every system at every horizon, several seeds, with peers outside the paper.

Command:  mean-jax-experiment --config=table1 --output=DIR [--config.data.name=synthetic] [--data=STORE]
Data:     CDNOW, 90 days observed, then 30 / 90 / 180 / 365 days
"""

from ml_collections import ConfigDict

from mean_jax.experiments.spec import ExperimentSpec, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="Comparison of systems (Table 1)",
            networks=(
                ("DNN-ZILN", "dnn_ziln"),
                ("MTL-ZILN", "mtl_ziln"),
                ("ODMN", "odmn"),
                ("MDAN", "mdan"),
                ("OptDist", "optdist"),
                ("MTL-MEAN", "mtl_mean"),
                ("MEAN", "mean"),
            ),
            peers=(
                "lightgbm_l2",
                "lightgbm_tweedie",
                "two_stage_boosting",
                "two_stage_forest",
                "bgnbd",
                "paretonbd",
                "rfm",
                "markov",
                "past_spend",
                "constant_mean",
                "constant_zero",
            ),
            paper="table1",
        )
    )
