"""The evaluation report: one HTML page that needs nothing but itself, and the table behind its charts."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jinja2
from markupsafe import Markup
import numpy as np
import pyarrow as pa

from mean_jax.evaluation import plots
from mean_jax.evaluation.bins import bin_means
from mean_jax.evaluation.metrics import NUM_DECILE_BINS, NUM_PERCENTILE_BINS
from mean_jax.evaluation.plots import Curve

_BINNINGS = {"decile": NUM_DECILE_BINS, "percentile": NUM_PERCENTILE_BINS}
_SPACES = {
    "currency": ("Calibrated", "predictions after calibration, in currency: what the score files hold"),
    "currency_raw": ("Raw", "the model's own output in currency, before calibration"),
    "scaled": ("Scaled", "the training scale: labels divided by the horizon's scale and truncated"),
}
# Metric: heading, how to read it, kind of number.
_METRICS = {
    "bias": ("Predicted / actual total", "1 is right, below 1 too low", "ratio"),
    "gini": ("Gini, normalised", "ranking by spend: 1 perfect, 0 random", "ratio"),
    "auc": ("AUC", "chance that a buyer ranks above a non-buyer: 1 perfect, 0.5 random", "ratio"),
    "spearman": ("Spearman", "rank correlation; many equal zeros keep it well below 1", "ratio"),
    "decile_mape": ("Decile error", "mean error of the ten group means, lower is better", "percent"),
    "percentile_mape": ("Percentile error", "the same over 100 groups", "percent"),
    "percentile_mape_bins_skipped": ("Percentile groups skipped", "groups in which nobody spent", "count"),
    "gini_raw": ("Gini, raw", "not divided by the best possible", "ratio"),
    "mutual_gini": ("Mutual Gini", "distance of the two spend distributions, lower is better", "ratio"),
    "mae": ("Mean absolute error", "lower is better; favours low predictions where most spend nothing", "money"),
    "rmse": ("Root mean squared error", "lower is better; ruled by the largest customers", "money"),
    "positive_rate": ("Customers who spend", "share of the split", "percent"),
    "rows": ("Customers", "", "count"),
}
_UNDEFINED = "n/a"
_GROUP_ROWS = 20  # the calibration scatter has at most as many dots as leave each this many customers
_HEADLINE = ("bias", "gini", "auc", "spearman", "decile_mape", "percentile_mape", "positive_rate")


@dataclasses.dataclass(frozen=True)
class HorizonReport:
    """What the report says about one horizon; V evaluated rows, N buckets, M experts."""

    name: str  # as a reader should see it, e.g. "30 days"
    label: np.ndarray  # (V,) currency, >= 0
    raw: np.ndarray  # (V,) currency, the model's own prediction
    calibrated: np.ndarray  # (V,) currency
    bucket_names: Sequence[str]  # N; empty for models without buckets
    metrics: Mapping[str, Mapping[str, Any]]  # "currency", "currency_raw", "scaled": `metrics.summarise` of each
    attention_by_bucket: np.ndarray | None = None  # (N, N), row = true bucket, mean theta; NaN rows where empty
    gate_by_bucket: np.ndarray | None = None  # (N, M), mean weight of each bucket's gate over the experts

    def __post_init__(self) -> None:
        shapes = {np.shape(self.label), np.shape(self.raw), np.shape(self.calibrated)}
        if len(shapes) != 1 or len(np.shape(self.label)) != 1 or len(self.label) == 0:
            raise ValueError(f"horizon {self.name}: label, raw and calibrated have shapes {sorted(shapes)}")
        for field in ("attention_by_bucket", "gate_by_bucket"):
            matrix = getattr(self, field)
            if matrix is not None and len(matrix) != len(self.bucket_names):
                raise ValueError(f"horizon {self.name}: {field} has {len(matrix)} rows for {self.bucket_names}")


@dataclasses.dataclass(frozen=True)
class Report:
    """One evaluation: who was evaluated on what, per horizon, and how the training went."""

    title: str
    model: str
    run: str  # identity of the run: folder name, step, version
    split: str
    rows: int
    horizons: Sequence[HorizonReport]
    curves: Sequence[Curve] = ()


@dataclasses.dataclass(frozen=True)
class _Figure:
    title: str
    svg: Markup | None  # None: there is nothing to draw, and the caption says why
    caption: str


def template_environment(*loaders: jinja2.BaseLoader) -> jinja2.Environment:
    """Returns the environment of all pages: further loaders come before this package's templates."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([*loaders, jinja2.PackageLoader("mean_jax.evaluation", "templates")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(report: Report) -> str:
    """Returns the whole page as HTML; it loads nothing and runs no script."""
    return (
        template_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline=_headline(report.horizons),
            horizons=[
                {"name": horizon.name, "facts": _facts(horizon), "figures": _horizon_figures(horizon, f"h{number}")}
                for number, horizon in enumerate(report.horizons)
            ],
            training=_training_figures(report.curves),
            tables=[_metric_table(report.horizons, space) for space in _SPACES],
        )
    )


def bins_table(horizons: Sequence[HorizonReport]) -> pa.Table:
    """Returns one row per horizon, binning ("decile", "percentile") and bin (1 = lowest prediction), in currency.

    The columns predicted_mean, prediction_low and prediction_high are of the calibrated prediction. A split with fewer
    rows than bins has one bin per row.
    """
    tables = []
    for horizon in horizons:
        for binning, n_bins in _BINNINGS.items():
            bins = bin_means(horizon.label, horizon.raw, horizon.calibrated, n_bins)
            size = len(bins.rows)
            columns = {
                "horizon": pa.array([horizon.name] * size, pa.string()),
                "binning": pa.array([binning] * size, pa.string()),
                "bin": pa.array(range(1, size + 1), pa.int32()),
                "rows": pa.array(bins.rows, pa.int64()),
                "predicted_mean": pa.array(bins.calibrated),
                "predicted_raw_mean": pa.array(bins.raw),
                "label_mean": pa.array(bins.label),
                "prediction_low": pa.array(bins.low),
                "prediction_high": pa.array(bins.high),
            }
            tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _number(value: float | None, kind: str) -> str:
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "percent":
        return f"{100 * value:,.1f}%"
    if kind == "ratio":
        return f"{value:,.3f}"
    decimals = 0 if abs(value) >= 1000 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{decimals}f}"


def _cell(summary: Mapping[str, Any], metric: str) -> dict[str, str]:
    """The texts of a metric's value and interval; empty where it has none."""
    content, kind = summary.get(metric), _METRICS[metric][2]
    if not isinstance(content, Mapping):
        return {"value": _number(content, kind), "interval": ""}
    low, high = (_number(content[key], kind).removesuffix("%") for key in ("low", "high"))
    return {
        "value": _number(content["value"], kind),
        "interval": "" if _UNDEFINED in (low, high) else f"{low} to {high}",
    }


def _headline(horizons: Sequence[HorizonReport]) -> dict[str, Any]:
    rows = [{"name": h.name, "cells": [_cell(h.metrics["currency"], metric) for metric in _HEADLINE]} for h in horizons]
    return {"columns": [_METRICS[metric][:2] for metric in _HEADLINE], "rows": rows}


def _metric_table(horizons: Sequence[HorizonReport], space: str) -> dict[str, Any]:
    heading, meaning = _SPACES[space]
    rows = []
    for metric, (name, hint, _) in _METRICS.items():
        cells = [_cell(h.metrics[space], metric) for h in horizons]
        rows.append({"name": name, "hint": hint, "cells": cells, "is_reference": False})
        if metric in ("mae", "rmse") and space != "scaled":  # an error means nothing without the trivial predictors'
            rows += _constant_rows(horizons, metric)
    return {"heading": heading, "meaning": meaning, "columns": [h.name for h in horizons], "rows": rows}


def _constant_rows(horizons: Sequence[HorizonReport], metric: str) -> list[dict[str, Any]]:
    rows = []
    for name, constant_fn in (("always predicting 0", lambda label: 0.0), ("always predicting the mean", np.mean)):
        cells = []
        for horizon in horizons:
            label_V = np.asarray(horizon.label, np.float64)
            error_V = np.abs(label_V - constant_fn(label_V))
            error = np.mean(error_V) if metric == "mae" else np.sqrt(np.mean(error_V**2))
            cells.append({"value": _number(float(error), "money"), "interval": ""})
        rows.append({"name": name, "hint": "", "cells": cells, "is_reference": True})
    return rows


def _facts(horizon: HorizonReport) -> str:
    label_V, raw_V, calibrated_V = (
        np.asarray(values, np.float64) for values in (horizon.label, horizon.raw, horizon.calibrated)
    )
    total = float(label_V.sum())
    text = f"{len(label_V):,} customers, {_number(float(np.mean(label_V > 0)), 'percent')} of them spend."
    if total == 0:
        return f"{text} No metric that compares spend is defined here."
    predicted = f"{_number(float(calibrated_V.sum()), 'money')} predicted ({_number(float(raw_V.sum()), 'money')} raw)"
    return f"{text} Total spend {_number(total, 'money')}; {predicted}."


def _figure(title: str, svg: str | None, caption: str, reason: str = "") -> _Figure:
    return _Figure(title, None, f"Not drawn: {reason}.") if svg is None else _Figure(title, Markup(svg), caption)


def _horizon_figures(horizon: HorizonReport, name: str) -> list[_Figure]:
    arrays = (np.asarray(values, np.float64) for values in (horizon.label, horizon.raw, horizon.calibrated))
    label_V, raw_V, calibrated_V = arrays
    nobody = "nobody in this split spends within the horizon"
    deciles = bin_means(label_V, raw_V, calibrated_V, NUM_DECILE_BINS)
    num_groups = min(NUM_PERCENTILE_BINS, max(NUM_DECILE_BINS, len(label_V) // _GROUP_ROWS))
    groups = bin_means(label_V, raw_V, calibrated_V, num_groups)
    figures = [
        _figure(
            "Predicted and actual spend per tenth",
            plots.decile_chart(deciles, f"{name}-decile"),
            "Customers are lined up by predicted value and cut into ten equal groups. Where both bars of a group are "
            "equally high, the predicted amount can be used as a budget; the bars should rise from left to right.",
        ),
        _figure(
            "Gain curve",
            plots.gain_chart(label_V, calibrated_V, f"{name}-gain") if label_V.any() else None,
            "If you contact only the best-ranked part of the customers (horizontal), this share of all later spend is "
            "among them (vertical). The nearer to the ideal curve and the further above the dashed line, the better.",
            nobody,
        ),
        _figure(
            "Calibration",
            plots.calibration_scatter(groups, f"{name}-calibration"),
            f"Each dot is one of {len(groups.rows)} equal groups of customers. On the dashed line the group spent "
            "what was predicted; below it less, above it more. Calibration moves the dots onto the line without "
            "changing who ranks above whom.",
            nobody,
        ),
        _figure(
            "Distribution of spend",
            plots.distributions(label_V, calibrated_V, f"{name}-distribution"),
            "Left: customers who spend nothing or almost nothing. Right: how many spend how much. Predictions are "
            "averages over what a customer may do, so they are narrower than actual spend and rarely zero. Both axes "
            "of the right panel are logarithmic.",
            nobody,
        ),
    ]
    return figures + _bucket_figures(horizon, name)


def _bucket_figures(horizon: HorizonReport, name: str) -> list[_Figure]:
    figures = []
    buckets = list(horizon.bucket_names)
    if horizon.attention_by_bucket is not None:
        axes = ("attention to spend level", "actual spend level")
        svg = plots.heat_map(horizon.attention_by_bucket, buckets, buckets, axes, f"{name}-attention")
        caption = (
            "Which spend level the model looks at (columns) for customers of each actual level (rows). Dark cells "
            "along the diagonal mean that it recognises the level; equal rows mean that it treats all customers "
            "alike. A blank row is a level that no customer here has."
        )
        figures.append(_figure("Mean attention per actual bucket", svg, caption))
    if horizon.gate_by_bucket is not None:
        experts = [str(number + 1) for number in range(np.shape(horizon.gate_by_bucket)[1])]
        axes = ("expert", "spend level")
        svg = plots.heat_map(horizon.gate_by_bucket, buckets, experts, axes, f"{name}-gate")
        caption = (
            "How much of each expert network (columns) goes into each spend level (rows); every row adds up to 1. "
            "Rows that differ mean specialised experts; a column near 0 everywhere is an expert that is not used."
        )
        figures.append(_figure("Gate usage per bucket", svg, caption))
    return figures


def _training_figures(curves: Sequence[Curve]) -> list[_Figure]:
    by_term: dict[str, list[Curve]] = {}
    for curve in curves:
        by_term.setdefault(curve.name.partition("/")[2] or curve.name, []).append(curve)
    first = [term for term in ("loss", "gini", "percentile_mape", "bias") if term in by_term]
    terms = first + [term for term in by_term if term not in first]
    figures = []
    for number, term in enumerate(terms):
        splits = ", ".join(dict.fromkeys(curve.name.partition("/")[0] for curve in by_term[term]))
        svg = plots.training_chart(by_term[term], term, f"training-{number}")
        figures.append(_figure(f"{term} ({splits})", svg, "", "no finite value"))
    return figures
