"""Opening a store checks every file of it, and a damaged one is named."""

import errno
import json
import os
from pathlib import Path
import shutil

import numpy as np
import pytest

from mean_jax.config import DataConfig
from mean_jax.data import direct
from mean_jax.data import store as store_module
from mean_jax.data.pipeline import plan_epoch, train_dispatches
from mean_jax.data.store import SPLITS, Shard, SplitRows, Store, is_store
from mean_jax.errors import UserError
from mean_jax.types import RowLayout


@pytest.fixture
def copy(store_path, tmp_path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "copy"))


def check_refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store(folder)


def test_a_store_can_be_copied(copy, store):
    assert is_store(copy)
    assert Store(copy).schema == store.schema
    assert Store(copy).transform.to_dict() == store.transform.to_dict()


def test_no_store(tmp_path):
    check_refused(tmp_path / "no", r"--data: folder .*no does not exist; make a store with mean-jax-prepare")
    check_refused(tmp_path, r"--data: .* is not a training store, it has no manifest\.json; use mean-jax-prepare")
    assert not is_store(tmp_path)


@pytest.mark.parametrize(
    "name", ["schema.json", "train-00000.bin", "train-00000-ids.parquet", "validation-00000.bin", "test-00000.bin"]
)
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    check_refused(copy, rf"{name}: missing")


@pytest.mark.parametrize("name", ["manifest.json", "schema.json", "test-00000.bin", "test-00000-ids.parquet"])
@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_bit(copy, name, position):
    content = bytearray((copy / name).read_bytes())
    content[int(position * len(content))] ^= 1
    (copy / name).write_bytes(content)
    check_refused(copy, rf"{name}: (checksum does not match|damaged|is a|format version)")


def test_a_cut_shard(copy):
    path = copy / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-32])
    check_refused(copy, r"train-00000\.bin: has \d+ bytes, expected \d+; the shard was cut, make the store again")
    with pytest.raises(UserError, match="was cut"):
        Store(copy, verify=False)  # without reading the bytes


@pytest.mark.parametrize("name", ["manifest.json", "schema.json"])
def test_another_version(copy, name):
    content = json.loads((copy / name).read_text())
    version = content["version"]
    (copy / name).write_text(json.dumps(content | {"version": version + 1}))
    message = f"{name}: format version {version + 1}, this program reads version {version}; use the program version"
    check_refused(copy, message)


def test_a_store_of_version_1_is_to_be_made_again(copy):
    content = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(content | {"version": 1}))
    check_refused(copy, r"manifest\.json: format version 1, this program reads version 2; .* or make it again")


def test_manifest_counts(store, table):
    assert store.manifest["rows"] == sum(len(store.split(split)) for split in SPLITS) == len(table)
    assert store.manifest["rows_without_label"] == 0


def test_gather_takes_rows_in_any_order_and_number(store):
    rows = store.split("train")
    everything = rows.gather(np.arange(len(rows)))
    chosen = np.array([5, 0, 5, len(rows) - 1])
    np.testing.assert_array_equal(rows.gather(chosen).view(np.int32), everything[chosen].view(np.int32))
    assert rows.gather(np.arange(0)).shape == (0, store.schema.layout.num_words)


def test_rows_are_ordered_independently_of_their_ids(store):
    numbers = [int(name[1:]) for name in store.split("train").ids().to_pylist()]
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.1


def test_words_unpack_into_a_batch():
    layout = RowLayout(num_numeric=2, num_categorical=1, num_labels=1)
    words = np.array([[1.5, np.nan, 0.0, 4.0]], np.float32)
    words[:, 2] = np.array([7], np.int32).view(np.float32)
    batch = layout.unpack(words, np.array([True]))
    np.testing.assert_array_equal(batch.numeric, [[1.5, np.nan]])
    np.testing.assert_array_equal(batch.categorical, [[7]])
    np.testing.assert_array_equal(batch.labels, [[4.0]])
    np.testing.assert_array_equal(layout.labels_of(words), [[4.0]])


def test_gathered_rows_are_aligned_so_that_jax_need_not_copy_them(store):
    rows = store.split("train")
    assert all(rows.gather(np.arange(count)).ctypes.data % 64 == 0 for count in (1, 7, 100))


@pytest.fixture(params=[(1000,), (1, 499, 500), (300, 300, 300, 100)])
def numbered(request, tmp_path) -> SplitRows:
    """Rows of three words, 3 * number + 0, 1, 2, in some shards."""
    words = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    shards = []
    for index, part in enumerate(np.split(words, np.cumsum(request.param)[:-1])):
        part.tofile(tmp_path / f"{index}.bin")
        shards.append(Shard(f"{index}.bin", "", len(part), "", ""))
    return SplitRows(tmp_path, tuple(shards), RowLayout(2, 0, 1))


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
@pytest.mark.parametrize("count", [1, 5, 130, 997, 5000])  # by one thread and by several
def test_rows_of_several_shards(numbered, index_type, count):
    chosen = np.random.default_rng(count).integers(0, 1000, count).astype(index_type)
    np.testing.assert_array_equal(numbered.gather(chosen), 3 * chosen[:, None] + np.arange(3)[None])


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (0, 2), (298, 303), (500, 500), (999, 1000), (450, 950)])
def test_a_run_of_rows(numbered, start, stop):
    words = numbered.gather(np.arange(start, stop))
    np.testing.assert_array_equal(words, np.arange(3 * start, 3 * stop).reshape(-1, 3))
    np.testing.assert_array_equal(numbered.gather(np.arange(start, stop)[::-1]), words[::-1])


@pytest.fixture
def beyond_memory(numbered, tmp_path, monkeypatch):
    """The same split where nothing is left for it."""
    monkeypatch.setattr(store_module, "available_bytes", lambda: 0)
    return SplitRows(tmp_path, numbered._shards, numbered.layout)


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (0, 2), (299, 303), (999, 1000), (3, 998)])
@pytest.mark.parametrize("fits", [True, False])
def test_rows_that_are_needed_once(numbered, beyond_memory, monkeypatch, fits, start, stop):
    """Through the system's cache and around it: over pages, pieces and shards."""
    monkeypatch.setattr(store_module, "_DIRECT_BYTES", 4096)
    words = np.full((1000, 3), np.nan, np.float32)
    (numbered if fits else beyond_memory).read(start, words[: stop - start])
    np.testing.assert_array_equal(words[: stop - start], np.arange(3 * start, 3 * stop).reshape(-1, 3))
    assert np.isnan(words[stop - start :]).all()


@pytest.mark.parametrize("available", [0, 1 << 40])
def test_memory_that_cannot_hold_the_split_is_left_alone(numbered, tmp_path, monkeypatch, available):
    """Whether blocks go around the cache is decided by what the system can spare."""
    monkeypatch.setattr(store_module, "available_bytes", lambda: available)
    rows = SplitRows(tmp_path, numbered._shards, numbered.layout)
    places = []
    monkeypatch.setattr(store_module, "read", lambda *given: places.append(given) or direct.read(*given))
    config = DataConfig(shuffle="blocks", block_rows=64, window_blocks=3)
    found = np.concatenate([*train_dispatches(rows, plan_epoch(1000, 100, 5), 1, 0, 0, config)]).reshape(-1, 3)
    np.testing.assert_array_equal(np.sort(found[:, 0]), 3 * np.arange(1000))
    assert bool(places) == (available == 0)
    places.clear()
    np.testing.assert_array_equal(rows.gather(np.arange(5, 900))[:, 0], 3 * np.arange(5, 900))
    assert not places  # rows that are asked for ahead are in the cache


@pytest.mark.parametrize("has_preadv", [True, False])
def test_consecutive_rows_are_read_into_memory_that_is_given(numbered, monkeypatch, has_preadv):
    monkeypatch.setattr(store_module, "_HAS_PREADV", has_preadv)
    words = np.full((700, 3), np.nan, np.float32)
    numbered.read(250, words[:600])
    np.testing.assert_array_equal(words[:600], np.arange(750, 2550).reshape(-1, 3))
    assert np.isnan(words[600:]).all()
    chosen = np.array([5, 999, 3])
    assert numbered.gather(chosen, words[:3]) is not None
    np.testing.assert_array_equal(words[:3, 0], 3 * chosen)


def test_a_read_goes_on_where_the_system_stopped(numbered, monkeypatch):
    original = store_module.os.preadv
    monkeypatch.setattr(store_module.os, "preadv", lambda file, parts, at: original(file, [parts[0][:100]], at))
    words = np.full((1000, 3), np.nan, np.float32)
    numbered.read(0, words)
    np.testing.assert_array_equal(words, np.arange(3000).reshape(-1, 3))


def test_a_shard_that_is_cut_while_it_is_read_is_named(numbered, beyond_memory, tmp_path):
    with open(tmp_path / "0.bin", "r+b") as file:
        file.truncate(12 * numbered._shards[0].rows - 6)
    num_rows = numbered._shards[0].rows
    for first in (0, num_rows - 1):
        with pytest.raises(UserError, match=rf"0\.bin: ends at byte {12 * num_rows - 6}, it was cut while it was read"):
            numbered.read(first, np.empty((num_rows - first, 3), np.float32))
        with pytest.raises(UserError, match=r"0\.bin: ends at byte"):
            beyond_memory.read(first, np.empty((num_rows - first, 3), np.float32))
        with pytest.raises(UserError, match=r"0\.bin: ends at byte"):
            numbered.gather(np.array([first, 0]))


@pytest.mark.parametrize("fits", [True, False])
def test_a_disk_that_fails_is_told_by_the_name_of_the_shard(numbered, beyond_memory, monkeypatch, fits):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store_module.os, "preadv", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*0\.bin"):
        (numbered if fits else beyond_memory).read(0, np.empty((1, 3), np.float32))


def test_what_only_looks_like_a_run(numbered):
    chosen = np.array([3, 9, 5, 6])  # the ends are right, the middle is not
    np.testing.assert_array_equal(numbered.gather(chosen)[:, 0], 3 * chosen)


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (10, 20), (250, 750), (990, 2000), (1000, 2000)])
def test_every_byte_that_is_needed_is_asked_for_in_small_pieces(numbered, monkeypatch, start, stop):
    asked = {}

    def note(file, position, size, advice):
        assert 0 < size <= 64
        assert advice == store_module.os.POSIX_FADV_WILLNEED
        path = store_module.os.readlink(f"/proc/self/fd/{file}")
        asked.setdefault(Path(path).stem, []).extend(range(position, position + size))

    monkeypatch.setattr(store_module, "_ADVICE_BYTES", 64)
    monkeypatch.setattr(store_module.os, "posix_fadvise", note)
    numbered.will_need(start, stop)
    assert all(len(values) == len(set(values)) for values in asked.values())
    expected = {}
    ends = np.cumsum([shard.rows for shard in numbered._shards])
    for row in range(start, min(stop, 1000)):
        index = int(np.searchsorted(ends, row, side="right"))
        own = row - (ends[index - 1] if index else 0)
        expected.setdefault(str(index), []).extend(range(12 * own, 12 * own + 12))
    assert asked == expected


@pytest.mark.parametrize(("available", "expected"), [(0, 1), (119, 1), (120, 0), (None, 0)])
def test_blocks_are_read_without_what_follows_them_where_memory_cannot_hold_it(
    tmp_path, monkeypatch, available, expected
):
    np.zeros(30, np.float32).tofile(tmp_path / "a.bin")
    advice = []
    monkeypatch.setattr(store_module, "available_bytes", lambda: available)
    monkeypatch.setattr(store_module.os, "posix_fadvise", lambda *arguments: advice.append(arguments[1:]))
    rows = SplitRows(tmp_path, (Shard("a.bin", "", 10, "", ""),), RowLayout(2, 0, 1))
    assert advice == [(0, 0, os.POSIX_FADV_RANDOM)] * expected
    assert len(rows) == 10


def test_closed_rows_leave_no_file_open(tmp_path):
    np.zeros(30, np.float32).tofile(tmp_path / "a.bin")
    rows = SplitRows(tmp_path, (Shard("a.bin", "", 10, "", ""),), RowLayout(2, 0, 1))
    words = rows.gather(np.array([1, 0]))
    before = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(link.resolve())]
    assert before
    del rows
    after = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(link.resolve())]
    assert not after
    assert not words.any()


def test_the_limit_of_open_files_grows_with_the_shards(monkeypatch):
    from mean_jax.data import store as module

    asked = []
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (1024, 1_000_000))
    monkeypatch.setattr(module.resource, "setrlimit", lambda _, limits: asked.append(limits))
    module._allow_open_files(100)
    assert asked == []
    module._allow_open_files(2000)
    assert asked == [(2256, 1_000_000)]
