"""mean-jax-prepare --append: new rows under the fitted transform, and a store that is whole at any moment."""

import json
import os
import re
import shutil
import signal
from stat import S_ISDIR
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.prepare import main
from mean_jax.data.append import append
from mean_jax.data.ownership import lock
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import SPLITS, Store
from mean_jax.errors import UserError
from mean_jax.fileio import write_json
from tests.conftest import LABELS, make_table, train_tiny
from tests.test_prepare import expected_words, files_of, replaced, rows_by_id


@pytest.fixture
def copy(store_path, tmp_path):
    """A store of its own to append to."""
    return shutil.copytree(store_path, tmp_path / "store")


def new_table(num_rows: int = 300, seed: int = 7) -> pa.Table:
    ids = pa.array([f"n{index:05d}" for index in range(num_rows)])
    return replaced(make_table(num_rows, seed), customer_id=ids)


@pytest.fixture
def new_path(tmp_path):
    path = tmp_path / "new.parquet"
    pq.write_table(new_table(), path)
    return path


def test_old_rows_stay_and_new_ones_follow(copy, store, table, new_path):
    append(str(new_path), copy)
    both = Store(copy)  # with every checksum
    new = new_table()
    for split in SPLITS:
        old, rows = store.split(split), both.split(split)
        everything = np.arange(len(old))
        assert len(rows) > len(old)
        assert rows.gather(everything).tobytes() == old.gather(everything).tobytes()
    found = rows_by_id(both)
    assert sorted(found) == sorted([*table["customer_id"].to_pylist(), *new["customer_id"].to_pylist()])
    words = np.stack([found[name][1] for name in new["customer_id"].to_pylist()])
    np.testing.assert_array_equal(words.view(np.int32), expected_words(both, new).view(np.int32))
    assert both.manifest["transform"] == store.manifest["transform"]
    assert both.manifest["rows"] == len(table) + len(new)
    assert sorted(path.name for path in copy.glob("train-*")) == [
        f"train-0000{number}{end}" for number in (0, 1) for end in ("-ids.parquet", ".bin")
    ]
    entry = both.manifest["appends"][0]
    assert entry["rows"] == 300
    assert set(entry["stability"]) == {*store.schema.numeric, *store.schema.categorical, *LABELS}
    assert sum(entry["rows_per_split"].values()) == 300


def test_splits_are_those_of_preparing_all_at_once(copy, table, new_path, tmp_path):
    append(str(new_path), copy)
    pq.write_table(pa.concat_tables([table, new_table()]), tmp_path / "all.parquet")
    prepare(str(tmp_path / "all.parquet"), tmp_path / "all", PrepareOptions(label_columns=LABELS))
    splits = {name: split for name, (split, _) in rows_by_id(Store(copy)).items()}
    assert splits == {name: split for name, (split, _) in rows_by_id(Store(tmp_path / "all")).items()}


def test_a_run_begun_before_an_append_does_not_go_on_in_another_order(copy, new_path, tmp_path):
    run = tmp_path / "run"
    assert train_tiny(copy, run, "train.max_epochs=1")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"}
    for name in ("run.json", "calibration.json"):
        (run / name).unlink()  # as if it had been stopped after its last checkpoint
    old = len(Store(copy).split("train"))
    append(str(new_path), copy)
    new = len(Store(copy).split("train"))
    message = (
        rf"--data: the store has {new} training rows, those of step \d+ in .*run came from {old}; .* new --workdir"
    )
    with pytest.raises(UserError, match=message):
        train_tiny(copy, run, "train.max_epochs=1")
    assert (run / "config.json").read_bytes() == before["config.json"]
    assert train_tiny(copy, tmp_path / "another", "train.max_epochs=1")


def test_further_appends_csv_and_columns_in_another_order(copy, new_path, tmp_path):
    append(str(new_path), copy)
    more = make_table(200, seed=9)
    more = replaced(more, customer_id=pa.array([f"m{index}" for index in range(200)]), extra=np.arange(200))
    more = replaced(more, channel=more["channel"].cast(pa.string())).select([*reversed(more.column_names)])
    pa_csv.write_csv(more, tmp_path / "more.csv")
    append(str(tmp_path / "more.csv"), copy)
    both = Store(copy)
    assert [entry["rows"] for entry in both.manifest["appends"]] == [300, 200]
    found = rows_by_id(both)
    words = np.stack([found[name][1] for name in more["customer_id"].to_pylist()])
    np.testing.assert_array_equal(words.view(np.int32), expected_words(both, more).view(np.int32))


def test_a_float16_store_stays_one(table_path, new_path, tmp_path):
    prepare(str(table_path), tmp_path / "half", PrepareOptions(label_columns=LABELS, numeric_type="float16"))
    append(str(new_path), tmp_path / "half")
    both = Store(tmp_path / "half")
    rows = both.split("test")
    assert both.layout.numeric_type == "float16" and rows.layout == both.layout
    wide = rows.layout.widen(rows.gather(np.arange(len(rows))))
    wide = dict(zip(rows.ids().to_pylist(), wide, strict=True))
    new = new_table()
    for words, name in zip(expected_words(both, new), new["customer_id"].to_pylist(), strict=True):
        if name in wide:
            np.testing.assert_allclose(wide[name][:4], words[:4], rtol=2.0**-11)
            np.testing.assert_array_equal(wide[name][4:].view(np.int32), words[4:].view(np.int32))


def test_ids_that_are_all_digits_this_time_stay_text_beside_text(copy, tmp_path):
    digits = [f"{9000 + index}" for index in range(300)]
    pa_csv.write_csv(replaced(new_table(), customer_id=digits), tmp_path / "new.csv")
    append(str(tmp_path / "new.csv"), copy)
    assert set(digits) < set(rows_by_id(Store(copy)))


@pytest.mark.parametrize("num_stored", [1, 40])
def test_an_id_that_is_there_already(copy, table, call, tmp_path, num_stored):
    before = files_of(Store(copy))
    pq.write_table(pa.concat_tables([new_table(), table[500 : 500 + num_stored]]), tmp_path / "new.parquet")
    code, stderr = call(main, "--append", f"--input={tmp_path / 'new.parquet'}", f"--output={copy}")
    assert code == 2
    message = (
        r"error: --input: customer_id 'c00500' stands in the store already \(\w+-00000-ids\.parquet\) and in "
        r".*new\.parquet row 301; one row per customer is needed\n"
    )
    assert re.fullmatch(message, stderr)
    assert files_of(Store(copy)) == before


def test_mistakes_leave_the_store_as_it_was(copy, call, new_path, tmp_path):
    before = files_of(Store(copy))
    pq.write_table(new_table().drop_columns(["age"]), tmp_path / "less.parquet")
    pq.write_table(replaced(new_table(), customer_id=np.arange(300)), tmp_path / "numbers.parquet")
    negative = replaced(new_table(), cltv_30=np.append(np.ones(299), -1.0))
    pq.write_table(negative, tmp_path / "negative.parquet")
    unknown = replaced(new_table(), **{label: pa.nulls(300, pa.float64()) for label in LABELS})
    pq.write_table(unknown, tmp_path / "unknown.parquet")
    cases = {
        "less": r"--input: column age, which the store needs, is not in .*less\.parquet; .*",
        "numbers": r"--input: column customer_id is of type int64, the ids of the store are string; write it as these",
        "negative": r".*negative\.parquet row 300: label cltv_30 is negative .*",
        "unknown": r"--input: no row has a known label; there is nothing to append",
    }
    for name, message in cases.items():
        code, stderr = call(main, "--append", f"--input={tmp_path / name}.parquet", f"--output={copy}")
        assert code == 2
        assert re.fullmatch(f"error: {message}\n", stderr), stderr
    for flag in ("--split_seed=1", "--numeric_type=float16", "--exclude=age", "--id_column=customer_id"):
        code, stderr = call(main, "--append", flag, f"--input={new_path}", f"--output={copy}")
        assert code == 2
        name = flag.split("=")[0]
        assert stderr == f"error: {name}: an append takes it from the store; leave it out or make a new store\n"
    code, stderr = call(main, "--append", f"--input={new_path}", f"--output={tmp_path / 'no'}")
    assert code == 2 and re.match(r"error: --output: folder .*no does not exist", stderr)
    with lock(copy):
        code, stderr = call(main, "--append", f"--input={new_path}", f"--output={copy}")
    assert code == 2 and re.match(r"error: --output: another append to .*store is running; wait for it", stderr)
    assert files_of(Store(copy)) == before
    assert not (copy / ".append").exists()


@pytest.mark.parametrize("moment", ["passes.sort_shard", "append.write_json"])
def test_a_killed_append_leaves_the_old_store_and_the_next_one_works(copy, store, new_path, tmp_path, moment):
    """kill -9 while shards are written, and once they are moved but not named by the manifest yet."""
    program = (
        "import os, signal\n"
        f"import mean_jax.data.{moment.split('.')[0]} as lib\n"
        "from mean_jax.data.append import append\n"
        f"lib.{moment.split('.')[1]} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"append({str(new_path)!r}, {str(copy)!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (copy / ".append").exists()
    assert Store(copy).manifest == store.manifest
    append(str(new_path), copy)
    again = files_of(Store(copy))
    shutil.copytree(store.folder, tmp_path / "clean")
    append(str(new_path), tmp_path / "clean")
    assert again == files_of(Store(tmp_path / "clean"))


def test_ids_that_are_not_of_the_kind_or_the_width_of_the_store(table, tmp_path):
    path = tmp_path / "store"
    pq.write_table(replaced(table, customer_id=np.arange(1000, dtype=np.int32)), tmp_path / "table.parquet")
    prepare(str(tmp_path / "table.parquet"), path, PrepareOptions(label_columns=LABELS))
    before = files_of(Store(path))
    wide = 1000 + np.arange(300)
    wide[123] = 3_000_000_000
    pq.write_table(replaced(new_table(), customer_id=wide), tmp_path / "wide.parquet")
    with pytest.raises(UserError, match=r"wide\.parquet row 124: customer_id 3000000000 does not fit int32"):
        append(str(tmp_path / "wide.parquet"), path)
    pq.write_table(replaced(new_table(), customer_id=wide * 1.0), tmp_path / "real.parquet")
    with pytest.raises(UserError, match=r"customer_id: is of type double; ids are integers or text"):
        append(str(tmp_path / "real.parquet"), path)
    assert files_of(Store(path)) == before


def test_only_what_an_append_leaves_is_removed(copy, new_path):
    own, other = copy / ".manifest.json.0123456789ab.tmp", copy / ".notes.txt.0123456789ab.tmp"
    own.touch()
    other.touch()
    append(str(new_path), copy)
    assert other.exists() and not own.exists()


@pytest.mark.parametrize("command", ["prepare", "append"])
def test_shards_and_folder_are_on_the_disk_before_the_manifest(
    copy, table_path, new_path, tmp_path, monkeypatch, command
):
    fsync, synced, seen = os.fsync, set(), []
    lib = sys.modules[f"mean_jax.data.{command}"]

    def record(descriptor):
        fsync(descriptor)
        stat = os.fstat(descriptor)
        # A folder counts with the names that it has by then.
        names = frozenset(os.listdir(descriptor)) if S_ISDIR(stat.st_mode) else None
        synced.add((stat.st_ino, names))

    def write_manifest(path, kind, version, content):
        for split in SPLITS:
            shard = content["splits"][split]["shards"][-1]
            for name in (shard["file"], shard["ids_file"]):
                assert ((path.parent / name).stat().st_ino, None) in synced
                inode = path.parent.stat().st_ino
                assert any(number == inode and name in (names or ()) for number, names in synced)
            seen.append(split)
        write_json(path, kind, version, content)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(lib, "write_json", write_manifest)
    if command == "prepare":
        prepare(str(table_path), tmp_path / "new", PrepareOptions(label_columns=LABELS))
    else:
        append(str(new_path), copy)
    assert seen == list(SPLITS)


def test_values_beyond_float16_are_counted(table, call, tmp_path):
    """Columns are wide enough for 16 times the largest training value; what lies beyond is said, not hidden."""
    pq.write_table(table, tmp_path / "table.parquet")
    arguments = ("--numeric_type=float16", f"--label_columns={','.join(LABELS)}", "--num_workers=1")
    code, stderr = call(main, *arguments, f"--input={tmp_path / 'table.parquet'}", f"--output={tmp_path / 'store'}")
    assert code == 0 and "float16" not in stderr
    assert re.search(r"passes: check [\d.]+ s, ids [\d.]+ s, read [\d.]+ s, sort [\d.]+ s\n", stderr)
    store = Store(tmp_path / "store")
    new = new_table()
    new = replaced(new, spend=new["spend"].to_numpy() * -1e3, orders=new["orders"].to_numpy() * 1e2)
    pq.write_table(new, tmp_path / "new.parquet")
    counts = {}
    for name in ("spend", "orders"):
        limit = 65504.0 * 2.0 ** store.layout.exponents[store.schema.numeric.index(name)]
        counts[name] = int((np.abs(new[name].to_numpy().astype(np.float32)) > limit).sum())
    assert 0 < counts["orders"] < counts["spend"] < 300
    code, stderr = call(
        main, "--append", "--num_workers=1", f"--input={tmp_path / 'new.parquet'}", f"--output={tmp_path / 'store'}"
    )
    assert code == 0
    expected = (
        f"{sum(counts.values())} values of 2 columns exceed what --numeric_type=float16 holds of them and were set to "
        f"its largest number: most in spend ({counts['spend']}), orders ({counts['orders']})"
    )
    assert expected in stderr
    # Those of the other splits can do so when a store is made: here the last split's rows are all larger.
    shares = np.repeat(list(SPLITS), [700, 100, 200])
    spend = np.where(shares == "test", 1e4, 1.0) * table["spend"].to_numpy()
    pq.write_table(replaced(table, spend=spend, part=shares), tmp_path / "table.parquet")
    arguments += ("--split_column=part", f"--input={tmp_path / 'table.parquet'}", f"--output={tmp_path / 'other'}")
    code, stderr = call(main, *arguments)
    assert code == 0 and re.search(r"\d+ values of 1 columns exceed .* most in spend \(\d+\)", stderr)


def test_the_shift_is_said(copy, call, tmp_path):
    moved = new_table()
    moved = replaced(moved, spend=pa.array(moved["spend"].to_numpy() * 10), age=pa.nulls(300, pa.float64()))
    pq.write_table(moved, tmp_path / "moved.parquet")
    code, stderr = call(
        main, "--append", "--num_workers=1", f"--input={tmp_path / 'moved.parquet'}", f"--output={copy}"
    )
    assert code == 0
    indices = json.loads((copy / "manifest.json").read_text())["appends"][0]["stability"]
    order = sorted(("spend", "age"), key=lambda name: -indices[name])
    lines = [line for line in stderr.splitlines() if "has shifted" in line]
    assert [re.search(r"column (\w+) has", line)[1] for line in lines] == order
    assert "2 shifted" in stderr
