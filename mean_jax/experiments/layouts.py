"""How the results of an experiment are laid out: a page of tables and figures for each kind of experiment."""

from collections.abc import Callable, Mapping

import numpy as np

from mean_jax.evaluation.plots import format_log
from mean_jax.evaluation.svg import LINES, drawing, inline_svg, single_axes
from mean_jax.evaluation.targeting import Comparison
from mean_jax.experiments import comparison
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.page import Page, PageFigure, PageTable, cells
from mean_jax.experiments.paper import TABLE_4
from mean_jax.experiments.results import Results
from mean_jax.experiments.spec import ExperimentSpec
from mean_jax.experiments.statistics import CONFIDENCE, spread
from mean_jax.experiments.targeting import SHARE, interval_over_seeds

LeftOut = Mapping[str, str]  # peer -> why it is not in the table
Layout = Callable[[ExperimentSpec, Results, ExperimentData, LeftOut], Page]
TEST = "test"
_MAE_REMARK = "On sparse labels the absolute error favours predictions that are too low: compare with constant_zero."
_VALIDATION_REMARK = (
    "These rows fitted the calibration curve and stopped the training, so what is printed here, the calibrated errors "
    "above all, flatters: only the test split says how good a system is."
)
_GROUPS = f"among the top {SHARE:.0%} by prediction and among a random {SHARE:.0%}"
_TARGETING_NOTES = {
    "lift": f"The mean outcome {_GROUPS}: how well the customers are found, not what contacting them changes.",
    "incremental": f"What the treatment adds per customer {_GROUPS}: treated minus untreated, drawn at random.",
}
_INTERVAL_NOTE = (
    "Means over seeds. The interval is of the difference's mean over seeds: the bootstrap over customers within a "
    "seed, averaged over seeds, joined in squares with the t interval over seeds; of a single seed, or where nothing "
    "is random, it holds the noise of the customers alone."
)


def _facts(spec: ExperimentSpec, data: ExperimentData, left_out: LeftOut) -> list[tuple[str, str]]:
    rows = [f"{len(data.store.split(split)):,}" for split in ("train", "validation", TEST)]
    train = spec.train
    return [
        ("Data", f"{data.name}, {' / '.join(rows)} customers in training, validation and test"),
        ("Seeds", f"{train.num_seeds} from {train.seed}"),
        ("Budget", f"at most {train.max_epochs} epochs, patience {train.patience} on {train.early_stopping_metric}"),
        *((f"Left out: {name}", reason) for name, reason in left_out.items()),
    ]


def _comparison(spec: ExperimentSpec, results: Results, data: ExperimentData, left_out: LeftOut) -> Page:
    tables = [
        comparison.summary_table(results, spec.metrics, TEST),
        comparison.systems_table(results, spec.metrics, TEST, "Test split"),
        comparison.paired_table(spec, results, TEST),
        comparison.paper_table(spec, results, TEST),
        comparison.oracle_table(results, spec.metrics, TEST),
        comparison.systems_table(results, comparison.ERRORS, TEST, "Totals and errors, test split", _MAE_REMARK),
        comparison.systems_table(results, spec.metrics, "validation", "Validation split", _VALIDATION_REMARK),
        comparison.peers_table(results),
        comparison.runtime_table(results),
    ]
    return Page(spec.title, _facts(spec, data, left_out), [table for table in tables if table])


def _points(results: Results) -> dict[float, tuple[str, float | None]]:
    """Returns (system, sweep point) by the number on the horizontal axis: a sweep's value, or the system's name."""
    pairs = dict.fromkeys((row["system"], row["point"]) for row in results.rows if row["kind"] == "network")
    return {float(system if point is None else point): (system, point) for system, point in pairs}


def _curve(spec: ExperimentSpec, results: Results, data: ExperimentData, left_out: LeftOut) -> Page:
    points = dict(sorted(_points(results).items()))
    figures, tables = [], []
    for column, heading in [pair for metric in spec.metrics for pair in comparison.columns_of(metric)]:
        lines = {
            horizon: [
                spread(results.values(column, system=system, point=point, horizon=horizon, split=TEST))
                for system, point in points.values()
            ]
            for horizon in results.distinct("horizon")
        }
        figures.append(_curve_figure(list(points), lines, column, heading, spec.horizontal))
        rows = [
            cells(
                [f"{x:g}", *(f"{lines[horizon][i].mean:.4f} ({lines[horizon][i].deviation:.4f})" for horizon in lines)]
            )
            for i, x in enumerate(points)
        ]
        note = "Test split, mean over seeds (standard deviation)."
        tables.append(PageTable(heading, note, [spec.horizontal, *(f"{horizon} days" for horizon in lines)], rows))
    return Page(spec.title, _facts(spec, data, left_out), tables, figures)


def _curve_figure(x: list[float], lines: dict[str, list], column: str, heading: str, horizontal: str) -> PageFigure:
    with drawing():
        figure, axes = single_axes()
        for (horizon, spreads), colour in zip(lines.items(), LINES, strict=False):
            means, deviations = (np.array([getattr(item, name) for item in spreads]) for name in ("mean", "deviation"))
            axes.errorbar(
                x,
                means,
                yerr=np.nan_to_num(deviations),
                color=colour,
                marker="o",
                markersize=3,
                capsize=2,
                label=horizon,
            )
        axes.set_xlabel(horizontal)
        axes.set_ylabel(heading)
        if min(x) > 0 and max(x) / min(x) > 10:
            axes.set_xscale("log")
            format_log(axes.xaxis, lambda value, _: f"{value:g}")
        axes.legend(title="horizon")
        svg = inline_svg(figure, column.replace("_", "-"), f"{heading} over {horizontal}")
    return PageFigure(column, heading, svg, "Test split, mean over seeds; the bars are one standard deviation.")


def _targeting_table(results: Results, kind: str) -> PageTable:
    """Returns outcomes x systems of one comparison; the note counts the intervals, as many are looked at."""
    rows, num_intervals, num_exclude_zero = [], 0, 0
    for horizon, outcome in dict.fromkeys((row["horizon"], row["outcome"]) for row in results.rows):
        for system in results.distinct("system"):
            wanted = {"system": system, "horizon": horizon, "outcome": outcome, "comparison": kind}
            values = {name: results.values(name, **wanted) for name in Comparison._fields}
            targeted, random, difference = (spread(values[name]).mean for name in ("targeted", "random", "difference"))
            low, high = interval_over_seeds(values["difference"], values["low"], values["high"])
            num_intervals += bool(np.isfinite(high - low))
            num_exclude_zero += low > 0 or high < 0
            numbers = [f"{value:.4f}" for value in (targeted, random, difference)]
            ratio = targeted / random if random > 0 else np.nan
            rows.append(cells([horizon, outcome, system, *numbers, f"{low:.4f} to {high:.4f}", f"{ratio:.2f}"]))
    counts = (
        f"Intervals that exclude 0: {num_exclude_zero} of {num_intervals}; if targeting made no difference, up to "
        f"about {(1 - CONFIDENCE) * num_intervals:.1f} (5 %) would by chance, several at once, as they share customers."
    )
    columns = ["horizon", "outcome", "system", "targeted", "random", "difference", "95 % interval", "ratio"]
    return PageTable(kind.capitalize(), f"{_TARGETING_NOTES[kind]} {_INTERVAL_NOTE} {counts}", columns, rows, 3)


def _targeting(spec: ExperimentSpec, results: Results, data: ExperimentData, left_out: LeftOut) -> Page:
    tables = [_targeting_table(results, kind) for kind in results.distinct("comparison")]
    if spec.paper == "table4":
        rows = [cells([name, *(value or "-" for value in values)]) for name, values in TABLE_4.items()]
        note = "Improvement of the group that MEAN targeted over the randomly targeted one, as the paper prints it."
        columns = ["group and days", "activation rate", "loan rate", "average daily loan amounts"]
        tables.append(PageTable("The paper's A/B test", note, columns, rows))
    return Page(spec.title, _facts(spec, data, left_out), tables)


LAYOUTS: dict[str, Layout] = {"comparison": _comparison, "curve": _curve, "targeting": _targeting}
