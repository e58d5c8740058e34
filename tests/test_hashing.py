"""The hash of ids is stable for ever, since stores, splits and scores rely on it, and it is uniform."""

import numpy as np
import pyarrow as pa
import pytest

from mean_jax.data.hashing import hash_ids, remix, to_unit_interval

IDS = ["", "17", "c00001", "Zoë", "客户", "a" * 300]


def fnv1a_splitmix(text: str) -> int:
    """The definition, one byte after the other."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def test_known_values():
    assert hash_ids(pa.array(["", "17", "c00001"])).tolist() == [
        0xC3817C016BA4FF30,
        0x6479682F0321D4B4,
        0xDA4A9F68B1DCC760,
    ]


def test_definition():
    assert hash_ids(pa.array(IDS)).tolist() == [fnv1a_splitmix(text) for text in IDS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([17, 5, -3]),
        pa.array([17, 5, -3], pa.int8()),
        pa.array(["17", "5", "-3"]),
        pa.array(["17", "5", "-3"], pa.large_string()),
        pa.array(["17", "5", "-3"], pa.string_view()),
        pa.array(["17", "5", "-3"]).dictionary_encode(),
        pa.array(["skipped", "17", "5", "-3"])[1:],
        pa.array(["skipped", "17", "5", "-3"], pa.large_string())[1:],
        pa.array(["skipped", "17", "5", "-3", "end"]).dictionary_encode()[1:4],
    ],
    ids=lambda column: f"{column.type}-{column.offset}",
)
def test_the_text_counts_and_not_the_type(column):
    assert hash_ids(column).tolist() == [fnv1a_splitmix(text) for text in ("17", "5", "-3")]


def test_empty_columns():
    assert hash_ids(pa.array([], pa.string())).tolist() == []
    assert hash_ids(pa.array(["", ""])).tolist() == [fnv1a_splitmix("")] * 2


def test_batches_do_not_matter():
    ids = pa.array([f"c{index}" for index in range(1000)])
    blocks = [hash_ids(ids[start : start + 7]) for start in range(0, 1000, 7)]
    np.testing.assert_array_equal(np.concatenate(blocks), hash_ids(ids))


@pytest.mark.parametrize("salt", [None, 0, 1, 2])
def test_hashes_of_consecutive_ids_are_uniform(salt):
    hashes = hash_ids(pa.array(np.arange(100_000)))
    hashes = hashes if salt is None else remix(hashes, salt)
    assert len(np.unique(hashes)) == len(hashes)
    counts = np.histogram(to_unit_interval(hashes), bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()  # 99 degrees of freedom: mean 99, standard deviation 14
    assert 50 < chi_square < 160


def test_salts_are_independent():
    units = [to_unit_interval(remix(hash_ids(pa.array(np.arange(100_000))), salt)) for salt in range(3)]
    correlation = np.corrcoef(units) - np.eye(3)
    assert np.abs(correlation).max() < 0.015


def test_unit_interval_has_no_one():
    extremes = to_unit_interval(np.array([0, 2**64 - 1], np.uint64))
    assert extremes[0] == 0.0
    assert 1 - 2e-16 < extremes[1] < 1.0
