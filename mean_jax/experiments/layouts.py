"""How the results of an experiment are laid out: a page of tables and figures for each kind of experiment."""

from collections.abc import Callable, Mapping

import numpy as np

from mean_jax.evaluation.svg import LINES, drawing, inline_svg, single_axes
from mean_jax.experiments import comparison
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.page import Page, PageFigure, PageTable, cells
from mean_jax.experiments.paper import TABLE_4
from mean_jax.experiments.results import Results
from mean_jax.experiments.spec import ExperimentSpec
from mean_jax.experiments.statistics import spread
from mean_jax.experiments.targeting import SHARE

LeftOut = Mapping[str, str]  # peer -> why it is not in the table
Layout = Callable[[ExperimentSpec, Results, ExperimentData, LeftOut], Page]
TEST = "test"
_MAE_REMARK = "On sparse labels the absolute error favours predictions that are too low: compare with constant_zero."


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
        comparison.systems_table(results, spec.metrics, "validation", "Validation split"),
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
        axes.legend(title="horizon")
        svg = inline_svg(figure, column.replace("_", "-"), f"{heading} over {horizontal}")
    return PageFigure(column, heading, svg, "Test split, mean over seeds; the bars are one standard deviation.")


def _targeting(spec: ExperimentSpec, results: Results, data: ExperimentData, left_out: LeftOut) -> Page:
    groups = f"among the top {SHARE:.0%} by prediction and among a random {SHARE:.0%}"
    notes = {
        "lift": f"The mean outcome {groups}: how well the customers are found, not what contacting them changes.",
        "incremental": f"What the treatment adds per customer {groups}: treated minus untreated, drawn at random.",
    }
    tables = []
    for kind in results.distinct("comparison"):
        rows = []
        for horizon, outcome in dict.fromkeys((row["horizon"], row["outcome"]) for row in results.rows):
            for system in results.distinct("system"):
                wanted = {"system": system, "horizon": horizon, "outcome": outcome, "comparison": kind}
                values = {
                    name: spread(results.values(name, **wanted)).mean
                    for name in ("targeted", "random", "difference", "low", "high")
                }
                ratio = values["targeted"] / values["random"] if values["random"] > 0 else np.nan
                interval = f"{values['low']:.4f} to {values['high']:.4f}"
                numbers = [f"{values[name]:.4f}" for name in ("targeted", "random", "difference")]
                rows.append(cells([horizon, outcome, system, *numbers, interval, f"{ratio:.2f}"]))
        note = f"{notes[kind]} Means over seeds; the interval is the bootstrap over customers, averaged over seeds."
        columns = ["horizon", "outcome", "system", "targeted", "random", "difference", "95 % interval", "ratio"]
        tables.append(PageTable(kind.capitalize(), note, columns, rows, num_heads=3))
    if spec.paper == "table4":
        rows = [cells([name, *(value or "-" for value in values)]) for name, values in TABLE_4.items()]
        note = "Improvement of the group that MEAN targeted over the randomly targeted one, as the paper prints it."
        columns = ["group and days", "activation rate", "loan rate", "average daily loan amounts"]
        tables.append(PageTable("The paper's A/B test", note, columns, rows))
    return Page(spec.title, _facts(spec, data, left_out), tables)


LAYOUTS: dict[str, Layout] = {"comparison": _comparison, "curve": _curve, "targeting": _targeting}
