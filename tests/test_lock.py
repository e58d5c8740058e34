"""One run folder, one trainer: refusals, takeovers, races, and the end of a lock."""

import contextlib
import json
import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest

from mean_jax.errors import UserError
from mean_jax.training import lock

# Holds the folder named by the first argument, as a command does, until its input ends or SIGTERM comes.
HOLD = """
import pathlib, signal, sys
from mean_jax.training import lock
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> int:
    process.stdin.close()
    code = process.wait(timeout=30)
    process.stdout.close()
    return code


def locks(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if lock.is_lock(path)]


def rewrite(folder: Path, **fields) -> Path:
    """Changes what the only lock in a folder says of its owner."""
    (path,) = locks(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def leave_behind(folder: Path, **fields) -> Path:
    """Leaves a lock as a process does that is killed."""
    folder.mkdir()
    with lock.hold(folder):
        path = rewrite(folder, **fields)
        content = path.read_text()
    path.write_text(content)
    return path


def test_a_lock_goes_with_its_block_and_an_empty_folder_with_it(tmp_path):
    with lock.hold(tmp_path / "new" / "run"):
        assert len(locks(tmp_path / "new" / "run")) == 1
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), lock.hold(tmp_path / "mine"):
        raise KeyError
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_with_content_stays(tmp_path):
    with lock.hold(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_the_second_is_refused_with_who_since_when_and_what_to_do(tmp_path):
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(UserError) as refused, lock.hold(tmp_path, "--out"):
            pass
    finally:
        end(holder)
    line = str(refused.value)
    assert line.startswith(f"--out: {tmp_path} is in use by process {holder.pid} on ")
    assert f"since {time.strftime('%Y-')}" in line and f"`tail --pid={holder.pid} -f /dev/null`" in line
    assert line.endswith("or choose another --out") and "\n" not in line
    with lock.hold(tmp_path, "--out"):
        pass


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"--workdir: .*run is a file, not a run folder"), lock.hold(tmp_path / "run"):
        pass


def test_sigterm_releases(tmp_path):
    holder = start_holder(tmp_path)
    holder.terminate()
    assert end(holder) == 128 + signal.SIGTERM
    assert locks(tmp_path) == []


def test_a_killed_owner_is_taken_over_at_once(tmp_path, caplog):
    holder = start_holder(tmp_path)
    holder.kill()
    end(holder)
    assert len(locks(tmp_path)) == 1
    with lock.hold(tmp_path):
        assert len(locks(tmp_path)) == 1
    assert locks(tmp_path) == []
    assert f"taking over {tmp_path} from process {holder.pid} on" in caplog.text


@contextlib.contextmanager
def refreshing(path):
    """Refreshes a lock file as its owner on another host would."""
    done = threading.Event()

    def refresh():
        while not done.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("fields", "is_alive"),
    [
        ({}, True),
        ({"start": "1"}, False),  # the pid belongs to another process by now
        ({"pid": 2**22 + 1}, False),
        ({"machine": "another boot of this host", "start": "1"}, True),
        ({"machine": "another host", "pid": 2**22 + 1}, True),
    ],
)
def test_who_counts_as_alive_while_its_file_is_fresh(fields, is_alive, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.05)
    path = leave_behind(tmp_path / "run", **fields)
    if is_alive:
        with refreshing(path), pytest.raises(UserError, match="is in use by process"), lock.hold(tmp_path / "run"):
            pass
        assert len(locks(tmp_path / "run")) == 1
    else:
        with lock.hold(tmp_path / "run"):
            pass


@pytest.mark.parametrize("text", [None, "", '{"machine": "a host that was c'])
def test_a_silent_owner_elsewhere_and_one_without_a_name_are_taken_over(text, tmp_path, monkeypatch):
    """At once if it has been silent for long, else after a wait: a restarted job comes after the one it follows."""
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lock, "_STALE_SECONDS", 1.0)
    path = leave_behind(tmp_path / "run", machine="another host")
    if text is not None:
        path.write_text(text)
    message = "is in use by process" if text is None else "is being locked by another process"
    with refreshing(path), pytest.raises(UserError, match=message), lock.hold(tmp_path / "run"):
        pass
    for silent_seconds in (0.5, 2.0):
        path.touch()
        os.utime(path, (time.time() - silent_seconds,) * 2)
        start = time.monotonic()
        with lock.hold(tmp_path / "run"):
            assert not path.exists()
            assert (time.monotonic() - start > 0.3) == (silent_seconds < 1.0)


def test_an_owner_refreshes_its_file_and_notices_that_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_REFRESH_SECONDS", 0.02)
    with lock.hold(tmp_path, "--workdir") as held:
        (path,) = locks(tmp_path)
        os.utime(path, (1000.0, 1000.0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 2000.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.check()
        path.unlink()
        held._thread.join(timeout=10)
        with pytest.raises(UserError, match=r"--workdir: the lock .* was taken away"):
            held.check()


def _contend(folder: Path, barrier, results, inside) -> None:
    barrier.wait()
    try:
        with lock.hold(folder):
            with inside.get_lock():
                inside.value += 1
                overlap = inside.value
            time.sleep(1.0)  # longer than anyone tries
            with inside.get_lock():
                inside.value -= 1
            results.put(overlap)
    except UserError:
        results.put(0)


def test_a_race_for_a_stale_lock_has_one_winner(tmp_path):
    context = multiprocessing.get_context("spawn")
    leave_behind(tmp_path / "run", start="1")
    count = 6
    barrier, results, inside = context.Barrier(count), context.Queue(), context.Value("i", 0)
    arguments = (tmp_path / "run", barrier, results, inside)
    processes = [context.Process(target=_contend, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert outcomes == [0] * (count - 1) + [1]
    assert locks(tmp_path / "run") == []
