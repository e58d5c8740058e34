"""The benchmark of reading: its stores, what it takes for cold and for a memory limit, its tables."""

import gc
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


@pytest.fixture(autouse=True)
def quick_drops(monkeypatch):
    """Pages are dropped after a collection of garbage, here without what earlier tests left, and without a pause."""
    monkeypatch.setattr(reading_disk, "_READING_SECONDS", 0.0)
    gc.freeze()
    yield
    gc.unfreeze()


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


def test_too_few_rows():
    with pytest.raises(UserError, match=r"--rows=50000: expected 65536 or more for 4 dispatches of 16384 rows"):
        reading.plan_of(made_up.make_program(5, 2), 50_000, 4)
    assert reading.plan_of(made_up.make_program(5, 2), 70_000, 4) == EpochPlan(1024, 4, 16)


def test_what_trains_from_cold_pages():
    one = {(1, "rows"), (1, "blocks")}
    assert reading.trained(None, 4, True) == one
    assert reading.trained(None, 4, False) == one | {(4, "rows"), (4, "blocks")}
    assert reading.trained(["4:blocks"], 4, True) == {(4, "blocks")}
    with pytest.raises(UserError, match=r"^--trained=2:blocks: expected some of 4:rows, 4:blocks, 1:rows, 1:blocks$"):
        reading.trained(["4:blocks", "2:blocks"], 4, True)


def test_spread():
    assert reading.spread([3.0, 1000.5, 2.0], 1) == "3.0 (2.0-1,000.5)"


def test_table_of_cold_pages(stores, monkeypatch):
    """In two rounds every dispatch takes a second, and reading all sequentially a second more each time."""
    store, plan = stores[0], EpochPlan(32, 6, 4)
    sequential = []

    def seconds_of(work):
        before = len(sequential)
        work()
        return (float(len(sequential)) if len(sequential) > before else 1.0), store.num_bytes

    original = reading.read_sequentially
    monkeypatch.setattr(reading, "read_sequentially", lambda *args: sequential.append(1) or original(*args))
    monkeypatch.setattr(reading, "timed", seconds_of)
    if not reading._FLAGS.is_parsed():
        reading._FLAGS(["reading", "--dispatches=2", "--rounds=2"])
    table = reading._cold(store, plan).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| sequential reads of 4 MB",
        "| pipeline, shuffle=rows",
        "| pipeline, shuffle=blocks",
    ]
    assert all(line.count(" | ") == 4 for line in table if not line.startswith("| ---"))
    assert len(sequential) == 5
    part = plan.num_steps * plan.batch_size * 4 * store.layout.num_words / store.num_bytes  # of a dispatch
    # Between the sequential readings of 1, 2, 3, 4 and 5 seconds; single rows in two dispatches, blocks in all six.
    assert f" {reading.spread([2 * part * 1.5, 2 * part * 3.5], 2)} " in table[3]
    assert f" {reading.spread([6 * part * 2.5, 6 * part * 4.5], 2)} " in table[4]
