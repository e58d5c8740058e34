"""The report page: complete, self-contained, escaped, small; and the table of bins behind it."""

import dataclasses
from html.parser import HTMLParser
import itertools
import re

import numpy as np
import pytest

from mean_jax.evaluation import metrics, plots
from mean_jax.evaluation.bins import bin_means, gain_curve
from mean_jax.evaluation.plots import Curve
from mean_jax.evaluation.report import HorizonReport, Report, bins_table, render_report

BUCKETS = ["0", "0-12", "12-60"]


def make_horizon(name: str = "30 days", num_rows: int = 400, seed: int = 0, spend: bool = True) -> HorizonReport:
    rng = np.random.default_rng(seed)
    signal_V = rng.normal(size=num_rows)
    label_V = np.where(rng.random(num_rows) < 0.2, np.exp(3 + signal_V), 0) * spend
    raw_V = np.exp(signal_V) - 0.2
    calibrated_V = 4 * np.exp(signal_V)
    spaces = {"currency": calibrated_V, "currency_raw": raw_V, "scaled": raw_V}
    return HorizonReport(
        name=name,
        label=label_V,
        raw=raw_V,
        calibrated=calibrated_V,
        bucket_names=BUCKETS,
        attention_by_bucket=rng.dirichlet(np.ones(3), 3),
        gate_by_bucket=rng.dirichlet(np.ones(5), 3),
        metrics={key: metrics.summarise(label_V, value_V, num_resamples=10) for key, value_V in spaces.items()},
    )


def make_report(*horizons: HorizonReport, **fields) -> Report:
    content = {"title": "CDNOW", "model": "mean", "run": "run-1", "split": "test", "rows": 400} | fields
    return Report(horizons=horizons, **content)


def make_curves(horizon: str = "30 days") -> list[Curve]:
    steps = np.arange(1, 6) * 100
    names = ("train/loss", "validation/loss", "validation/gini")
    return [Curve(horizon, name, steps, np.linspace(1, 0.5, 5)) for name in names]


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on a tag that is not closed."""

    VOID = ("meta", "br")

    def __init__(self, html: str):
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def full_html() -> str:
    horizons = (make_horizon("30 days"), make_horizon("365 days", seed=1))
    return render_report(make_report(*horizons, curves=make_curves("30 days") + make_curves("365 days")))


class TestPage:
    def test_has_every_part(self, full_html):
        page = Page(full_html)
        for text in ("CDNOW", "mean", "run-1", "test", "30 days", "365 days", "Calibrated", "Raw", "Scaled", "AUC"):
            assert text in page.text
        titles = (
            *("Predicted and actual spend per tenth", "Gain curve", "Calibration", "Distribution of spend"),
            *("Mean attention per actual bucket", "Gate usage per bucket", "loss (train, validation)", "gini"),
        )
        for title in titles:
            assert title in page.text
        assert page.tags.count("svg") == 2 * 6 + 2
        assert page.tags.count("figcaption") == 2 * 6
        assert "always predicting 0" in page.text and "always predicting the mean" in page.text
        for text in ("ideal (known spend)", "random order", "before calibration", "after calibration", "12-60"):
            assert text in page.text

    def test_shows_the_values_and_intervals(self, full_html):
        summary = make_horizon().metrics["currency"]["gini"]
        text = Page(full_html).text
        assert f"{summary['value']:.3f}" in text
        assert f"{summary['low']:.3f} to {summary['high']:.3f}" in text

    def test_loads_nothing(self, full_html):
        assert "http:" not in full_html and "https:" not in full_html and "@import" not in full_html
        page = Page(full_html)
        assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
        for tag, key, value in page.attributes:
            assert key != "src" and not key.startswith("on")
            if key.endswith("href"):
                assert value.startswith("#"), (tag, value)
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", full_html))

    def test_ids_are_unique_and_every_reference_has_its_target(self, full_html):
        page = Page(full_html)
        ids = [value for _, key, value in page.attributes if key == "id"]
        assert len(ids) == len(set(ids))
        references = {value[1:] for _, key, value in page.attributes if key.endswith("href")}
        references |= set(re.findall(r"url\(#([^)]*)\)", full_html))
        assert references <= set(ids)

    def test_is_reproducible(self):
        report = make_report(make_horizon(), curves=make_curves())
        assert render_report(report) == render_report(report)

    def test_escapes_names(self):
        name = '<script>alert("1")</script> & $x_{$ 日本'
        horizon = dataclasses.replace(make_horizon(name), bucket_names=[name, "a" * 200, "$\\frac$"])
        curve = Curve(name, "train/<b>", [1, 2], [1, 2])
        page = Page(render_report(make_report(horizon, title=name, model=name, run=name, split=name, curves=[curve])))
        assert "script" not in page.tags and "b" not in page.tags
        assert name in page.text and "train/" not in page.tags

    def test_changes_no_global_plot_settings(self):
        import matplotlib
        from matplotlib import _pylab_helpers

        before = dict(matplotlib.rcParams)
        render_report(make_report(make_horizon(num_rows=60)))
        assert dict(matplotlib.rcParams) == before
        assert not _pylab_helpers.Gcf.figs


class TestPoorData:
    def test_nobody_spends(self):
        text = Page(render_report(make_report(make_horizon(spend=False)))).text
        assert text.count("Not drawn: nobody in this split spends") == 3
        assert "n/a" in text

    def test_model_without_buckets_and_curves(self):
        horizon = dataclasses.replace(make_horizon(), bucket_names=[], attention_by_bucket=None, gate_by_bucket=None)
        page = Page(render_report(make_report(horizon)))
        assert "attention" not in page.text and "Training" not in page.text
        assert page.tags.count("svg") == 4

    @pytest.mark.parametrize("num_rows", [1, 7, 50])
    def test_few_rows(self, num_rows):
        Page(render_report(make_report(make_horizon(num_rows=num_rows))))

    def test_predictions_at_or_below_zero(self):
        horizon = make_horizon()
        horizon = dataclasses.replace(horizon, raw=-horizon.raw, calibrated=np.zeros(400))
        assert "at zero not shown" in Page(render_report(make_report(horizon))).text

    def test_empty_bucket_and_unfinished_training(self):
        horizon = make_horizon()
        attention = np.array(horizon.attention_by_bucket)
        attention[1] = np.nan
        horizon = dataclasses.replace(horizon, attention_by_bucket=attention)
        curves = [
            Curve("30 days", "train/loss", [1, 2, 3], [1.0, np.nan, np.inf]),
            Curve("30 days", "validation/auc", [1], [np.nan]),
        ]
        text = Page(render_report(make_report(horizon, curves=curves))).text
        assert "Not drawn: no finite value" in text and "nan" not in text

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"30 days.*shapes"):
            dataclasses.replace(make_horizon(), raw=np.zeros(3))
        with pytest.raises(ValueError, match="gate_by_bucket has 2 rows"):
            dataclasses.replace(make_horizon(), gate_by_bucket=np.zeros((2, 5)))

    def test_size_does_not_grow_with_rows_or_steps(self):
        long = [Curve("30 days", "train/loss", np.arange(100_000), np.random.default_rng(0).random(100_000))]
        html = render_report(make_report(make_horizon(num_rows=100_000), curves=long))
        assert len(html) < 400_000


class TestBins:
    def test_table(self):
        horizons = [make_horizon("30 days"), make_horizon("90 days", seed=1)]
        table = bins_table(horizons)
        assert table.column_names == [
            *("horizon", "binning", "bin", "rows", "predicted_mean", "predicted_raw_mean", "label_mean"),
            *("prediction_low", "prediction_high"),
        ]
        assert table.num_rows == 2 * (10 + 100)
        rows = [row for row in table.to_pylist() if row["horizon"] == "90 days" and row["binning"] == "decile"]
        assert [row["bin"] for row in rows] == list(range(1, 11)) and sum(row["rows"] for row in rows) == 400
        assert all(row["prediction_low"] <= row["predicted_mean"] <= row["prediction_high"] for row in rows)
        assert all(a["prediction_high"] <= b["prediction_low"] for a, b in itertools.pairwise(rows))
        spenders = [row for row in rows if row["label_mean"] > 0]
        error = np.mean([abs(row["predicted_mean"] / row["label_mean"] - 1) for row in spenders])
        assert error == pytest.approx(metrics.binned_mape(horizons[1].label, horizons[1].calibrated, 10).value)

    def test_sums_are_kept(self):
        horizon = make_horizon(num_rows=403)
        bins = bin_means(horizon.label, horizon.raw, horizon.calibrated, 100)
        for means, values in (
            (bins.label, horizon.label),
            (bins.raw, horizon.raw),
            (bins.calibrated, horizon.calibrated),
        ):
            assert means @ bins.rows == pytest.approx(values.sum())

    def test_fewer_rows_than_bins(self):
        assert bins_table([make_horizon(num_rows=3)]).num_rows == 6


class TestGainCurve:
    def test_area_is_the_gini(self):
        horizon = make_horizon(num_rows=500)
        share = np.arange(501) / 500
        area = np.trapezoid(gain_curve(horizon.label, horizon.raw, share), share)
        assert 2 * area - 1 == pytest.approx(metrics.gini_raw(horizon.label, horizon.raw), abs=1e-12)

    def test_constant_score_is_the_diagonal(self):
        share = np.linspace(0, 1, 11)
        np.testing.assert_allclose(gain_curve(make_horizon().label, np.ones(400), share), share, atol=1e-15)


def _texts_cut_off(figure):
    """Returns the texts of a drawn figure that reach beyond its edges."""
    figure.draw_without_rendering()
    texts = []
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            slack = 1e-9 * (high - low)
            shown = [tick.label1 for tick in axis.get_major_ticks() if low - slack <= tick.get_loc() <= high + slack]
            texts += [label for label in shown if label.get_visible()]
    edges = figure.bbox.padded(0.5)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert boxes
    return [name for name, box in boxes if not (edges.contains(*box.min) and edges.contains(*box.max))]


@pytest.mark.parametrize("scale", [1e-4, 0.3, 30.0, 300.0, 1e3, 3e4, 1e5, 3e6])
def test_no_text_of_a_chart_is_cut_off(scale, monkeypatch):
    cut_off = {}

    def check(figure, name, title):
        cut_off[name] = _texts_cut_off(figure)
        return ""

    monkeypatch.setattr(plots, "inline_svg", check)
    rng = np.random.default_rng(0)
    signal_V = rng.normal(size=2000)
    label_V = np.where(rng.random(2000) < 0.3, scale * np.exp(signal_V), 0.0)
    prediction_V = 0.5 * scale * np.exp(0.8 * signal_V)
    bins = bin_means(label_V, 0.6 * prediction_V, prediction_V, 10)
    plots.decile_chart(bins, "decile")
    plots.gain_chart(label_V, prediction_V, "gain")
    plots.calibration_scatter(bins, "calibration")
    plots.distributions(label_V, prediction_V, "distribution")
    plots.training_chart([Curve("30 days", "train/loss", scale * np.arange(1, 96), np.ones(95))], "loss", "training")
    assert cut_off == {name: [] for name in ("decile", "gain", "calibration", "distribution", "training")}
