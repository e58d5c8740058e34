"""Worker processes: order, errors and ends."""

import errno
from multiprocessing.context import SpawnProcess
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mean_jax.data.workers import Workers
from mean_jax.errors import UserError


def work(task: int) -> tuple[int, int]:
    """Takes the longer the earlier the task is; misbehaves for some numbers."""
    time.sleep(0.02 * max(0, 5 - task))
    if task == 100:
        time.sleep(0.2)
        raise UserError("the first that fails")
    if task == 101:
        raise OSError(errno.ENOSPC, "No space left on device", "file")
    if task == 102:
        raise ValueError("a defect")
    if task == 103:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 104:
        os.kill(os.getpid(), signal.SIGTERM)
    return task * task, os.getpid()


def square(task: int) -> int:
    return task * task


def grow(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for array in arrays.values():
        array += 1  # what was received can be written to
    return arrays


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_keep_the_order_of_the_tasks_and_functions_can_follow_each_other():
    with Workers(2) as workers:
        found = list(workers.map(work, range(9)))
        assert [result for result, _ in found] == [task * task for task in range(9)]
        pids = {pid for _, pid in found}
        assert len(pids) == 2 and os.getpid() not in pids
        assert list(workers.map(square, [3, 4])) == [9, 16]
    assert not any(is_running(pid) for pid in pids)


def test_arrays_of_any_layout_pass_unchanged_in_both_directions():
    matrix = np.arange(300_000, dtype=np.float32).reshape(500, 600)
    arrays = {"rows": matrix, "columns": matrix.T, "strided": matrix[::2, 5:9], "none": matrix[:0]}
    with Workers(2) as workers:
        for found in workers.map(grow, [arrays, arrays]):
            for name, array in arrays.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array + 1)
                found[name][:] = 0


def test_one_worker_or_one_task_stays_in_this_process():
    assert {pid for _, pid in Workers(1).map(work, range(5, 8))} == {os.getpid()}
    with Workers(8) as workers:
        assert [pid for _, pid in workers.map(work, [7])] == [os.getpid()]
        assert list(workers.map(work, [])) == []


@pytest.mark.parametrize(
    ("tasks", "kind", "message"),
    [
        ([5, 100, 101], UserError, "^the first that fails$"),
        ([101, 5], OSError, "No space left on device: 'file'"),
        ([102, 5], ValueError, "a defect"),
        (
            [5, 103],
            UserError,
            "--num_workers=2: a worker process was ended by signal 9, most likely because memory ran",
        ),
        ([5, 104], UserError, "--num_workers=2: a worker process was ended by signal 15; run again"),
    ],
)
def test_the_first_failing_task_is_raised_here(tasks, kind, message):
    with pytest.raises(kind, match=message) as failure, Workers(2) as workers:
        list(workers.map(work, tasks))
    if kind is ValueError:
        assert "in work" in failure.value.__notes__[0]


def test_an_interrupted_start_is_raised_as_such(monkeypatch):
    """Leaving the context must not fail at the process that never started."""
    start, started = SpawnProcess.start, []

    def second_is_interrupted(process):
        if started:
            raise KeyboardInterrupt
        start(process)
        started.append(process.pid)

    monkeypatch.setattr(SpawnProcess, "start", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        list(workers.map(work, [5, 6]))
    assert not is_running(started[0])


def test_workers_end_with_a_parent_that_is_killed():
    program = (
        "import os, signal\n"
        "from mean_jax.data.workers import Workers\n"
        "from tests.test_workers import work\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        "        print(*(pid for _, pid in workers.map(work, [5, 6])), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in ended.stdout.split()]
    assert pids
    for _ in range(200):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived the command")


def ignores_interrupts(task: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_every_worker_leaves_interrupts_to_its_parent():
    """From the first one on, in a process that has not started any before."""
    code = "from tests.test_workers import *; print(*Workers(2).__enter__().map(ignores_interrupts, range(8)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["True"] * 8
