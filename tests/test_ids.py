"""Customer ids: repeated hashes are found in any number of readings, ids that do not fit the store's type are named."""

import numpy as np
import pyarrow as pa
import pytest

from mean_jax.data import ids as lib
from mean_jax.errors import UserError


@pytest.fixture
def readings(monkeypatch) -> list:
    """Gets an entry each time that the files are read."""
    entries: list = []
    chunks = lib._hash_chunks
    monkeypatch.setattr(lib, "_hash_chunks", lambda files: entries.append(files) or chunks(files))
    return entries


@pytest.mark.parametrize("per_pass", [1 << 23, 1000, 97])
def test_repeated_hashes_are_those_that_numpy_counts_twice(tmp_path, monkeypatch, readings, per_pass):
    monkeypatch.setattr(lib, "_HASHES_PER_PASS", per_pass)
    monkeypatch.setattr(lib, "_READ_BYTES", 8 * 64)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 5000, np.uint64)
    ends = np.array([0, 0, 2**64 - 1, 2**64 - 1, 1, 2**64 - 2], np.uint64)
    hashes = rng.permutation(np.concatenate([hashes, hashes[:300], hashes[:20], ends]))
    files = [tmp_path / "a", tmp_path / "b"]
    hashes[:2000].tofile(files[0])
    hashes[2000:].tofile(files[1])
    values, counts = np.unique(hashes, return_counts=True)
    np.testing.assert_array_equal(np.sort(lib.repeated_hashes(files)), values[counts > 1])
    assert len(readings) == -(-len(hashes) // per_pass)


def test_millions_of_ids_are_checked_in_one_reading(tmp_path, readings):
    """A pass over the files for each million would make the check of 100 million rows the longest part of prepare."""
    np.arange(3 << 20, dtype=np.uint64).tofile(tmp_path / "a")
    assert len(lib.repeated_hashes([tmp_path / "a"])) == 0
    assert len(readings) == 1


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
def test_an_id_that_does_not_fit_is_named(encoded):
    ids = pa.array([1, 2, 3_000_000_000, 4_000_000_000])
    ids = ids.dictionary_encode() if encoded else ids
    assert lib.cast_ids(ids[:2], pa.int32(), "id", str).equals(pa.array([1, 2], pa.int32()))
    with pytest.raises(UserError, match=r"^row 2: id 3000000000 does not fit int32, the type of the store's ids; "):
        lib.cast_ids(ids, pa.int32(), "id", lambda row: f"row {row}")
