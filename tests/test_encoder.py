"""The input encoder against plain NumPy."""

import jax
import numpy as np
import pytest

from mean_jax.config import EncoderConfig
from mean_jax.models import encoder as encoder_lib
from mean_jax.models.encoder import InputEncoder, embedding_width, piecewise_linear, ple_intervals, standardise
from mean_jax.types import EncoderConstants

KNOTS = np.linspace(0, 1, 65, dtype=np.float32)[None] * np.array([[10.0], [64.0]], np.float32)


def constants(**changes):
    values = EncoderConstants(
        is_log=np.array([False, True]),
        mean=np.float32([2.0, 1.0]),
        std=np.float32([4.0, 0.5]),
        has_missing=np.array([True, False]),
        knots=KNOTS,
        category_counts=(np.array([0, 3, 1, 6]),),
    )
    return values._replace(**changes)


def test_standardise_logs_heavy_tails_and_puts_missing_at_the_mean():
    values = np.float32([[6.0, -3.0], [np.nan, 0.0], [-2.0, 1e4]])
    expected = [
        [1.0, (-np.log1p(3.0) - 1.0) / 0.5],
        [0.0, -2.0],
        [-1.0, (np.log1p(1e4) - 1.0) / 0.5],
    ]
    np.testing.assert_allclose(standardise(values, constants()), expected, rtol=1e-5)


def test_missing_values_have_finite_gradients():
    def total(values):
        return standardise(values, constants()).sum() + piecewise_linear(values, KNOTS, 4).sum()

    assert np.isfinite(jax.grad(total)(np.float32([[np.nan, 0.0], [0.0, np.nan]]))).all()


def test_piecewise_linear_is_the_formula_per_column():
    values = np.float32([[-5.0, 0.0], [3.0, 16.0], [9.9, 63.0], [25.0, 80.0]])
    encoded = np.asarray(piecewise_linear(values, KNOTS, 4))
    assert encoded.shape == (4, 8)
    for column, top in enumerate((10.0, 64.0)):
        edges = np.linspace(0, top, 5)
        for row, x in enumerate(values[:, column]):
            for t in range(4):
                share = (x - edges[t]) / (edges[t + 1] - edges[t])
                low = -np.inf if t == 0 else 0.0
                high = np.inf if t == 3 else 1.0
                assert encoded[row, 4 * column + t] == pytest.approx(min(max(share, low), high), rel=1e-5, abs=1e-6)


def test_piecewise_linear_merges_equal_knots_and_zeroes_missing():
    knots = np.zeros((1, 65), np.float32)
    knots[0, 40:] = 1.0
    columns, lows, widths, _ = ple_intervals(knots, 8)
    assert columns.tolist() == [0] and lows.tolist() == [0.0] and widths.tolist() == [1.0]
    assert ple_intervals(np.zeros((1, 65), np.float32), 8)[2].tolist() == [1.0]
    assert np.asarray(piecewise_linear(np.float32([[np.nan]]), knots, 8)).tolist() == [[0.0]]


def test_encoder_concatenates_values_indicators_and_embeddings():
    encoder = InputEncoder(EncoderConfig(), constants())
    numeric = np.float32([[6.0, 0.0], [np.nan, 1.0]])
    categorical = np.int32([[0], [3]])
    variables = encoder.init(jax.random.key(0), numeric, categorical)
    x_BxF = np.asarray(encoder.apply(variables, numeric, categorical))
    width = embedding_width(4, EncoderConfig())
    assert x_BxF.shape == (2, 2 + 1 + width)
    assert x_BxF[:, 2].tolist() == [0.0, 1.0]
    table = np.asarray(variables["params"]["embedding_0"])
    np.testing.assert_array_equal(x_BxF[1, 3:], table[3])
    # Training never saw code 0, so it stands for the mean customer.
    np.testing.assert_allclose(x_BxF[0, 3:], 0.3 * table[1] + 0.1 * table[2] + 0.6 * table[3], rtol=1e-5)


@pytest.mark.parametrize("limit", [0, 20, 1 << 12])  # each table alone, the small ones together, all together
def test_tables_of_any_size_give_their_rows_in_the_order_of_the_columns(monkeypatch, limit):
    """And unseen codes the mean training row; both ways of gathering have the gradients of plain NumPy."""
    monkeypatch.setattr(encoder_lib, "_MAX_JOINT_NUMBERS", limit)
    counts = tuple(np.array(n) for n in ([0, 3, 1, 6], [2, 0, 5], [0, 0, *range(1, 19)], [4, 0, 0], [0, 1, 7, 2]))
    module = InputEncoder(EncoderConfig(), constants(category_counts=counts))
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, len(n), 50) for n in counts], axis=1).astype(np.int32)
    numeric = np.zeros((50, 0), np.float32)
    params = module.init(jax.random.PRNGKey(0), numeric, codes)["params"]
    output, pull = jax.vjp(lambda params: module.apply({"params": params}, numeric, codes), params)
    wanted = rng.standard_normal(output.shape).astype(np.float32)
    gradients = pull(wanted)[0]
    first = 0
    for column, n in enumerate(counts):
        table, code = np.asarray(params[f"embedding_{column}"], np.float64), codes[:, column]
        own = slice(first, first + table.shape[1])
        first = own.stop
        share = n / n.sum()
        trained = np.where(n[:, None] > 0, table, share @ table)
        np.testing.assert_allclose(output[:, own], trained[code], rtol=1e-6, atol=1e-7)
        by_row = np.zeros_like(table)
        np.add.at(by_row, code, wanted[:, own])
        unseen = by_row[n == 0].sum(axis=0)
        expected = np.where(n[:, None] > 0, by_row, 0) + np.outer(share, unseen)
        np.testing.assert_allclose(gradients[f"embedding_{column}"], expected, rtol=1e-5, atol=1e-5)
    assert first == output.shape[1]


@pytest.mark.parametrize("limit", [0, 1 << 12])
def test_a_code_that_its_table_does_not_have_is_not_a_number(monkeypatch, limit):
    """Rather than a row of another column's table."""
    monkeypatch.setattr(encoder_lib, "_MAX_JOINT_NUMBERS", limit)
    module = InputEncoder(EncoderConfig(), constants(category_counts=(np.array([1, 1, 1, 1]), np.array([1, 1, 1]))))
    numeric, codes = np.zeros((2, 0), np.float32), np.int32([[3, 2], [4, 0]])
    output = module.apply(module.init(jax.random.PRNGKey(0), numeric, codes), numeric, codes)
    assert np.isnan(output).tolist() == [[False] * 4, [True, True, False, False]]


@pytest.mark.parametrize(("size", "width"), [(2, 2), (16, 3), (17, 3), (81, 4), (10_000, 11)])
def test_embedding_width_follows_the_fourth_root(size, width):
    assert embedding_width(size, EncoderConfig()) == width
    assert embedding_width(size, EncoderConfig(embedding_size=7)) == 7


def test_absurd_values_are_bounded_and_constant_columns_stay_finite():
    values = np.float32([[3e38, 3e38], [-3e38, -3e38]])
    assert np.abs(standardise(values, constants())).max() == 20.0
    knots = np.full((1, 65), 20240101, np.float32)
    assert np.isfinite(piecewise_linear(np.float32([[20240101.0], [0.0]]), knots, 16)).all()
