"""Columns of record batches as float32 values and codes: slices, gaps, what stands behind them, shared dictionaries."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mean_jax.data import transform
from mean_jax.data.transform import (
    MISSING_CODE,
    UNKNOWN_CODE,
    CategoryEncoder,
    category_codes,
    category_indices,
    numeric_block,
    numeric_tiles,
)
from mean_jax.errors import UserError
from tests.test_prepare import garbled


@pytest.mark.parametrize("start", [0, 3, 8, 13])
def test_slices_are_read_from_where_they_begin(start):
    """Values, gaps and categories of batches that begin within a byte of the bits that say what is null."""
    rng = np.random.default_rng(start)
    kinds = [pa.float32(), pa.float64(), pa.int8(), pa.uint32(), pa.int64(), pa.bool_()]
    is_null = rng.random((40, 50)) < 0.3
    is_null[0] = False
    arrays = [pa.array(rng.integers(0, 2, 50), mask=mask).cast(kinds[i % len(kinds)]) for i, mask in enumerate(is_null)]
    texts = pa.DictionaryArray.from_arrays(
        pa.array(rng.integers(0, 3, 50).astype(np.int8), mask=is_null[1]), list("abc")
    )
    names = tuple(f"x{index}" for index in range(len(arrays)))
    batch = pa.record_batch([*arrays, texts], names=[*names, "texts"]).slice(start, 21)
    expected = np.where(is_null, np.nan, [pc.fill_null(array.cast(pa.float64()), 0) for array in arrays])
    np.testing.assert_array_equal(numeric_block(batch, names, str), expected[:, start : start + 21].T)
    values, indices = category_indices(batch["texts"], "texts")
    assert [None if i < 0 else values[i].as_py() for i in indices.tolist()] == batch["texts"].to_pylist()


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_what_stands_behind_a_null_does_not_show(kind):
    """Infinities and NaN of other bits there give the same bytes; values keep theirs, -0.0 and tiny ones too."""
    values = np.array([1.5, -0.0, 1e-45, np.nan, np.inf, -np.nan, 7.0, np.finfo(np.float32).max, 2.0])
    values = values.astype(kind.to_pandas_dtype())
    values[3] = -values[3]
    is_known = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1], bool)
    buffers = [pa.py_buffer(np.packbits(is_known, bitorder="little").tobytes()), pa.py_buffer(values.tobytes())]
    batch = pa.record_batch([pa.Array.from_buffers(kind, len(values), buffers)], ["x"])
    expected = np.where(is_known, values, np.nan).astype(np.float32)
    order = np.array([8, 3, 0, 5, 1, 2, 4, 7, 6])
    found = numeric_block(batch, ("x",), str)[:, 0]
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    ((start, tile),) = numeric_tiles(batch, ("x",), str, order)
    assert start == 0
    np.testing.assert_array_equal(tile[0].view(np.uint32), expected[order].view(np.uint32))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_slices_are_encoded_as_the_whole(kind):
    texts = [(None, "x", "y", "new")[row % 7 % 4] for row in range(60)]
    column = pa.array(texts, kind).dictionary_encode()
    encoder = CategoryEncoder(("a",), (("y", "x"),))
    whole = encoder(pa.record_batch([column], ["a"]), str)
    assert whole[:4, 0].tolist() == [MISSING_CODE, 3, 2, UNKNOWN_CODE]
    for start, size in ((0, 60), (3, 17), (8, 16), (59, 1)):
        batch = pa.record_batch([column], ["a"]).slice(start, size)
        np.testing.assert_array_equal(encoder(batch, str), whole[start : start + size])
    other = pa.array(["y", "z", None]).dictionary_encode()  # another dictionary than the one that was kept
    assert encoder(pa.record_batch([other], ["a"]), str)[:, 0].tolist() == [2, UNKNOWN_CODE, MISSING_CODE]


def test_a_text_that_is_not_utf8_is_found_in_a_later_batch_with_the_same_dictionary(monkeypatch):
    looked_up = []
    monkeypatch.setattr(transform, "category_codes", lambda *texts: looked_up.append(texts) or category_codes(*texts))
    texts = garbled(pa.table({"a": ["x", "y", "x", "z"]}), "a", 3, "dictionary")["a"].chunk(0)
    encoder = CategoryEncoder(("a",), (("y", "x"),))
    first, second = (pa.record_batch([texts.slice(start, 2)], ["a"]) for start in (0, 2))
    assert encoder(first, str)[:, 0].tolist() == [3, 2]
    with pytest.raises(UserError, match=r"^1: column a is b'caf\\xe9', not UTF-8"):
        encoder(second, str)
    assert len(looked_up) == 1  # for both batches
