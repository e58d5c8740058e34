"""The layout of stored rows: packing, widening on the host and unpacking on device agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.types import RowLayout

LAYOUTS = {
    "float32": RowLayout(3, 2, 2),
    "bfloat16": RowLayout(3, 2, 2, "bfloat16"),
    "float16": RowLayout(3, 2, 2, "float16", (0, 20, -30)),
}


def rows(num_rows=50):
    rng = np.random.default_rng(0)
    numeric_BxC = (rng.lognormal(0, 1, (num_rows, 3)) * np.array([[1.0, 1e6, 1e-9]])).astype(np.float32)
    numeric_BxC[rng.random(numeric_BxC.shape) < 0.2] = np.nan
    codes_BxD = rng.integers(0, 1 << 30, (num_rows, 2)).astype(np.int32)
    labels_BxT = rng.lognormal(0, 1, (num_rows, 2)).astype(np.float32)
    return numeric_BxC, codes_BxD, labels_BxT


def rounded(numeric_BxC, layout):
    """What the numeric values become, by NumPy's own casts."""
    if layout.numeric_type == "float16":
        scale_1xC = 2.0 ** np.array([layout.exponents])
        return (numeric_BxC / scale_1xC).astype(np.float16).astype(np.float64) * scale_1xC
    return numeric_BxC.astype(jnp.dtype(layout.numeric_type)).astype(np.float64)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_unpack_and_widen_give_back_what_was_packed(layout):
    numeric_BxC, codes_BxD, labels_BxT = rows()
    words_BxW = layout.pack(numeric_BxC, codes_BxD, labels_BxT)
    assert words_BxW.shape == (50, layout.num_words) and words_BxW.dtype == np.float32
    batch = jax.jit(layout.unpack)(words_BxW, np.ones(50, bool))
    expected_BxC = rounded(numeric_BxC, layout).astype(np.float32)
    np.testing.assert_array_equal(batch.numeric, expected_BxC)
    np.testing.assert_array_equal(batch.categorical, codes_BxD)
    np.testing.assert_array_equal(batch.labels, labels_BxT)
    np.testing.assert_array_equal(layout.labels_of(words_BxW), labels_BxT)
    wide_BxW = layout.widen(words_BxW)
    np.testing.assert_array_equal(
        wide_BxW.view(np.int32), layout.as_float32.pack(expected_BxC, codes_BxD, labels_BxT).view(np.int32)
    )


def test_two_byte_rows_keep_the_precision_of_their_type():
    numeric_BxC, codes_BxD, labels_BxT = rows()
    for name, digits in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        layout = LAYOUTS[name]
        widened_BxC = layout.widen(layout.pack(numeric_BxC, codes_BxD, labels_BxT))[:, :3]
        np.testing.assert_allclose(widened_BxC, numeric_BxC, rtol=digits)
        assert layout.num_words == 2 + 2 + 2


def test_what_float16_cannot_hold_becomes_its_largest_number():
    layout = RowLayout(4, 0, 1, "float16", (0, 4, -100, -130))
    numeric_BxC = np.array([[1e9, -1e9, 1e30, -1e38]], np.float32)  # the last one beyond float32 too
    words_BxW = layout.pack(numeric_BxC, np.zeros((1, 0), np.int32), np.ones((1, 1), np.float32))
    expected = np.array([65504.0, -65504.0 * 16, 65504.0 * 2.0**-100, -65504.0 * 2.0**-130], np.float32)
    np.testing.assert_array_equal(layout.widen(words_BxW)[0, :4], expected)


def float16(numeric_BxC, exponent=0):
    layout = RowLayout(1, 0, 0, "float16", (exponent,))
    values_Bx1 = np.asarray(numeric_BxC, np.float32).reshape(-1, 1)
    words_BxW = layout.pack(values_Bx1, np.zeros((len(values_Bx1), 0), np.int32), np.zeros((len(values_Bx1), 0)))
    return words_BxW.view(np.float16)[:, 0]


def test_every_float16_number_stays_itself():
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = numbers[np.isfinite(numbers)]
    np.testing.assert_array_equal(float16(finite).view(np.uint16), finite.view(np.uint16))


@pytest.mark.parametrize("exponent", [-130, -20, 0, 1, 40, 116])
def test_rounding_is_to_the_nearest_and_to_even(exponent):
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # from 0 to 65504
    middles = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    drawn = np.exp(np.random.default_rng(0).uniform(-8, 11, 100_000)).astype(np.float32)
    beside = [np.nextafter(middles, np.float32(towards)) for towards in (0, 1e9)]
    values = np.concatenate([middles, *beside, drawn])
    values = values[(values >= 2.0**-14) | np.isin(values, middles)]  # normal numbers, and ties of all
    with np.errstate(over="ignore", under="ignore"):
        stored = np.ldexp(values, exponent)
        is_kept = np.ldexp(stored, -exponent) == values  # within the range of float32
    assert is_kept.sum() > 90_000
    for sign in (1, -1):
        expected = (sign * values[is_kept]).astype(np.float16)
        packed = float16(sign * stored[is_kept], exponent)
        np.testing.assert_array_equal(packed.view(np.uint16), expected.view(np.uint16))


def test_below_the_smallest_normal_number_rounding_is_within_half_a_step():
    values = np.exp(np.random.default_rng(0).uniform(-18, -9.8, 100_000)).astype(np.float32)
    step = 2.0**-24
    np.testing.assert_allclose(float16(values).astype(np.float64), values, rtol=0, atol=step / 2 * (1 + 2.0**-13))


def test_every_nan_stays_missing():
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001], np.uint32)
    assert np.isnan(float16(bits.view(np.float32))).all()
