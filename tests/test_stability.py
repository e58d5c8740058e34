"""The population stability index against its definition in NumPy."""

import itertools
import logging

import numpy as np
import pytest

from mean_jax.data.stability import (
    MAX_CATEGORY_BINS,
    Occupancy,
    Reference,
    log_stability,
    quantile_bins,
    reading,
    stability_index,
)
from mean_jax.data.transform import KNOT_LEVELS
from mean_jax.log import LOGGER
from mean_jax.types import RowLayout


def direct_index(expected, actual) -> float:
    """The definition, bin by bin."""
    return sum((a - e) * np.log(a / e) for e, a in zip(expected, actual, strict=True))


def test_the_definition():
    shares, counts = np.array([0.5, 0.3, 0.2]), np.array([20, 30, 50])
    assert stability_index(shares, counts) == pytest.approx(direct_index(shares, counts / 100))
    assert stability_index(shares, 10 * shares) == pytest.approx(0.0, abs=1e-12)
    assert stability_index(np.array([1.0, 0.0]), np.array([0, 7])) == pytest.approx(
        direct_index([1.0, 1e-4], [1e-4, 1.0])
    )
    assert stability_index(shares, np.zeros(3)) == 0.0


@pytest.mark.parametrize(
    ("index", "word"), [(0.0999, "stable"), (0.1, "moderate"), (0.25, "moderate"), (0.26, "shifted")]
)
def test_reading(index, word):
    assert reading(index) == word


def test_ten_bins_of_equal_shares():
    values = np.random.default_rng(0).lognormal(0, 1, 100_000)
    edges, shares = quantile_bins(np.quantile(values, KNOT_LEVELS))
    assert len(edges) == 9
    np.testing.assert_allclose(shares, 0.1, atol=0.01)
    bins = np.searchsorted(edges, values)
    np.testing.assert_allclose(np.bincount(bins) / len(values), shares, atol=1e-4)


@pytest.mark.parametrize("zeros", [0.05, 0.42, 0.97, 1.0])
def test_values_that_fill_several_quantiles_share_a_bin(zeros):
    rng = np.random.default_rng(0)
    values = np.where(rng.random(50_000) < zeros, 0.0, rng.lognormal(0, 1, 50_000))
    edges, shares = quantile_bins(np.quantile(values, KNOT_LEVELS))
    assert len(np.unique(edges)) == len(edges)
    assert shares.sum() == pytest.approx(1.0)
    actual = np.bincount(np.searchsorted(edges, values), minlength=len(shares)) / len(values)
    np.testing.assert_allclose(actual, shares, atol=1 / 64)


def words_of(store) -> np.ndarray:
    parts = [store.split(split) for split in ("train", "validation", "test")]
    return np.concatenate([rows.gather(np.arange(len(rows))) for rows in parts])


def test_the_table_itself_is_stable(store):
    occupancy = Occupancy(Reference.of(store.schema, store.transform))
    words = words_of(store)
    for part in np.array_split(words, 3):
        occupancy.update(store.layout, part)
    assert occupancy.num_rows == len(words)
    indices = occupancy.indices()
    assert list(indices) == [*store.schema.numeric, *store.schema.categorical, *store.schema.labels]
    assert max(indices.values()) < 0.1


def test_a_column_whose_values_moved_or_vanished_has_shifted(store):
    """Against shares that are counted here, from the training rows and the changed rows."""
    words = words_of(store).copy()
    layout, reference = store.layout, Reference.of(store.schema, store.transform)
    age, spend = store.schema.numeric.index("age"), store.schema.numeric.index("spend")
    words[:, spend] *= 3
    words[::2, age] = np.nan
    city = layout.num_numeric + store.schema.categorical.index("city")
    words[:, city] = np.array([0], np.int32).view(np.float32)
    occupancy = Occupancy(reference)
    occupancy.update(layout, words)
    indices = occupancy.indices()
    train = store.split("train").gather(np.arange(len(store.split("train"))))
    for name, column in (("spend", spend), ("age", age)):
        edges = [-np.inf, *reference.edges[column], np.inf]
        shares = []
        for values in (train[:, column], words[:, column]):
            inside = [np.mean((values > low) & (values <= high)) for low, high in itertools.pairwise(edges)]
            shares.append(np.maximum([*inside, np.isnan(values).mean()], 1e-4))
        assert indices[name] == pytest.approx(direct_index(*shares), rel=0.05)
        assert reading(indices[name]) == "shifted"
    assert reading(indices["city"]) == "shifted"
    assert reading(indices["orders"]) == "stable"


def test_labels_are_counted_where_they_are_known(store):
    reference = Reference.of(store.schema, store.transform)
    words = words_of(store).copy()
    words[::2, -1] = np.nan
    words[:, -2] = 0.0
    occupancy = Occupancy(reference)
    occupancy.update(store.layout, words)
    indices = occupancy.indices()
    assert indices["cltv_365"] < 0.1
    rate = store.transform.positive_rate[0]
    expected = np.maximum(reference.shares[-2], 1e-4)
    assert expected[0] == pytest.approx(1 - rate)
    assert indices["cltv_30"] == pytest.approx(direct_index(expected, [1.0] + [1e-4] * (len(expected) - 1)))


def test_parts_merge_and_rare_categories_share_a_bin():
    counts = (5, 0, *range(200, 100, -1))
    shares = np.array([*counts[:50], sum(counts[50:])]) / sum(counts)
    reference = Reference(("many",), 0, 1, (), (shares,))
    codes = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    layout = RowLayout(0, 1, 0)
    total = Occupancy(reference)
    for part in np.array_split(codes, 7):
        own = Occupancy(reference)
        own.update(layout, part.view(np.float32)[:, None])
        total.merge(own)
    assert total.num_rows == sum(counts)
    assert total.indices()["many"] == pytest.approx(0.0, abs=1e-12)
    assert len(shares) == MAX_CATEGORY_BINS + 3


def test_the_log_names_the_worst_first_and_ten_at_most(monkeypatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    monkeypatch.setattr(LOGGER, "isEnabledFor", lambda level: True)
    indices = {f"c{i}": 0.3 + i / 100 for i in range(12)} | {"calm": 0.01, "so_so": 0.2, "cltv_30": 0.9}
    log_stability(indices, ["cltv_30"], 900)
    assert lines[0] == "label cltv_30 has shifted: population stability index 0.90"
    assert lines[1] == "column c11 has shifted: population stability index 0.41"
    assert len(lines) == 11
    assert "1 columns stable (index below 0.1), 1 moderate, 13 shifted (above 0.25)" in lines[-1]
    assert "with 900 rows chance alone gives about 0.01" in lines[-1]
