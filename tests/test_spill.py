"""Spilled rows and the shards made of them: what they hold, and where the disk fails."""

import errno
import itertools
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data import sort, spill
from mean_jax.data.buffers import RowPages
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.sort import sort_shard
from mean_jax.data.spill import Spiller, spill_schema
from mean_jax.types import RowLayout
from tests.conftest import LABELS

SCHEMA = spill_schema(pa.int64())


def spilled(folder, names, batches, num_words):
    """Spills batches of (hashes, words), divided among the shards in turn, with row numbers as ids and positions."""
    spiller = Spiller(folder, names, SCHEMA, num_words)
    first = 0
    for hashes, words in batches:
        spiller.room(len(words))[:] = words
        ends = np.linspace(0, len(words), len(names) + 1).astype(int)
        for shard, (begin, end) in enumerate(itertools.pairwise(ends)):
            part, rows = slice(begin, end), np.arange(first + begin, first + end)
            spiller.append(shard, part, hashes[part], rows.astype(np.uint64), pa.array(rows))
        first += len(words)
    spiller.finish()


@pytest.mark.parametrize("numeric_type", ["float32", "float16"])
@pytest.mark.parametrize("num_columns", [1, 3, 700])
@pytest.mark.parametrize("read_bytes", [1, 1 << 22])
def test_a_shard_holds_its_rows_in_the_order_of_their_hashes(
    tmp_path, monkeypatch, numeric_type, num_columns, read_bytes
):
    """Of two processes; equal hashes stand in the order of the input. Pieces begin and end within pages."""
    monkeypatch.setattr(spill, "_READ_BYTES", read_bytes)
    rng = np.random.default_rng(0)
    batches = []
    for num_rows in (50, 7, 300, 20):
        values = rng.integers(-50, 50, (num_rows, num_columns + 1)).astype(np.float32)
        batches.append((rng.integers(0, 40, num_rows).astype(np.uint64), values))
    for process, own in (("1", batches[:2]), ("2", batches[2:])):
        folder = tmp_path / process
        folder.mkdir()
        spilled(folder, ["a", "b"], own, num_columns + 1)
        for path in folder.iterdir():
            name, _, kind = path.name.split(".")
            path.rename(tmp_path / f"{name}.{process}.{kind}")
    layout = RowLayout(num_columns, 0, 1, numeric_type, (0,) * num_columns if numeric_type == "float16" else ())
    numbers = [np.arange(len(hashes)) for hashes, _ in batches]
    numbers[1], numbers[3] = numbers[1] + 50, numbers[3] + 300  # as `spilled` counted
    room = RowPages(num_columns + 1)
    for name, half in (("a", lambda rows: rows[: len(rows) // 2]), ("b", lambda rows: rows[len(rows) // 2 :])):
        hashes, words = (np.concatenate([half(batch[part]) for batch in batches]) for part in (0, 1))
        positions = np.concatenate([half(rows) for rows in numbers])
        order = np.lexsort((positions, hashes))
        shard, clipped, _ = sort_shard(tmp_path, name, len(hashes), room, SCHEMA, layout, tmp_path)
        stored = np.fromfile(tmp_path / shard.file, np.float32).reshape(shard.rows, -1)
        np.testing.assert_array_equal(layout.widen(stored), words[order])
        ids = pq.read_table(tmp_path / shard.ids_file).column("id").to_numpy()
        np.testing.assert_array_equal(ids, positions[order])
        assert not clipped.any()
        assert list(tmp_path.glob(f"{name}.?.*")) == []


@pytest.fixture
def three_rows(tmp_path):
    spilled(tmp_path, ["shard"], [(np.arange(3, dtype=np.uint64), np.zeros((3, 1), np.float32))], 1)


def test_a_shard_that_does_not_fit_says_so(tmp_path, three_rows):
    """The system's own error, from the file that is always full."""
    output = tmp_path / "output"
    output.mkdir()
    (output / "shard.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as failure:
        sort_shard(tmp_path, "shard", 3, RowPages(1), SCHEMA, RowLayout(1, 0, 0), output)
    assert (failure.value.errno, failure.value.filename) == (errno.ENOSPC, str(output / "shard.bin"))


def test_a_spill_that_was_cut_short_is_no_shard(tmp_path, three_rows):
    (path,) = tmp_path.glob("shard.*.rows")
    os.truncate(path, 11)
    with pytest.raises(OSError, match="cut short") as failure:
        sort_shard(tmp_path, "shard", 3, RowPages(1), SCHEMA, RowLayout(1, 0, 0), tmp_path)
    assert failure.value.filename == str(path)


@pytest.mark.parametrize("size", [None, 0, 3, 20, -1])
def test_keys_that_were_lost_are_no_shard(tmp_path, three_rows, size):
    """All of them, or cut anywhere: the rows are there, and what they are is not."""
    (path,) = tmp_path.glob("shard.*.keys")
    place = path
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    if not size:
        place = tmp_path / "shard"
    with pytest.raises(OSError, match=r"cut short|Expected to be able to read") as failure:
        sort_shard(tmp_path, "shard", 3, RowPages(1), SCHEMA, RowLayout(1, 0, 0), tmp_path)
    assert failure.value.filename == str(place)
    assert not (tmp_path / "shard.bin").exists()


def test_clipped_values_are_counted_over_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sort, "_PACK_BYTES", 40)
    values = np.where(np.arange(50)[:, None] % 5 < [2, 0], 1e6, 1.0).astype(np.float32)
    spilled(tmp_path, ["shard"], [(np.arange(50, dtype=np.uint64), values)], 2)
    layout = RowLayout(2, 0, 0, "float16", (0, 0))
    _, clipped, _ = sort_shard(tmp_path, "shard", 50, RowPages(2), SCHEMA, layout, tmp_path)
    assert clipped.tolist() == [20, 0]


def test_nothing_is_written_once_it_was_stopped(tmp_path, monkeypatch):
    """Of many slow pieces those under way end, and the others never begin."""
    original, under_way = spill.write, []

    def slow(file, memory):
        under_way.append(file.name)
        time.sleep(0.05)
        original(file, memory)
        under_way.remove(file.name)

    monkeypatch.setattr(spill, "write", slow)
    spiller = Spiller(tmp_path, [str(number) for number in range(40)], SCHEMA, 1)
    spiller.room(40)
    for number in range(40):
        numbers = np.array([number], np.uint64)
        spiller.append(number, slice(number, number + 1), numbers, numbers, pa.array([number]))
    spiller.stop()
    assert not under_way
    found = len(list(tmp_path.iterdir()))
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == found < 80


def test_an_interrupt_while_rows_are_written_leaves_nothing(table_path, tmp_path, monkeypatch):
    original, begun = spill.write, []

    def slow(file, memory):
        begun.append(file.name)
        time.sleep(0.05)
        original(file, memory)

    def interrupt(under_way):
        if under_way:
            raise KeyboardInterrupt

    monkeypatch.setattr(spill, "write", slow)
    monkeypatch.setattr(spill, "wait", interrupt)
    output = tmp_path / "output" / "store"
    with pytest.raises(KeyboardInterrupt):
        prepare(str(table_path), output, PrepareOptions(label_columns=LABELS, shard_bytes=2000))
    num_begun = len(begun)
    time.sleep(0.2)
    assert len(begun) == num_begun > 0
    assert list(output.parent.iterdir()) == []


def test_a_piece_that_does_not_fit_is_told_with_nothing_under_way(tmp_path, monkeypatch):
    """One of many pieces fails; the others are done, and the next room can be filled."""
    spiller = Spiller(tmp_path, [str(number) for number in range(20)], SCHEMA, 1)
    original = spill.write

    def fail(file, memory):
        if "/7." in str(file.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file, memory)

    monkeypatch.setattr(spill, "write", fail)
    spiller.room(20)[:] = np.arange(20)[:, None]
    for number in range(20):
        numbers = np.array([number], np.uint64)
        spiller.append(number, slice(number, number + 1), numbers, numbers, pa.array([number]))
    with pytest.raises(OSError, match="No space left") as failure:
        spiller.room(5)
    assert failure.value.filename == str(tmp_path / f"7.{os.getpid()}.rows")
    assert len(list(tmp_path.glob("*.keys"))) == 19
    assert spiller.room(5).shape == (5, 1)
