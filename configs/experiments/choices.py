"""The choices that the paper leaves open, one by one: what moves MEAN, and by how much; its ablations beside them.

Each row differs from MEAN as printed in one field, but for the two pairs. `configs/mean_tuned.py` is what does best on
the validation split.

Command:  mean-jax-experiment --config=choices --output=DIR
Data:     the 300,000 synthetic customers of table1, 720 features, the shortest and the longest horizon, 3 seeds
"""

from ml_collections import ConfigDict

from mean_jax.config import TrainConfig
from mean_jax.data.synthetic import LABELS
from mean_jax.experiments.spec import SYNTHETIC, DataSpec, ExperimentSpec, to_config_dict

CHOICES = {
    "gate printed": ("model.gate=printed",),
    "pairwise attention": ("model.attention=pairwise",),
    "bottom of its own for DAM": ("model.dam_bottom=own",),
    "log theta": ("model.log_theta=True",),
    "tau 1": ("model.tau=1.0",),
    "tau 5": ("model.tau=5.0",),
    "KL trains theta only": ("model.stop_gradient_kl=b",),
    "distillation trains b only": ("model.stop_gradient_distillation=theta",),
    "scale quantile 0.95": ("labels.scale_quantile=0.95",),
    "log1p labels": ("labels.transform=log1p",),
    "scale quantile 0.95, log theta": ("labels.scale_quantile=0.95", "model.log_theta=True"),
    "scale quantile 0.95, pairwise attention": ("labels.scale_quantile=0.95", "model.attention=pairwise"),
    "without KL": ("model.kl_weight=0.0",),
    "without soft distillation": ("model.gamma=0.0",),
    "MVFE": ("model.dam=False",),
}


def get_config() -> ConfigDict:
    return to_config_dict(
        ExperimentSpec(
            title="The choices that the paper leaves open",
            networks=(("MEAN", "mean"), *((name, "mean", *overrides) for name, overrides in CHOICES.items())),
            metrics=("percentile_mape", "gini", "spearman", "auc", "bias"),
            data=DataSpec(SYNTHETIC, labels=(LABELS[0], LABELS[-1])),
            train=TrainConfig(num_seeds=3, max_epochs=8, patience=2),
        )
    )
