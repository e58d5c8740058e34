"""Gradient boosting with LightGBM: missing values and categories are its own to handle, rounds chosen by validation."""

from typing import Any

import numpy as np

from mean_jax.experiments.peers.task import PeerTask, Predict, Table
from mean_jax.experiments.peers.two_stage import two_stage

MAX_ROUNDS = 2000
ROUNDS_WITHOUT_VALIDATION = 200  # where there is no row to stop on
# OpenMP's threads wait for each other by spinning: on small tables that costs more than they gain, and beside other
# work up to a hundred times the run time. The trees are the same with any number of threads.
SINGLE_THREAD_CELLS = 2_000_000
_PATIENCE = 50
_SETTINGS = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,  # else it times both ways and takes one, which changes the sums
    "verbosity": -1,
}


def _features(table: Table) -> np.ndarray:
    """Returns features_VxF float32, numeric columns first; codes are small enough to be exact."""
    return np.concatenate([table.numeric, table.categorical], axis=1, dtype=np.float32)


def boost(task: PeerTask, objective: dict[str, Any]) -> Predict:
    """Returns LightGBM trees fitted to an objective, stopped when its value on validation rows no longer improves.

    Args:
      task: labels as the objective takes them.
      objective: LightGBM's parameters that name it.
    """
    import lightgbm

    num_numeric, num_categorical = len(task.numeric_names), len(task.categorical_names)
    # A label that is the same for all needs no tree, and Tweedie's refuses zeros alone.
    if np.ptp(task.train.label) == 0:
        constant = float(task.train.label[0])
        return lambda table: np.full(len(table.numeric), constant)
    features_VxF = _features(task.train)
    num_threads = 1 if features_VxF.size < SINGLE_THREAD_CELLS else 0  # 0: as many as the library takes
    params = {**_SETTINGS, **objective, "seed": task.seed, "num_threads": num_threads}
    train_set = lightgbm.Dataset(
        features_VxF,
        task.train.label,
        categorical_feature=list(range(num_numeric, num_numeric + num_categorical)),
        params=params,
    )
    has_validation = len(task.validation.label) > 0
    if has_validation:
        validation_set = train_set.create_valid(_features(task.validation), task.validation.label)
        stopping = lightgbm.early_stopping(_PATIENCE, verbose=False)
        model = lightgbm.train(params, train_set, MAX_ROUNDS, [validation_set], callbacks=[stopping])
    else:
        model = lightgbm.train(params, train_set, ROUNDS_WITHOUT_VALIDATION)
    return lambda table: np.asarray(model.predict(_features(table)))


def lightgbm_l2(task: PeerTask) -> Predict:
    """Squared error on the label in currency; predictions may lie below 0."""
    return boost(task, {"objective": "regression"})


def lightgbm_tweedie(task: PeerTask) -> Predict:
    """Tweedie deviance of power 1.5: a compound Poisson-gamma, which has its own mass at zero."""
    return boost(task, {"objective": "tweedie", "tweedie_variance_power": 1.5})


def two_stage_boosting(task: PeerTask) -> Predict:
    """P(label > 0) times the mean of positive labels, both by gradient boosting (Drachen et al. 2018).

    They used XGBoost and squared error; here the amounts are fitted by gamma deviance, so that the few largest
    customers do not decide every split.
    """
    return two_stage(
        task,
        classify=lambda stage: boost(stage, {"objective": "binary"}),
        regress=lambda stage: boost(stage, {"objective": "gamma"}),
    )
