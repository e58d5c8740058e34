"""The tables of a comparison: systems x horizons in the paper's layout, paired differences, the paper's own numbers."""

from collections.abc import Mapping
import math

import numpy as np

from mean_jax.evaluation.metrics import NUM_PERCENTILE_BINS
from mean_jax.experiments.page import Cell, PageTable, cells
from mean_jax.experiments.paper import METRICS as PAPER_METRICS
from mean_jax.experiments.paper import paper_value
from mean_jax.experiments.peers import PEERS
from mean_jax.experiments.results import Results
from mean_jax.experiments.spec import ORACLE, ExperimentSpec
from mean_jax.experiments.statistics import Spread, goodness, order_agreement, paired_difference, spread

NAMES = {
    "percentile_mape": "percentile MAPE",
    "decile_mape": "decile MAPE",
    "gini": "Gini",
    "spearman": "Spearman",
    "auc": "AUC",
    "bias": "predicted / actual",
    "mae": "MAE",
    "rmse": "RMSE",
}
# Calibration keeps the order, so a ranking metric has one column; of the others both predictions are shown.
RANKING = ("gini", "gini_raw", "spearman", "auc")
ERRORS = ("bias", "mae", "rmse")
SKIPPED = "percentile_mape_bins_skipped"
_SKIPPED_NOTE = (
    f"Bins skipped: those of the {NUM_PERCENTILE_BINS} of the calibrated percentile MAPE in which nobody spends, on "
    "average."
)


def columns_of(metric: str) -> list[tuple[str, str]]:
    """Returns (column of the results, heading) of a metric: calibrated and raw, or one for both."""
    name = NAMES.get(metric, metric)
    if metric in RANKING:
        return [(f"calibrated_{metric}", name)]
    return [(f"calibrated_{metric}", name), (f"raw_{metric}", f"{name}, raw")]


def _number_columns(metrics: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Returns (column of the results, heading, metric) of a table's numbers, skipped bins beside what skips them."""
    columns = []
    for metric in metrics:
        of_metric = [(column, heading, metric) for column, heading in columns_of(metric)]
        if metric == "percentile_mape":
            of_metric.insert(1, (f"calibrated_{SKIPPED}", "bins skipped", SKIPPED))
        columns += of_metric
    return columns


def _number(value: float, deviation: float = math.nan) -> str:
    if not math.isfinite(value):
        return "n/a"
    digits = 4 if abs(value) < 10 else 2
    text = f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    return f"{text} ({deviation:.{digits}f})" if math.isfinite(deviation) else text


def _spread_text(value: Spread, metric: str) -> str:
    if metric == SKIPPED:
        return f"{value.mean:.1f}" if math.isfinite(value.mean) else "-"
    return _number(value.mean, value.deviation)


def _best(values: Mapping[str, float], metric: str) -> str | None:
    """Returns the system with the best value, if there is one; the oracle, which none can know, does not compete."""
    if metric == SKIPPED:
        return None
    known = {name: goodness(metric, value) for name, value in values.items() if math.isfinite(value) and name != ORACLE}
    return max(known, key=known.__getitem__) if known else None


def _number_cells(spreads: Mapping[str, list[Spread]], columns: list[tuple[str, str, str]]) -> dict[str, list[Cell]]:
    """Returns the fields of each system, one per column (its name, heading and metric), the best marked."""
    best = [
        _best({system: values[index].mean for system, values in spreads.items()}, metric)
        for index, (_, _, metric) in enumerate(columns)
    ]
    return {
        system: [
            Cell(_spread_text(value, metric), system == winner)
            for value, winner, (_, _, metric) in zip(values, best, columns, strict=True)
        ]
        for system, values in spreads.items()
    }


def systems_table(results: Results, metrics: tuple[str, ...], split: str, title: str, remark: str = "") -> PageTable:
    """Returns horizons x systems with mean and standard deviation over seeds and the best in bold."""
    columns = _number_columns(metrics)
    rows = []
    for horizon in results.distinct("horizon"):
        spreads = {
            system: [
                spread(results.values(column, system=system, horizon=horizon, split=split)) for column, _, _ in columns
            ]
            for system in results.distinct("system")
        }
        rows += [[*cells([horizon, system]), *numbers] for system, numbers in _number_cells(spreads, columns).items()]
    note = "Mean over seeds (standard deviation), best of a horizon in bold; without randomness there is one value."
    note = " ".join(part for part in (note, _skipped_note(metrics), remark) if part)
    return PageTable(title, note, ["horizon", "system", *(heading for _, heading, _ in columns)], rows, num_heads=2)


def _skipped_note(metrics: tuple[str, ...]) -> str:
    return _SKIPPED_NOTE if "percentile_mape" in metrics else ""


def summary_table(results: Results, metrics: tuple[str, ...], split: str) -> PageTable:
    """Returns per system the mean of each metric over the horizons, with its spread over seeds."""
    columns = _number_columns(metrics)
    spreads: dict[str, list[Spread]] = {}
    for system in results.distinct("system"):
        for column, _, _ in columns:
            by_horizon = [
                results.values(column, system=system, horizon=horizon, split=split)
                for horizon in results.distinct("horizon")
            ]
            means = {seed: float(np.mean([values[seed] for values in by_horizon])) for seed in by_horizon[0]}
            spreads.setdefault(system, []).append(spread(means))
    rows = [[Cell(system), *numbers] for system, numbers in _number_cells(spreads, columns).items()]
    note = "Mean over the horizons, then mean over seeds (standard deviation); best in bold."
    note = f"{note} {_skipped_note(metrics)}".rstrip()
    return PageTable("All horizons together", note, ["system", *(heading for _, heading, _ in columns)], rows)


def paired_table(spec: ExperimentSpec, results: Results, split: str) -> PageTable:
    """Returns how much better the reference is than each other system, seed by seed."""
    columns = [(column, heading, metric) for metric in spec.metrics for column, heading in columns_of(metric)]
    rows = []
    for horizon in results.distinct("horizon"):
        for system in results.distinct("system"):
            if system in (spec.reference, ORACLE):
                continue
            texts = []
            for column, _, metric in columns:
                reference, other = (
                    results.values(column, system=name, horizon=horizon, split=split)
                    for name in (spec.reference, system)
                )
                texts.append(_verdict(reference, other, metric))
            rows.append(cells([horizon, system, *texts]))
    note = (
        f"Advantage of {spec.reference} (positive: better) with the half width of the 95 % t interval over paired "
        "seeds; a star marks differences larger than that noise. A random system that was fitted once is given the "
        f"spread of {spec.reference}. Seeds share split and order of the batches, so neither their noise nor that of "
        "the test customers is in it."
    )
    headings = [heading for _, heading, _ in columns]
    return PageTable(f"{spec.reference} against the others", note, ["horizon", "system", *headings], rows, num_heads=2)


def _verdict(reference: Mapping[int, float], other: Mapping[int, float], metric: str) -> str:
    good, other_good = (
        {seed: goodness(metric, value) for seed, value in values.items()} for values in (reference, other)
    )
    difference = paired_difference(good, other_good)
    if not math.isfinite(difference.mean):
        return "n/a"
    width = f" ± {difference.half_width:.4f}" if math.isfinite(difference.half_width) else ""
    return f"{difference.mean:+.4f}{width}{' *' if difference.is_larger_than_noise else ''}"


def _paper_columns(spec: ExperimentSpec) -> list[tuple[str, str, str]]:
    """Returns (metric, column of the results, heading) of what the paper prints of any of the networks."""
    columns = []
    for metric in PAPER_METRICS:
        if any(paper_value(spec.paper, system, "30", metric) is not None for system in spec.network_names):
            for column, heading in columns_of(metric):
                is_one_of_two = metric not in RANKING and column.startswith("calibrated_")
                columns.append((metric, column, f"{heading}, calibrated" if is_one_of_two else heading))
    return columns


def paper_table(spec: ExperimentSpec, results: Results, split: str) -> PageTable | None:
    """Returns the paper's numbers beside ours and the agreement of both orders; None where no horizon is the same."""
    columns = _paper_columns(spec)
    rows = []
    for horizon in results.distinct("horizon"):
        theirs: dict[str, dict[str, float]] = {column: {} for _, column, _ in columns}
        ours: dict[str, dict[str, float]] = {column: {} for _, column, _ in columns}
        for system in spec.network_names:
            texts = []
            for metric, column, _ in columns:
                printed = paper_value(spec.paper, system, horizon, metric)
                if printed is not None:
                    values = results.values(column, system=system, horizon=horizon, split=split)
                    theirs[column][system], ours[column][system] = printed, spread(values).mean
                    texts.append(f"{_number(printed)} / {_number(ours[column][system])}")
            if texts:
                rows.append(cells([horizon, system, *texts]))
        if any(theirs.values()):
            agreement = [_number(order_agreement(ours[column], theirs[column])) for _, column, _ in columns]
            rows.append(cells([horizon, "order, Kendall tau", *agreement]))
    if not rows:
        return None
    note = (
        "The paper's number / ours. The paper mentions no calibration, which can change the order of the errors, so "
        "its percentile MAPE stands beside our calibrated and beside our raw one, each with its Kendall tau. The "
        "paper's data is private: only the orders can be compared, 1 the same, 0 unrelated, -1 the reverse."
    )
    headings = [heading for _, _, heading in columns]
    return PageTable("The paper's numbers and ours", note, ["horizon", "system", *headings], rows, num_heads=2)


def oracle_table(results: Results, metrics: tuple[str, ...], split: str) -> PageTable | None:
    """Returns ranking metrics as shares of what the oracle reaches; None without an oracle."""
    if ORACLE not in results.distinct("system"):
        return None
    ranking = [metric for metric in metrics if metric in RANKING]
    chance = {"auc": 0.5}
    rows = []
    for horizon in results.distinct("horizon"):
        for system in results.distinct("system"):
            texts = []
            for metric in ranking:
                value, best = (
                    spread(results.values(f"calibrated_{metric}", system=name, horizon=horizon, split=split)).mean
                    - chance.get(metric, 0.0)
                    for name in (system, ORACLE)
                )
                texts.append("n/a" if not np.isfinite(value / best) else f"{100 * value / best:.1f} %")
            rows.append(cells([horizon, system, *texts]))
    note = "Share of the oracle's value, E[label | all that decides it]; of AUC the part above 0.5."
    headings = [NAMES.get(metric, metric) for metric in ranking]
    return PageTable("Share of what is attainable", note, ["horizon", "system", *headings], rows, num_heads=2)


def peers_table(results: Results) -> PageTable | None:
    """Returns what the peers of the table are, or None without any."""
    names = [name for name in results.distinct("system") if name in PEERS]
    rows = [cells([name, PEERS[name].library, PEERS[name].description]) for name in names]
    return PageTable("Peers", "Systems outside JAX.", ["peer", "library", "what it is"], rows) if rows else None


def runtime_table(results: Results) -> PageTable:
    """Returns the seconds that each system took, all horizons and seeds together."""
    taken = {(row["system"], row["cell"]): row["cell_seconds"] for row in results.rows}
    seconds = dict.fromkeys(results.distinct("system"), 0.0)
    for (system, _), value in taken.items():
        seconds[system] += math.nan if value is None else value
    total = sum(seconds.values())
    if not math.isnan(total):
        seconds["all together"] = total
    rows = [cells([system, "n/a" if math.isnan(value) else f"{value:,.1f}"]) for system, value in seconds.items()]
    note = "Training, calibration and prediction of all horizons and seeds, compilation included; n/a: was interrupted."
    return PageTable("Runtime", note, ["system", "seconds"], rows)
