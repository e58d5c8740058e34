"""The figures of the report, each from plain arrays to an SVG fragment.

Every figure draws aggregates (bins, curves on a grid, histograms), so its size does not grow with the customers.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
import matplotlib.lines as mlines
from matplotlib.ticker import FuncFormatter, NullFormatter
import numpy as np

from mean_jax.evaluation.bins import Bins, gain_curve
from mean_jax.evaluation.svg import (
    ACTUAL,
    INK,
    LINES,
    MUTED,
    PREDICTED,
    RAW,
    drawing,
    inline_svg,
    new_figure,
    single_axes,
)

_MAX_CURVE_POINTS = 400
_MAX_HISTOGRAM_BINS = 48
_SMALLEST_AMOUNT = 0.01  # currency; predictions for a horizon without any spend are not blown up beyond it
_MAX_NAME = 20  # characters of a bucket's name that fit beside a heat map


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over training: `name` is "split/term" as in metrics.jsonl, e.g. "validation/gini"."""

    horizon: str  # curves of one horizon (its replicas) share a colour
    name: str
    steps: Sequence[float]
    values: Sequence[float]  # as long as steps; values that are not finite are left out


def _money(value: float, _: object = None) -> str:
    """A short amount: 0.05, 12, 3,400, 1.2M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g}M"
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def _percent(share: float, _: object = None) -> str:
    return f"{100 * share:g}%"


def format_log(axis: Axis, text_fn: Callable[[float, object], str]) -> None:
    """Plain numbers at the powers of ten, in place of mathematical notation."""
    axis.set_major_formatter(FuncFormatter(text_fn))
    axis.set_minor_formatter(NullFormatter())


def _short(text: str) -> str:
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 1] + "…"


def decile_chart(bins: Bins, name: str) -> str:
    """Returns predicted and actual mean per decile as pairs of bars, lowest prediction first."""
    with drawing():
        figure, axes = single_axes()
        position = np.arange(1, len(bins.rows) + 1)
        axes.bar(position - 0.2, bins.calibrated, 0.38, color=PREDICTED, label="predicted")
        axes.bar(position + 0.2, bins.label, 0.38, color=ACTUAL, label="actual")
        axes.set_xticks(position)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_formatter(FuncFormatter(_money))
        axes.set(xlabel="tenth of customers, lowest prediction to highest", ylabel="mean spend per customer")
        axes.set_ylim(top=max(axes.get_ylim()[1], _SMALLEST_AMOUNT))
        axes.legend(loc="upper left")
        return inline_svg(figure, name, "Predicted and actual mean spend per decile")


def gain_chart(label_V: np.ndarray, score_V: np.ndarray, name: str) -> str:
    """Returns the share of spend held by the top customers: by prediction, by hindsight and at random."""
    share = np.linspace(0, 1, 201) ** 2  # denser at the top customers, where the curve bends
    with drawing():
        figure, axes = single_axes()
        axes.plot(share, gain_curve(label_V, label_V, share), color=ACTUAL, label="ideal (known spend)")
        axes.plot(share, gain_curve(label_V, score_V, share), color=PREDICTED, linewidth=2.2, label="this model")
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="random order")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="top customers contacted", ylabel="share of all spend reached")
        axes.legend(loc="lower right")
        return inline_svg(figure, name, "Gain curve of the model against ideal and random order")


def _scatter(axes: Axes, predicted: np.ndarray, actual: np.ndarray, limits: tuple[float, float], color: str) -> None:
    axes.plot(limits, limits, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.scatter(predicted, actual, s=14, color=color, alpha=0.75, linewidths=0)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="predicted mean")
    for axis in (axes.xaxis, axes.yaxis):
        format_log(axis, _money)


def calibration_scatter(bins: Bins, name: str) -> str | None:
    """Returns actual against predicted bin means before and after calibration, both axes logarithmic.

    A bin whose prediction or spend is 0 or less has no place on a logarithmic axis; the panels say how many there
    are. None if no bin has spend.
    """
    panels = (("before calibration", bins.raw, RAW), ("after calibration", bins.calibrated, PREDICTED))
    is_shown = [(bins.label > 0) & (predicted > 0) for _, predicted, _ in panels]
    if not np.any(bins.label > 0):
        return None
    shown = [bins.label[bins.label > 0], *(panel[1][keep] for panel, keep in zip(panels, is_shown, strict=True))]
    values = np.concatenate(shown)
    limits = (float(values.min()) / 1.6, float(values.max()) * 1.6)
    with drawing():
        figure = new_figure(3.0)
        axes_pair = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.2})
        for axes, (title, predicted, color), keep in zip(axes_pair, panels, is_shown, strict=True):
            _scatter(axes, predicted[keep], bins.label[keep], limits, color)
            axes.set_title(title)
            hidden = len(keep) - int(keep.sum())
            if hidden:
                note = f"{hidden} of {len(keep)} groups\nat zero not shown"
                axes.text(0.97, 0.03, note, transform=axes.transAxes, ha="right", color=MUTED, fontsize=8)
        axes_pair[0].set_ylabel("actual mean")
        return inline_svg(figure, name, "Actual against predicted spend per bin, before and after calibration")


def distributions(label_V: np.ndarray, calibrated_V: np.ndarray, name: str) -> str | None:
    """Returns histograms of positive spend and of predictions on a logarithmic axis, the zeros in a panel of their own.

    None if nobody spends.
    """
    positive_V = label_V[label_V > 0]
    if positive_V.size == 0:
        return None
    highest = float(max(positive_V.max(), calibrated_V.max()))
    lowest = min(float(np.quantile(positive_V, 0.001)), highest / 10)
    num_bins = int(np.clip(np.sqrt(positive_V.size), 8, _MAX_HISTOGRAM_BINS))
    edges = np.geomspace(lowest, highest * (1 + 1e-9), num_bins + 1)
    with drawing():
        figure = new_figure()
        below, above = figure.subplots(1, 2, width_ratios=[1, 2.3], gridspec_kw={"wspace": 0.5})
        sides = ((label_V, ACTUAL, "actual"), (calibrated_V, PREDICTED, "predicted"))
        for position, (value_V, color, text) in enumerate(sides):
            count, _ = np.histogram(value_V, edges)
            above.stairs(count / len(value_V), edges, baseline=0.3 / len(value_V), color=color, fill=True, alpha=0.25)
            above.stairs(count / len(value_V), edges, baseline=None, color=color, linewidth=1.4, label=text)
            below.bar(position, np.mean(value_V < lowest), 0.7, color=color)
        below.set_xticks([0, 1], ["actual", "predicted"], fontsize=8)
        below.set(title=f"below {_money(lowest)}", ylim=(0, 1), ylabel="share of customers")
        below.grid(axis="x", visible=False)
        above.set(title=f"{_money(lowest)} and more, log scales", xlabel="spend per customer")
        above.set(xscale="log", yscale="log")
        above.set_ylim(0.5 / len(label_V), 1)
        format_log(above.xaxis, _money)
        format_log(above.yaxis, _percent)
        below.yaxis.set_major_formatter(FuncFormatter(_percent))
        above.legend(loc="upper right")
        return inline_svg(figure, name, "Distribution of actual and predicted spend")


def heat_map(
    matrix: np.ndarray, row_names: Sequence[str], column_names: Sequence[str], labels: tuple[str, str], name: str
) -> str:
    """Returns a matrix of shares with the number in each cell; a row without data (NaN) stays blank.

    Args:
      matrix: (rows, columns), in [0, 1] or NaN.
      row_names: of the rows.
      column_names: of the columns.
      labels: what the x and the y axis show.
      name: see `inline_svg`.
    """
    matrix = np.asarray(matrix, np.float64)
    rows, columns = matrix.shape
    finite = matrix[np.isfinite(matrix)]
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    with drawing():
        figure, axes = single_axes(1.1 + 0.42 * rows, is_measured=True)
        axes.pcolormesh(np.ma.masked_invalid(matrix), cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=1.5)
        for row, column in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
            color = "white" if matrix[row, column] > 0.6 * top else INK
            text = f"{matrix[row, column]:.2f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=8.5)
        column_texts = [_short(text) for text in column_names]
        slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, column_texts)) > 7 else {}
        axes.set_xticks(np.arange(columns) + 0.5, column_texts, **slant)
        axes.set_yticks(np.arange(rows) + 0.5, [_short(text) for text in row_names])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return inline_svg(figure, name, f"{labels[0]} by {labels[1]}")


def training_chart(curves: Sequence[Curve], term: str, name: str) -> str | None:
    """Returns the curves of one term over the training steps: colour by horizon, dashed for the training split.

    None if no curve has a finite value.
    """
    horizons = list(dict.fromkeys(curve.horizon for curve in curves))
    has_points = False
    with drawing():
        figure, axes = single_axes(2.9)
        for curve in curves:
            steps, values = np.asarray(curve.steps, np.float64), np.asarray(curve.values, np.float64)
            keep = np.flatnonzero(np.isfinite(values))
            keep = keep[:: 1 + len(keep) // _MAX_CURVE_POINTS]
            has_points |= keep.size > 0
            axes.plot(
                steps[keep],
                values[keep],
                color=LINES[horizons.index(curve.horizon) % len(LINES)],
                linestyle=(0, (3, 2)) if curve.name.startswith("train/") else "-",
                marker="o" if keep.size == 1 else None,
                linewidth=1.4,
            )
        if not has_points:
            return None
        axes.set(xlabel="training step")
        if len(horizons) <= len(LINES):
            handles = [mlines.Line2D([], [], color=LINES[i], label=text) for i, text in enumerate(horizons)]
            axes.legend(handles=handles, fontsize=8)
        return inline_svg(figure, name, f"{term} over training steps")
