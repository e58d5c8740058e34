"""Two random forests, one for whether a customer spends and one for how much (Vanderveld et al. 2016)."""

from typing import Any

import numpy as np

from mean_jax.experiments.peers.task import PeerTask, Predict, Table
from mean_jax.experiments.peers.two_stage import two_stage

_SETTINGS: dict[str, Any] = {"n_estimators": 100, "min_samples_leaf": 10, "n_jobs": -1}


class Imputer:
    """Fills missing numeric values with the median of the training split and says where it did.

    One 0/1 feature is added for each column that has missing values in the training split; a column without any value
    there is 0. Category codes follow as numbers, which trees cut as often as they need.
    """

    def __init__(self, train: Table) -> None:
        is_missing_VxC = np.isnan(train.numeric)
        self._has_missing_C = is_missing_VxC.any(axis=0)
        has_values_C = ~is_missing_VxC.all(axis=0)
        self._fill_C = np.zeros(train.numeric.shape[1], np.float32)
        self._fill_C[has_values_C] = np.nanmedian(train.numeric[:, has_values_C], axis=0)

    def __call__(self, table: Table) -> np.ndarray:
        """Returns features_VxF float32 without missing values."""
        is_missing_VxC = np.isnan(table.numeric)
        filled_VxC = np.where(is_missing_VxC, self._fill_C, table.numeric)
        parts = [filled_VxC, is_missing_VxC[:, self._has_missing_C], table.categorical]
        return np.concatenate(parts, axis=1, dtype=np.float32)


def _fitted(forest: Any, features_VxF: np.ndarray, label_V: np.ndarray) -> Any:
    forest.fit(features_VxF, label_V)
    forest.n_jobs = 1  # threads would add up the trees in the order in which they finish: other last digits every time
    return forest


def two_stage_forest(task: PeerTask) -> Predict:
    """P(label > 0) times the mean of positive labels, both by random forests."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    impute = Imputer(task.train)

    def classify(stage: PeerTask) -> Predict:
        forest = RandomForestClassifier(max_features="sqrt", random_state=task.seed, **_SETTINGS)
        _fitted(forest, impute(stage.train), stage.train.label)
        return lambda table: forest.predict_proba(impute(table))[:, 1]

    def regress(stage: PeerTask) -> Predict:
        forest = RandomForestRegressor(max_features=1 / 3, random_state=task.seed, **_SETTINGS)
        _fitted(forest, impute(stage.train), stage.train.label)
        return lambda table: forest.predict(impute(table))

    return two_stage(task, classify, regress)
