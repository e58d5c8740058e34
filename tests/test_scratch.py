"""--scratch: the rows are shuffled in a folder elsewhere; the store is the same, and nothing is left there."""

import errno
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from mean_jax.cli.prepare import main
from mean_jax.data import passes, spill
from mean_jax.data.append import append
from mean_jax.data.ownership import lock, remove_abandoned
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import Store
from tests.conftest import LABELS
from tests.test_append import new_table
from tests.test_prepare import files_of


@pytest.fixture
def scratch(tmp_path):
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


def spilled(folder) -> list[str]:
    """Returns the shards that stand in the scratch folder of a run in `folder`."""
    return sorted({path.name.split(".")[0] for path in folder.glob(".*.tmp/scratch/*-?????.*")})


def test_rows_are_spilled_there_and_the_store_is_the_same(table_path, store, scratch, tmp_path, monkeypatch):
    sort = passes.Passes.sort

    def look(*arguments):
        assert spilled(scratch) == ["test-00000", "train-00000", "validation-00000"]
        assert spilled(tmp_path) == []
        remove_abandoned(scratch / "store")  # as another run would
        assert len(spilled(scratch)) == 3
        return sort(*arguments)

    monkeypatch.setattr(passes.Passes, "sort", look)
    prepare(str(table_path), tmp_path / "store", PrepareOptions(label_columns=LABELS, scratch=scratch))
    assert files_of(Store(tmp_path / "store")) == files_of(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "store"]
    assert list(scratch.iterdir()) == []


def test_an_append_spills_there(store_path, scratch, tmp_path, monkeypatch):
    pq.write_table(new_table(), tmp_path / "new.parquet")
    for name in ("plain", "spilling"):
        shutil.copytree(store_path, tmp_path / name)
    append(str(tmp_path / "new.parquet"), tmp_path / "plain")
    sort = passes.Passes.sort

    def look(*arguments):
        assert spilled(scratch) == ["test-00001", "train-00001", "validation-00001"]
        assert [path.name.split(".")[1] for path in scratch.iterdir()] == ["spilling"]  # however it is written
        return sort(*arguments)

    monkeypatch.setattr(passes.Passes, "sort", look)
    monkeypatch.chdir(tmp_path / "spilling")
    append(str(tmp_path / "new.parquet"), Path("."), scratch=scratch)
    assert files_of(Store(tmp_path / "spilling")) == files_of(Store(tmp_path / "plain"))
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "spilling" / ".append").exists()


def test_what_kill_9_left_is_removed_by_the_next_run(table_path, store, scratch, tmp_path):
    program = (
        "import os, signal\n"
        "from mean_jax.cli import prepare as command\n"
        "from mean_jax.data import passes\n"
        "passes.Passes.sort = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "command.main()\n"
    )
    flags = [f"--input={table_path}", f"--output={tmp_path / 'store'}", f"--label_columns={','.join(LABELS)}"]
    flags += ["--num_workers=1", f"--scratch={scratch}"]
    ended = subprocess.run([sys.executable, "-c", program, *flags], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(spilled(scratch)) == 3
    assert len(list(tmp_path.glob(".store.*.tmp"))) == 1
    others = scratch / ".another.0123.tmp" / "scratch"
    others.mkdir(parents=True)
    living = scratch / ".store.4567.tmp" / "scratch"
    living.mkdir(parents=True)
    with lock(living.parent):
        prepare(str(table_path), tmp_path / "store", PrepareOptions(label_columns=LABELS, scratch=scratch))
    assert files_of(Store(tmp_path / "store")) == files_of(store)
    assert sorted(scratch.iterdir()) == sorted([others.parent, living.parent])
    assert list(tmp_path.glob(".store.*.tmp")) == []


def test_a_folder_that_is_none_or_full(call, table_path, scratch, tmp_path, monkeypatch):
    flags = [f"--input={table_path}", f"--output={tmp_path / 'store'}", f"--label_columns={','.join(LABELS)}"]
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "missing", tmp_path / "file"):
        code, stderr = call(main, *flags, f"--scratch={path}")
        assert code == 2
        assert stderr == f"error: --scratch: {path} is no folder; make it or choose another\n"
    code, stderr = call(main, *flags, "--scratch=")
    assert (code, stderr) == (2, "error: --scratch: names no folder; name one or leave it out\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    code, stderr = call(main, *flags, f"--scratch={scratch}")
    assert (code, stderr) == (
        2,
        f"error: --scratch: {scratch} cannot be written to; change its rights or choose another\n",
    )
    monkeypatch.undo()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "write", fail)
    code, stderr = call(main, *flags, f"--scratch={scratch}", "--num_workers=1")
    assert code == 2
    place = re.escape(str(scratch))
    mend = "free some or choose another folder"
    message = rf"error: no space left on the disk while writing {place}/.*-00000\.\d+\.rows; {mend}\n"
    assert re.fullmatch(message, stderr), stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "file"]
    assert list(scratch.iterdir()) == []
