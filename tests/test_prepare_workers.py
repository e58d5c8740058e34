"""mean-jax-prepare by several processes: the same store and the same errors, and nothing is left of any ending."""

import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.data import passes, units
from mean_jax.data.ownership import SCRATCH_NAME, lock, remove_abandoned
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import SPLITS, Store
from tests.conftest import LABELS
from tests.test_prepare import expected_words, files_of, prepared, replaced, rows_by_id

# Small units make a small table work for several processes.
PROGRAM = """
import os, signal, time
from mean_jax.cli import prepare as command
from mean_jax.data import passes, units
units.UNIT_ROWS = 200
{change}
command.main()
"""


@pytest.fixture
def folder(table, tmp_path):
    """The table in files of 300 rows and row groups of 100."""
    path = tmp_path / "parts"
    path.mkdir()
    for part, start in enumerate(range(0, 1000, 300)):
        pq.write_table(table[start : start + 300], path / f"{part}.parquet", row_group_size=100)
    return path


def run(folder, output, change="", preexec=None, flags=()) -> subprocess.CompletedProcess:
    """Runs the command with two processes after a change to its modules."""
    given = [f"--input={folder}", f"--output={output}", f"--label_columns={','.join(LABELS)}", "--num_workers=2"]
    program = [sys.executable, "-c", PROGRAM.format(change=change), *given, *flags]
    return subprocess.run(program, capture_output=True, text=True, check=False, preexec_fn=preexec)


def said(ended: subprocess.CompletedProcess) -> str:
    """Returns what a run wrote, without the lines of progress that a slow machine adds."""
    return re.sub(r"[\d:]+ (?:check|read|sort): .* rows/s\n", "", ended.stderr)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_any_number_of_workers_writes_the_same_files(folder, table, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(units, "UNIT_ROWS", 200)
    monkeypatch.setattr(units, "UNIT_CSV_BYTES", 10_000)
    if kind == "csv":
        plain = replaced(table, channel=table["channel"].cast(pa.string()))
        for path in folder.iterdir():
            start = 300 * int(path.stem)
            pa_csv.write_csv(plain[start : start + 300], path.with_suffix(".csv"))
            path.unlink()
    stores = []
    for num_workers in (1, 3):
        options = PrepareOptions(
            label_columns=LABELS, num_workers=num_workers, shard_bytes=4000, numeric_type="float16"
        )
        prepare(str(folder), tmp_path / f"{num_workers}", options)
        stores.append(Store(tmp_path / f"{num_workers}"))
    assert len(list(stores[0].folder.glob("train-*.bin"))) > 3
    assert files_of(stores[0]) == files_of(stores[1])
    assert sorted(rows_by_id(stores[0])) == table["customer_id"].to_pylist()


def test_an_error_in_a_worker_is_one_line_that_names_the_first_bad_row(folder, table, tmp_path):
    for part, row in ((1, 250), (2, 10)):
        start = 300 * part
        label = table["cltv_30"].to_numpy()[start : start + 300].copy()
        label[row] = -1.0
        part_table = replaced(table[start : start + 300], cltv_30=label)
        pq.write_table(part_table, folder / f"{part}.parquet", row_group_size=100)
    ended = run(folder, tmp_path / "store")
    assert ended.returncode == 2
    assert re.fullmatch(r"error: .*1\.parquet row 251: label cltv_30 is negative .*\n", said(ended)), ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


ENDINGS = {
    "terminated": (
        "passes.Passes.sort = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(30))",
        128 + signal.SIGTERM,
        "",
    ),
    "interrupted": (
        # A shell's background jobs start with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "passes.Passes.sort = lambda *_: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30))",
        128 + signal.SIGINT,
        "interrupted\n",
    ),
    "worker killed": (
        "spill = passes.Passes.spill\n"
        "def killing(self, *arguments):\n"
        "    self._workers._processes[0].kill()\n"
        "    return spill(self, *arguments)\n"
        "passes.Passes.spill = killing",
        2,
        r"error: --num_workers=2: a worker process was ended by signal 9, most likely because memory ran out; use .*\n",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_early_end_leaves_nothing(folder, tmp_path, ending):
    change, code, message = ENDINGS[ending]
    scratch = tmp_path / "elsewhere"
    scratch.mkdir()
    ended = run(folder, tmp_path / "store", change, flags=[f"--scratch={scratch}"])
    assert ended.returncode == code
    assert re.fullmatch(message, said(ended)), ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "parts"]
    assert list(scratch.iterdir()) == []


def test_a_second_run_finishes_what_kill_9_ended(folder, table_path, store, tmp_path):
    ended = run(folder, tmp_path / "store", "passes.Passes.sort = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    assert len(list(tmp_path.glob(".store.*.tmp"))) == 1
    prepare(str(table_path), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "store"]
    assert files_of(Store(tmp_path / "store")) == files_of(store)


def test_only_what_no_living_process_holds_is_removed(tmp_path):
    names = {name: tmp_path / f".{name}.0123456789ab.tmp" for name in ("store", "store2", "stores")}
    for path in names.values():
        (path / SCRATCH_NAME).mkdir(parents=True)
    young = tmp_path / ".store.ba9876543210.tmp"
    young.mkdir()  # its process has not locked it yet
    with lock(names["store"]):
        remove_abandoned(tmp_path / "store")
        assert all(path.exists() for path in names.values())
    remove_abandoned(tmp_path / "store")
    assert sorted(tmp_path.iterdir()) == sorted([names["store2"], names["stores"], young])


def test_a_full_disk_is_one_line(folder, tmp_path):
    """A file system of 48 KiB, where root may mount one; else files that may not grow beyond 20 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    limit = None if is_mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        ended = run(folder, disk / "store", preexec=limit)
        left = list(disk.iterdir())
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    message = r"no space left on the disk while writing .*" if is_mounted else r".*/train-00000\.\d+: File too large"
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: {message}\n", said(ended)), ended.stderr
    assert left == []


def test_float16_rows_are_those_of_float32_to_three_digits(table, store, tmp_path):
    half = prepared(replaced(table, orders=table["orders"].cast(pa.float64())), tmp_path, numeric_type="float16")
    assert half.manifest["transform"] == store.manifest["transform"]
    assert half.layout.num_words == 2 + 2 + 2
    largest = np.abs(store.split("train").gather(np.arange(len(store.split("train"))))[:, :4])
    expected = np.frexp(np.nanmax(largest, axis=0))[1] - 12
    assert half.layout.exponents == tuple(expected.tolist())
    for split in SPLITS:
        rows, exact = half.split(split), store.split(split)
        everything = np.arange(len(exact))
        assert rows.ids().equals(exact.ids())
        wide = half.layout.widen(rows.gather(everything))
        np.testing.assert_allclose(wide[:, :4], exact.gather(everything)[:, :4], rtol=2.0**-11)
        np.testing.assert_array_equal(wide[:, 4:].view(np.int32), exact.gather(everything)[:, 4:].view(np.int32))


def test_categories_beyond_the_maximum_are_unknown(table, tmp_path):
    rng = np.random.default_rng(0)
    city = [f"city{value}" for value in rng.permutation(np.repeat(np.arange(40), np.arange(6, 46)))[:1000]]
    store = prepared(replaced(table, city=city), tmp_path, max_categories=3, min_category_count=1)
    vocabulary = store.transform.vocabularies[1]
    assert len(vocabulary) == 3
    found = rows_by_id(store)
    codes = {name: words[5:6].view(np.int32)[0] for name, (_, words) in found.items()}
    for name, text in zip(table["customer_id"].to_pylist(), city, strict=True):
        assert codes[name] == (vocabulary.index(text) + 2 if text in vocabulary else 0)
    assert store.transform.category_counts[1][0] == sum(
        split == "train" and codes[name] == 0 for name, (split, _) in found.items()
    )


def test_batches_of_wide_rows_are_short(folder, tmp_path, monkeypatch):
    given = []
    original = passes.split_units
    monkeypatch.setattr(passes, "split_units", lambda source, rows: given.append(rows) or original(source, rows))
    prepare(str(folder), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    row_bytes = 4 * Store(tmp_path / "store").schema.layout.num_words
    monkeypatch.setattr(passes, "_BYTES_PER_BATCH", 50 * row_bytes + 1)
    prepare(str(folder), tmp_path / "wide", PrepareOptions(label_columns=LABELS))
    assert given == [passes.ROWS_PER_BATCH, 50]


def test_words_are_those_of_the_table_however_the_input_is_divided(folder, table, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_ROWS", 150)
    monkeypatch.setattr(passes, "ROWS_PER_BATCH", 70)
    prepare(str(folder), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    store = Store(tmp_path / "store")
    found = rows_by_id(store)
    words = np.stack([found[name][1] for name in table["customer_id"].to_pylist()])
    np.testing.assert_array_equal(words.view(np.int32), expected_words(store, table).view(np.int32))
