"""The benchmark of reading: its stores, what it takes for cold and for a memory limit, its tables."""

import importlib
from pathlib import Path
import sys

import numpy as np
import pytest

from mean_jax.data.pipeline import EpochPlan
from mean_jax.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / "launch" / "benchmarks"))
reading = importlib.import_module("reading")
reading_disk = importlib.import_module("reading_disk")
made_up = importlib.import_module("made_up")


@pytest.fixture
def stores(tmp_path, monkeypatch):
    monkeypatch.setattr(reading_disk, "SHARD_BYTES", 4096)
    return [
        reading.DiskStore(tmp_path, reading_disk.write_store(tmp_path, layout, 1000), layout)
        for layout in reading.layouts(5, 2)
    ]


def test_stores_of_several_shards(stores):
    for store in stores:
        assert len(store.shards) > 1
        rows = store.open()
        assert len(rows) == sum(shard.rows for shard in store.shards) == 1000
        words = rows.layout.widen(rows.gather(np.arange(1000)))
        assert np.abs(words[:, :5].mean()) < 0.1 and np.abs(words[:, :5].std() - 1.0) < 0.1
        assert (words[:, 5:] >= 0.0).all() and 0.6 < (words[:, 5:] == 0.0).mean() < 0.8
        assert reading_disk.read_sequentially(store.folder, store.shards) == store.num_bytes
    assert stores[1].num_bytes == 4000 * (3 + 2)  # two values to a word


def test_pages_of_open_rows_are_not_taken_for_cold(stores, monkeypatch):
    monkeypatch.setattr(reading_disk, "_CLOSING_SECONDS", 0.1)
    rows = stores[0].open()
    with pytest.raises(UserError, match="1 readers of the store are still open"):
        stores[0].open_cold()
    del rows
    assert len(stores[0].open_cold()) == 1000


def test_locked_memory_is_given_back():
    def locked_kb():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))

    before = locked_kb()
    with reading_disk.locked_memory(1 << 20):
        assert locked_kb() - before == 1024
    assert locked_kb() == before
    with pytest.raises(UserError, match=r"--free_gb: only .* GB are free"):
        reading_disk.scarce_memory(1 << 60)


def test_bytes_from_disk():
    assert reading_disk.bytes_from_disk("rchar: 5\nread_bytes: 4096\nwrite_bytes: 7\n") == 4096
    seconds, num_bytes = reading_disk.timed(lambda: None)
    assert 0.0 <= seconds < 1.0 and num_bytes >= 0


def test_memory_limit_of_version_2(tmp_path):
    inner = tmp_path / "user.slice" / "run.scope"
    inner.mkdir(parents=True)
    assert reading_disk.memory_limit("0::/user.slice/run.scope\n", tmp_path) is None
    (inner / "memory.max").write_text("max\n")
    assert reading_disk.memory_limit("0::/user.slice/run.scope\n", tmp_path) is None
    (inner.parent / "memory.max").write_text("2000\n")
    assert reading_disk.memory_limit("0::/user.slice/run.scope\n", tmp_path) == 2000
    (inner / "memory.max").write_text("1000\n")
    assert reading_disk.memory_limit("0::/user.slice/run.scope\n", tmp_path) == 1000


def test_memory_limit_of_version_1(tmp_path):
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("3000\n")
    (group.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    text = "9:cpu:/other\n4:memory:/job\n0::/\n"
    assert reading_disk.memory_limit(text, tmp_path) == 3000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert reading_disk.memory_limit(text, tmp_path) is None


def test_too_few_rows():
    with pytest.raises(UserError, match=r"--rows=50000: expected 65536 or more for 4 dispatches of 16384 rows"):
        reading.plan_of(made_up.make_program(5, 2), 50_000, 4)
    assert reading.plan_of(made_up.make_program(5, 2), 70_000, 4) == EpochPlan(1024, 4, 16)


def test_spread():
    assert reading.spread([3.0, 1000.5, 2.0], 1) == "3.0 (2.0-1,000.5)"


def test_table_of_cold_pages(stores):
    if not reading._FLAGS.is_parsed():
        reading._FLAGS(["reading", "--dispatches=2", "--rounds=2"])
    table = reading._cold(stores[0], EpochPlan(32, 6, 4)).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| sequential reads of 4 MB",
        "| pipeline, shuffle=rows",
        "| pipeline, shuffle=blocks",
    ]
    assert all(line.count(" | ") == 4 for line in table if not line.startswith("| ---"))
    assert " 1.00 (1.00-1.00) " in table[2]
