"""The offline stand-in for the paper's A/B test (section 4.4): target the top tenth by prediction, or a random tenth.

As in the paper, customers are ranked by the prediction of the longest horizon and the outcome is observed over every
horizon: activation (whether customers who were not active before spend), conversion (whether anybody spends) and the
mean amount per day. On randomised data the effect of the treatment is compared too: what the campaign itself adds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mean_jax.evaluation.targeting import Comparison, compare_incremental, compare_lift
from mean_jax.experiments.cells import Prediction, read_table
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.results import DETERMINISTIC, Row
from mean_jax.experiments.statistics import paired_difference, spread

SHARE = 0.1  # of the customers that are targeted
ORDER_COUNT = "order_count"  # feature of logs: customers with one order so far count as not yet active


class Outcome(NamedTuple):
    """Something observed of the customers of a split."""

    name: str
    horizon: str  # over which it was observed
    value_V: np.ndarray  # NaN where unknown or where the customer is not of the group concerned


def split_outcomes(data: ExperimentData, split: str) -> list[Outcome]:
    """Returns what is observed on a split: from the labels, and from the outcome columns of a public data set.

    An outcome that is known of nobody is left out, such as the activation where all customers were active before.
    """
    table, labels_VxT = read_table(data.store.split(split), data)
    schema = data.store.schema
    outcomes = []
    for index, horizon in enumerate(schema.horizons):
        label_V = labels_VxT[:, index]
        spends_V = np.where(np.isnan(label_V), np.nan, label_V > 0)
        days = data.horizon_days(index)
        if ORDER_COUNT in schema.numeric:
            is_new_V = table.numeric[:, schema.numeric.index(ORDER_COUNT)] <= 1
            outcomes.append(Outcome("activation rate", horizon, np.where(is_new_V, spends_V, np.nan)))
        outcomes.append(Outcome("conversion rate", horizon, spends_V))
        outcomes.append(Outcome("amount per day" if days else "amount", horizon, label_V / (days or 1.0)))
    names = () if data.recipe is None else data.recipe.outcome_columns
    columns = data.columns_of(data.customers, names, split) if names else {}
    outcomes += [
        Outcome(name, schema.horizons[-1], column.to_numpy().astype(np.float64)) for name, column in columns.items()
    ]
    return [outcome for outcome in outcomes if not np.isnan(outcome.value_V).all()]


def _treatment(data: ExperimentData, split: str) -> np.ndarray | None:
    """Returns who was treated, or None if the data is not randomised."""
    if data.recipe is None or data.recipe.treatment_column is None:
        return None
    name = data.recipe.treatment_column
    column = data.columns_of(data.customers, [name], split)[name]
    return np.array([value != data.recipe.control_value for value in column.to_pylist()])


def measure_targeting(predictions: Iterable[Prediction], data: ExperimentData) -> list[Row]:
    """Returns a row per seed, outcome and comparison on the test split, by the predictions of the last horizon."""
    split, last = "test", data.store.schema.layout.num_labels - 1
    outcomes, is_treated_V = split_outcomes(data, split), _treatment(data, split)
    rows: list[Row] = []
    for prediction in predictions:
        if prediction.split != split or prediction.horizon != last:
            continue
        for outcome in outcomes:
            for kind, comparison in _comparisons(outcome, prediction.calibrated_V, is_treated_V):
                rows.append(
                    {
                        "horizon": outcome.horizon,
                        "seed": prediction.seed,
                        "point": prediction.point,
                        "split": split,
                        "outcome": outcome.name,
                        "comparison": kind,
                        **comparison._asdict(),
                    }
                )
    return rows


def _comparisons(
    outcome: Outcome, score_V: np.ndarray, is_treated_V: np.ndarray | None
) -> Iterator[tuple[str, Comparison]]:
    is_known_V = ~np.isnan(outcome.value_V)
    value_V, score_V = outcome.value_V[is_known_V], score_V[is_known_V]
    yield "lift", compare_lift(value_V, score_V, SHARE)
    if is_treated_V is not None:
        yield "incremental", compare_incremental(value_V, is_treated_V[is_known_V], score_V, SHARE)


def interval_over_seeds(
    difference: Mapping[int, float], low: Mapping[int, float], high: Mapping[int, float]
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean difference over seeds, with the noise of customers and of seeds in it.

    All seeds are measured on the same customers, whose noise the mean over seeds therefore keeps: its half width on
    either side is the mean of the seeds' own. The noise of the seeds is that of the t interval of their mean. Being
    independent, both add in squares on either side (Zou and Donner, Statistics in Medicine 27, 2008). What the seeds
    do not share of the customers' noise counts twice, so the interval is rather too wide. With one seed it holds the
    noise of the customers alone; it is NaN where a value is.

    Args:
      difference: per seed.
      low: per seed, the lower end of the bootstrap over customers.
      high: likewise, the upper end.
    """
    mean, of_seeds = paired_difference(difference, {DETERMINISTIC: 0.0})
    if len(difference) == 1:
        of_seeds = 0.0
    below = np.maximum(mean - spread(low).mean, 0.0)
    above = np.maximum(spread(high).mean - mean, 0.0)
    return float(mean - np.hypot(below, of_seeds)), float(mean + np.hypot(above, of_seeds))
