"""Jobs of several real processes with JAX: how they sum, lose one of them, and end by a mistake or a defect."""

import contextlib
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time
import types

import pytest

from mean_jax import distributed
from mean_jax.distributed import EXIT_PEER_LOST, JobSettings
from mean_jax.errors import UserError
from mean_jax.job.channel import Note

ROOT = Path(__file__).parents[1]
WORKER = "tests.distributed_worker"
PEER_TIMEOUT_S = 10


@contextlib.contextmanager
def job(num_processes, *arguments):
    """Starts a job of the worker with one CPU device per process; kills what is left of it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "MEAN_JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "MEAN_JAX_NUM_PROCESSES": str(num_processes),
    }
    command = [sys.executable, "-m", WORKER, f"--peer_timeout={PEER_TIMEOUT_S}", "--connect_timeout=30", *arguments]
    processes = [
        subprocess.Popen(
            command,
            env=environ | {"MEAN_JAX_PROCESS_ID": str(process)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(num_processes)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def errors_of(process):
    """Waits for the end of a process; returns its exit code and the `error:` lines."""
    _, stderr = process.communicate(timeout=30)
    return process.returncode, [line for line in stderr.splitlines() if line.startswith("error:")]


def await_output(process):
    """Returns the first line of a process that is the worker's; Gloo writes others."""
    return next(line for line in process.stdout if "devices in" in line)


@pytest.mark.parametrize(("num_processes", "victim"), [(3, 1), (2, 0)])
def test_a_killed_process_ends_the_others_which_name_it(num_processes, victim):
    with job(num_processes, "--do=loop") as processes:
        for index, process in enumerate(processes):
            lead = "other" if index else "lead"
            assert await_output(process) == f"{lead}: {num_processes} devices in {num_processes} processes\n"
        processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        for index, process in enumerate(processes):
            if index != victim:
                code, (line,) = errors_of(process)
                assert code == EXIT_PEER_LOST
                assert f"process {victim} on {socket.gethostname()} (pid {processes[victim].pid}) was lost" in line
                assert "run the same command again, training goes on from the last checkpoint" in line
        assert time.monotonic() - killed < PEER_TIMEOUT_S


def test_a_signal_to_one_process_ends_the_job():
    with job(2, "--do=loop") as processes:
        for process in processes:
            await_output(process)
        processes[1].terminate()
        assert [errors_of(process) for process in processes] == [(128 + signal.SIGTERM, [])] * 2


def test_a_mistake_of_all_is_one_line():
    with job(2, "--do=err") as processes:
        ends = [errors_of(process) for process in processes]
    assert ends == [(2, ["error: --data: store is missing; name another"]), (2, [])]


def test_a_defect_of_one_ends_all():
    with job(2, "--do=fail") as processes:
        (code, (line,)), (other_code, other_lines) = [errors_of(process) for process in processes]
        who = f"process 1 on {socket.gethostname()} (pid {processes[1].pid})"
    assert (code, other_code, other_lines) == (1, 1, [])
    assert line == f"error: {who}: failed, its traceback tells more: KeyError: 'a defect'"


def test_one_process_needs_nothing():
    distributed.initialize(None)
    assert distributed.is_lead()
    assert not distributed.is_joined()
    assert distributed.num_processes() == 1
    distributed.barrier("nothing", timeout=0.0)
    distributed.end("error", 2, "goes on")
    distributed.await_verdict(ValueError("Gloo all-reduce failed"))
    distributed.leave()


class FakeChannel:
    peer_timeout = 7.0

    def __init__(self, process_id=1):
        self.settings = JobSettings("a:1", 2, process_id, "test")


def raised(error, cause=None):
    """Returns the error as it is after it was raised from the cause."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:50078"), [7.0]),
        (raised(RuntimeError("checkpoint"), ValueError("Gloo all-gather failed: Read error: Connection reset")), [7.0]),
        (RuntimeError("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited"), [7.0]),
        (ValueError("shapes (2,) and (3,) do not match"), []),
        (UserError("table gloo.csv: missing"), []),
    ],
)
def test_only_a_broken_collective_waits_for_a_verdict(monkeypatch, error, seconds):
    waited = []
    monkeypatch.setattr(distributed, "_channel", FakeChannel())
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    distributed.await_verdict(error)
    assert waited == seconds


@pytest.mark.parametrize(
    ("note", "is_said", "expected"),
    [
        (Note(0, "lost", 75, "process 0 was lost"), False, "error: process 0 was lost\n"),
        (Note(0, "lost", 75, "process 0 was lost"), True, "error: process 0 was lost\n"),
        (Note(0, "error", 2, "--data: missing"), True, ""),
        (Note(1, "error", 2, "--data: missing"), False, "error: --data: missing\n"),
        (Note(1, "failed", 1, "failed"), False, ""),  # its traceback is there
        (Note(0, "failed", 1, "process 0: failed"), False, "error: process 0: failed\n"),
        (Note(1, "stopped", 143, "stopped by SIGTERM"), False, "stopped by SIGTERM\n"),
        (Note(0, "stopped", 143, "stopped by SIGTERM"), True, ""),
    ],
)
def test_who_says_what(monkeypatch, capsys, note, is_said, expected):
    codes = []
    monkeypatch.setattr(distributed, "_channel", FakeChannel(process_id=1))
    monkeypatch.setattr(distributed.os, "_exit", codes.append)
    distributed._end_process(note, is_said)
    assert codes == [note.exit_code]
    assert capsys.readouterr().err == expected


def test_a_process_joins_once(monkeypatch):
    monkeypatch.setattr(distributed, "_channel", FakeChannel())
    with pytest.raises(RuntimeError, match="before"):
        distributed.initialize(JobSettings("a:1", 2, 0, "test"))


@pytest.mark.parametrize(
    ("is_present", "count", "expected"),
    [(True, 4, JobSettings("10.0.0.1:8482", 4, 3, "the TPU pod")), (True, 1, None), (False, 4, None)],
)
def test_tpu_pods_are_found_by_jax(monkeypatch, is_present, count, expected):
    from jax._src import clusters

    fake = types.SimpleNamespace(
        is_env_present=lambda: is_present,
        get_process_count=lambda: count,
        get_process_id=lambda: 3,
        get_coordinator_address=lambda timeout, port: "10.0.0.1:8482",
    )
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(clusters, "GkeTpuCluster", fake)
    monkeypatch.setattr(clusters, "GceTpuCluster", types.SimpleNamespace(is_env_present=lambda: False))
    assert distributed.find_tpu_settings() == expected
