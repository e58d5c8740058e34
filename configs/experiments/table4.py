"""Table 4 of the paper, offline: target the top tenth by prediction, or a random tenth.

The paper's table is an A/B test. On a labelled set this shows how well the customers are found; on randomised data
(hillstrom) also what the campaign adds among them.

Command:  mean-jax-experiment --config=table4 --output=DIR --config.data.name=hillstrom --config.data.source=FILE
Data:     CDNOW by default, 90 days observed, ranked by the prediction of 365 days
"""

from ml_collections import ConfigDict

from mean_jax.experiments.spec import ExperimentSpec, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="Targeting the top tenth (Table 4, offline)",
            layout="targeting",
            networks=(("MEAN", "mean"), ("DNN-ZILN", "dnn_ziln"), ("OptDist", "optdist")),
            peers=("lightgbm_tweedie", "past_spend"),
            paper="table4",
        )
    )
