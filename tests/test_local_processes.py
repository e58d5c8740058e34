"""launch/local_processes.py: numbers, devices, prefixes, signals and exit codes."""

import importlib.util
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "local_processes.py"


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments, **environ):
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60
    )


def test_a_job_of_two_processes_with_two_devices_each():
    arguments = ("--num_processes=2", "--devices_per_process=2", "--", sys.executable, "-m", "tests.distributed_worker")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if "devices in" in line)
    assert lines == ["[0] lead: 4 devices in 2 processes", "[1] other: 4 devices in 2 processes"]
    joined, summed = done.stderr.splitlines()  # the lead alone logs
    assert joined.startswith("[0] ")
    assert joined.endswith("2 processes on 1 host (from MEAN_JAX_*)")
    assert summed.startswith("[0] ")
    assert summed.endswith("summed")


def test_the_first_failure_decides_and_the_others_end():
    # Process 1 fails; process 0 ignores SIGTERM, and is killed after twice the grace.
    shell = (
        'if [ $MEAN_JAX_PROCESS_ID = 1 ]; then printf "half a line"; exit 3; fi; trap "" TERM; sleep 30 & wait; wait'
    )
    started = time.monotonic()
    done = run("--num_processes=2", "--grace=0.5", "--", "sh", "-c", shell)
    assert time.monotonic() - started < 20
    assert done.returncode == 3
    assert done.stdout == "[1] half a line\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_all_processes(number):
    shell = 'trap "echo stopped; exit 5" INT TERM; echo ready; while :; do sleep 0.05; done'
    with subprocess.Popen(command("--", "sh", "-c", shell), stdout=subprocess.PIPE, text=True) as process:
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert sorted(output.splitlines()) == ["[0] stopped", "[1] stopped"]
    assert process.returncode == 5


def test_a_process_killed_by_a_signal():
    assert run("--num_processes=1", "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "stands after the flags and --"),
        (("--num_processes=2", "mean-jax-train"), "stands after the flags and --"),
        (("mean-jax-train", "--data=store"), "'data'; if it is one of the command's, put -- before the command"),
        (("--num_proceses=2", "--", "true"), "Did you mean: num_processes ?"),
        (("--num_processes=0", "--", "true"), "num_processes"),
        (("--", "no-such-command"), "no-such-command: no such command"),
        (("--gpus_per_process=2", "--", "true"), "CUDA_VISIBLE_DEVICES=0,1,2 holds 3 GPUs, the job needs 4"),
    ],
)
def test_mistakes(arguments, words):
    done = run(*arguments, CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert ("put --" in line) == ("--data=store" in arguments)


def test_help():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--num_processes", "--devices_per_process", "--gpus_per_process", "--grace"):
        assert flag in done.stdout


def test_environments(monkeypatch):
    spec = importlib.util.spec_from_file_location("local_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.environment_of(1, 2, 77, 3, 0) == {
        "MEAN_JAX_COORDINATOR_ADDRESS": "127.0.0.1:77",
        "MEAN_JAX_NUM_PROCESSES": "2",
        "MEAN_JAX_PROCESS_ID": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "3",
    }
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = [module.environment_of(process, 2, 77, 1, 2)["CUDA_VISIBLE_DEVICES"] for process in range(2)]
    assert gpus == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    gpus = [module.environment_of(process, 3, 77, 1, 1)["CUDA_VISIBLE_DEVICES"] for process in range(3)]
    assert gpus == ["GPU-a", "GPU-b", "GPU-c"]
    assert "JAX_PLATFORMS" not in module.environment_of(0, 1, 77, 1, 1)
