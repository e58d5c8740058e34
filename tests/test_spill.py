"""Spilled rows and the shards made of them, where the disk fails."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from mean_jax.data import spill
from mean_jax.types import RowLayout


def test_a_shard_that_does_not_fit_says_so(tmp_path):
    """The system's own error, from the file that is always full."""
    schema = spill.spill_schema(pa.string())
    hashes = np.arange(3, dtype=np.uint64)
    rows = np.zeros((3, 1), np.float32)
    spill.append_rows(tmp_path, "full", schema, hashes, hashes, pa.array(["a", "b", "c"]), rows)
    output = tmp_path / "output"
    output.mkdir()
    (output / "full.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as failure:
        spill.sort_shard(tmp_path, "full", rows, schema, RowLayout(1, 0, 0), output)
    assert (failure.value.errno, failure.value.filename) == (errno.ENOSPC, str(output / "full.bin"))


def test_a_spill_that_was_cut_short_is_no_shard(tmp_path):
    schema = spill.spill_schema(pa.string())
    hashes = np.arange(3, dtype=np.uint64)
    rows = np.zeros((3, 1), np.float32)
    spill.append_rows(tmp_path, "short", schema, hashes, hashes, pa.array(["a", "b", "c"]), rows)
    (path,) = tmp_path.glob("short.*")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OSError, match="cut short") as failure:
        spill.sort_shard(tmp_path, "short", rows, schema, RowLayout(1, 0, 0), tmp_path)
    assert failure.value.filename == str(path)
