"""Fitted constants against NumPy over the whole column, whatever the order and the blocks of the rows."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mean_jax.data import statistics
from mean_jax.data.categories import CategoryCounts
from mean_jax.data.statistics import LabelStatistics, Moments, NumericStatistics, RowSample, fit_transform, signed_log1p
from mean_jax.data.transform import KNOT_LEVELS, LABEL_LEVELS

NUM_ROWS = 5000


@pytest.fixture(scope="module")
def rows():
    """Hashes, numeric values with gaps, city texts and labels."""
    rng = np.random.default_rng(0)
    numeric = np.stack(
        [rng.normal(40, 5, NUM_ROWS), rng.lognormal(3, 2, NUM_ROWS), rng.standard_t(2, NUM_ROWS)], axis=1
    ).astype(np.float32)
    numeric[rng.random(NUM_ROWS) < 0.2, 0] = np.nan
    cities = rng.choice(["a", "b", "c", "rare"], NUM_ROWS, p=[0.6, 0.3, 0.0996, 0.0004]).astype(object)
    cities[rng.random(NUM_ROWS) < 0.1] = None
    labels = rng.lognormal(2, 1, (NUM_ROWS, 2)) * (rng.random((NUM_ROWS, 2)) < [0.3, 0.5])
    labels[rng.random(NUM_ROWS) < 0.25, 1] = np.nan
    return rng.integers(0, 2**63, NUM_ROWS).astype(np.uint64), numeric, cities, labels


def add_rows(numeric, hashes, values, columns=2):
    """Gives rows to statistics, some columns at a time."""
    for start in range(0, values.shape[1], columns):
        numeric.update(np.ascontiguousarray(values[:, start : start + columns].T), start)
    numeric.sample(hashes, values)


def collected(rows, blocks, units=1):
    """Returns what units of some blocks each have collected, merged in order."""
    numeric, labels, cities = NumericStatistics(3), LabelStatistics(2), CategoryCounts(1000)
    for unit in np.array_split(np.arange(len(blocks)), units):
        own_numeric, own_labels, own_cities = NumericStatistics(3), LabelStatistics(2), CategoryCounts(1000)
        for block in unit:
            hashes, values, texts, amounts = (part[blocks[block]] for part in rows)
            add_rows(own_numeric, hashes, values.astype(np.float32))
            own_labels.update(hashes, amounts)
            counts = pa.array(texts, pa.string()).dictionary_encode()
            indices = pc.fill_null(counts.indices, -1).to_numpy()
            per_text = np.bincount(indices + 1, minlength=1 + len(counts.dictionary))
            own_cities.update(counts.dictionary, per_text[1:], per_text[0])
        numeric.merge(own_numeric)
        labels.merge(own_labels)
        cities.merge(own_cities)
    return numeric, [cities], labels


def fitted(rows, blocks, min_category_count=1, units=1):
    return fit_transform(*collected(rows, blocks, units), min_category_count)


@pytest.fixture(scope="module")
def transform(rows):
    return fitted(rows, np.array_split(np.arange(NUM_ROWS), 7))


def test_signed_log():
    np.testing.assert_allclose(signed_log1p(np.array([-1.0, 0.0, np.e - 1])), [-np.log(2), 0.0, 1.0])


def test_moments(rows, transform):
    numeric = rows[1].astype(np.float64)
    assert transform.is_log.tolist() == [False, True, True]
    expected = np.stack([numeric[:, 0], *(np.sign(x) * np.log1p(abs(x)) for x in numeric.T[1:])], axis=1)
    np.testing.assert_allclose(transform.mean, np.nanmean(expected, axis=0), rtol=1e-6)
    np.testing.assert_allclose(transform.std, np.nanstd(expected, axis=0), rtol=1e-6)
    np.testing.assert_allclose(transform.missing_rate, np.isnan(numeric).mean(axis=0), rtol=1e-6)


def test_knots_are_quantiles_of_the_raw_values(rows, transform):
    expected = np.nanquantile(rows[1].astype(np.float64), KNOT_LEVELS, axis=0).T
    np.testing.assert_allclose(transform.knots, expected, rtol=1e-6)


def test_labels(rows, transform):
    for horizon, labels in enumerate(rows[3].T):
        known = labels[~np.isnan(labels)]
        assert transform.positive_rate[horizon] == pytest.approx((known > 0).mean())
        assert transform.label_mean[horizon] == pytest.approx(known.mean())
        quantiles = np.quantile(known[known > 0], LABEL_LEVELS)
        np.testing.assert_allclose(transform.positive_quantiles[horizon], quantiles)


def test_vocabulary_by_falling_frequency(rows, transform):
    assert transform.vocabularies == (("a", "b", "c", "rare"),)
    assert fitted(rows, [slice(None)], min_category_count=100).vocabularies == (("a", "b", "c"),)


def test_equally_frequent_categories_stand_in_the_order_of_their_text():
    rows = (
        np.arange(4, dtype=np.uint64),
        np.arange(12.0).reshape(4, 3),
        np.array(["y", "x", "y", "x"], object),
        np.ones((4, 2)),
    )
    assert fitted(rows, [slice(None)]).vocabularies == (("x", "y"),)


@pytest.mark.parametrize("num_blocks", [1, 2, 50])
def test_blocks_do_not_matter(rows, transform, num_blocks):
    check_equal(fitted(rows, np.array_split(np.arange(NUM_ROWS), num_blocks)), transform)


@pytest.mark.parametrize("units", [2, 7])
def test_units_merge_into_the_whole(rows, transform, units):
    blocks = np.array_split(np.arange(NUM_ROWS), 14)
    check_equal(fitted(rows, blocks, units=units), transform)


def test_order_does_not_matter(rows, transform):
    order = np.random.default_rng(1).permutation(NUM_ROWS)
    check_equal(fitted(rows, np.array_split(order, 3)), transform)


def test_a_sample_does_not_depend_on_blocks_and_order(rows, monkeypatch):
    monkeypatch.setattr(statistics, "FEATURE_SAMPLE_ROWS", 300)
    monkeypatch.setattr(statistics, "LABEL_SAMPLE_ROWS", 200)
    order = np.random.default_rng(1).permutation(NUM_ROWS)
    check_equal(fitted(rows, np.array_split(order, 11)), fitted(rows, [slice(None)]))


def check_equal(got, expected):
    assert got.vocabularies == expected.vocabularies
    for name in ("is_log", "knots", "positive_quantiles", "missing_rate", "positive_rate"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    for name in ("mean", "std", "label_mean"):  # sums, so equal up to rounding
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6, err_msg=name)


def test_the_sample_is_the_rows_of_the_smallest_hashes():
    rng = np.random.default_rng(0)
    hashes = rng.permutation(1000).astype(np.uint64)
    sample = RowSample(100, 1, np.float64)
    for block in np.array_split(hashes, 9):
        sample.update(block, block[:, None])
    assert sorted(sample.rows[:, 0]) == list(range(100))


def test_a_rare_horizon_has_its_own_sample(monkeypatch):
    """The sample of positive labels is full of another horizon's before the rare one comes."""
    monkeypatch.setattr(statistics, "LABEL_SAMPLE_ROWS", 50)
    labels = np.stack([np.ones(NUM_ROWS), np.zeros(NUM_ROWS)], axis=1)
    labels[-1, 1] = 7.0
    rows = (
        np.arange(NUM_ROWS, dtype=np.uint64),
        np.random.default_rng(0).random((NUM_ROWS, 3)),
        np.array(["a", "b"] * 2500),
        labels,
    )
    assert set(fitted(rows, np.array_split(np.arange(NUM_ROWS), 20)).positive_quantiles[1]) == {7.0}


def test_moments_stay_exact_far_from_zero():
    """Amounts of 1e9 that differ by cents: the sum of squares alone would lose every digit."""
    values = 1e9 + np.random.default_rng(0).normal(size=(10_000, 1))
    moments = Moments(1)
    for block in np.array_split(values, 13):
        moments.update(block.T)
    assert moments.std[0] == pytest.approx(values.std(), rel=1e-6)
    assert moments.mean[0] == pytest.approx(values.mean(), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e37])
def test_moments_of_any_size_and_type(dtype, scale):
    """Squares of 1e37 are beyond float32; a row of outliers comes first."""
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, (2000, 4)) * scale
    values[0] *= 5
    values[:, 1] = np.where(rng.random(2000) < 0.3, np.nan, values[:, 1])
    values[:, 2] = np.nan
    values = values.astype(dtype)
    moments, parts = Moments(4), [Moments(4), Moments(4)]
    moments.update(values.T)
    for part, own in zip(np.array_split(values, 2), parts, strict=True):
        own.update(part.T[:1])
        own.update(part.T[1:], 1)
    parts[0].merge(parts[1])
    wide = values[:, [0, 1, 3]].astype(np.float64)
    for found in (moments, parts[0]):
        assert found.count[2] == found.mean[2] == found.std[2] == 0
        np.testing.assert_allclose(found.mean[[0, 1, 3]], np.nanmean(wide, axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.std[[0, 1, 3]], np.nanstd(wide, axis=0), rtol=1e-6)


@pytest.mark.parametrize("num_rows", [1000, 1 << 15])
def test_deviations_of_one_size_keep_six_digits(num_rows):
    """Where every square is the same a plain sum in float32 loses with each row."""
    values = np.where(np.arange(num_rows) % 2, 1.1, -1.1).astype(np.float32)
    rare = (np.arange(num_rows) % 1000 == 0).astype(np.float32)
    moments = Moments(2)
    moments.update(np.stack([values, rare]))
    np.testing.assert_allclose(moments.std, [values.astype(float).std(), rare.astype(float).std()], rtol=1e-6)


def test_samples_merge_and_a_bound_changes_nothing():
    rng = np.random.default_rng(0)
    hashes = rng.permutation(1000).astype(np.uint64)
    total = RowSample(100, 2, np.float32)
    for block in np.array_split(hashes, 9):
        own = RowSample(100, 2, np.float32, bound=99)
        own.update(block, np.stack([block, -block.astype(np.float32)], axis=1))
        total.merge(own)
    assert [sorted(column) for column in total.columns(0, 2)] == [list(range(100)), list(range(-99, 1))]
    np.testing.assert_array_equal(total.columns(1, 2), total.columns(0, 2)[1:])


def test_exponents_leave_room_for_sixteen_times_the_largest():
    values = np.array([[0.0, 3.0, -1e6, 1e-12, 4096.0, np.nan]], np.float32)
    numeric = NumericStatistics(6)
    add_rows(numeric, np.zeros(1, np.uint64), values)
    exponents = np.array(numeric.exponents())
    assert exponents[0] == exponents[5] == 0
    scaled = np.abs(values[0, 1:5]) / 2.0 ** exponents[1:5]
    assert (16 * scaled <= 65536).all() and (scaled >= 2**11).all()
    expected = [np.ceil(np.log2(top)) - 12 for top in (3.0, 1e6, 1e-12)]
    assert exponents[1:4].tolist() == expected


def test_columns_of_one_kind_are_enough():
    numeric, labels, cities = NumericStatistics(0), LabelStatistics(1), CategoryCounts(10)
    add_rows(numeric, np.arange(3, dtype=np.uint64), np.zeros((3, 0), np.float32))
    labels.update(np.arange(3, dtype=np.uint64), np.ones((3, 1)))
    cities.update(pa.array(["a", "b"]), np.array([2, 1]), 0)
    transform = fit_transform(numeric, [cities], labels, 1)
    assert transform.knots.shape == (0, 65)
    assert transform.vocabularies == (("a", "b"),)
    assert type(transform).from_dict(transform.to_dict()).knots.shape == (0, 65)
