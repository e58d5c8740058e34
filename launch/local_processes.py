"""Runs a command as several processes of one job on this machine:

  python launch/local_processes.py --num_processes=2 --devices_per_process=2 -- mean-jax-train --data=S --workdir=R

Each process gets its number, the number of processes and a free port in MEAN_JAX_*, and devices of its own: CPU devices
(XLA's, as many as you like; each process computes on all cores, so more processes on one machine test a job rather than
speed it up), or GPUs with --gpus_per_process. Output lines carry the number of their process in front. Ctrl-C and
SIGTERM go to all processes. When one fails, the others have --grace seconds to say why and end; the exit code is that
of the first that failed, 128 and the signal's number if a signal ended it.
"""

from collections.abc import Sequence
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from absl import flags

from mean_jax.cli.common import fail

_FLAGS = flags.FlagValues()  # of this command alone
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 2, "Processes.", lower_bound=1, flag_values=_FLAGS)
_DEVICES_PER_PROCESS = flags.DEFINE_integer(
    "devices_per_process", 1, "CPU devices of each process.", lower_bound=1, flag_values=_FLAGS
)
_GPUS_PER_PROCESS = flags.DEFINE_integer(
    "gpus_per_process",
    0,
    "GPUs of each process in place of CPU devices: process 0 gets the first of CUDA_VISIBLE_DEVICES (of 0, 1, 2, ... "
    "if that is not set), and so on.",
    lower_bound=0,
    flag_values=_FLAGS,
)
_GRACE = flags.DEFINE_float(
    "grace",
    15.0,
    "Seconds for the other processes to end after one failed; then they get SIGTERM, and SIGKILL after as long again.",
    lower_bound=0,
    flag_values=_FLAGS,
)
_POLL_S = 0.05


def free_port() -> int:
    """Returns a port of the loopback address that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment_of(process: int, num_processes: int, port: int, num_devices: int, num_gpus: int) -> dict[str, str]:
    """Returns what the environment of a process adds to this one's.

    Args:
      process: its number.
      num_processes: of the job.
      port: of process 0.
      num_devices: CPU devices of each process.
      num_gpus: GPUs of each process; with any there are no CPU devices to set.

    Raises:
      ValueError: CUDA_VISIBLE_DEVICES holds fewer GPUs than the job needs.
    """
    added = {
        "MEAN_JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "MEAN_JAX_NUM_PROCESSES": str(num_processes),
        "MEAN_JAX_PROCESS_ID": str(process),
    }
    if not num_gpus:
        return added | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    needed = num_processes * num_gpus
    gpus = [str(gpu) for gpu in range(needed)] if visible is None else [gpu for gpu in visible.split(",") if gpu]
    if len(gpus) < needed:
        raise ValueError(f"CUDA_VISIBLE_DEVICES={visible} holds {len(gpus)} GPUs, the job needs {needed}")
    return added | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[process * num_gpus : (process + 1) * num_gpus])}


def _copy_lines(source: IO[bytes], target: IO[bytes], prefix: bytes, lock: threading.Lock) -> None:
    for line in source:
        with lock:
            target.write(prefix + line.rstrip(b"\n") + b"\n")
            target.flush()


def _start(command: Sequence[str], process: int, port: int) -> subprocess.Popen[bytes]:
    added = environment_of(process, _NUM_PROCESSES.value, port, _DEVICES_PER_PROCESS.value, _GPUS_PER_PROCESS.value)
    # In a session of its own, so that Ctrl-C reaches it once: from here, not from the terminal too.
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | added,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what a process left behind in its session; it would hold the output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    return 128 - code if code < 0 else code


def _wait(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> int:
    """Waits for all and returns the exit code of the first that failed, 0 if none did."""
    alive = list(processes)
    first_code = 0
    deadlines: list[tuple[float, signal.Signals]] = []  # when to send what, once one has failed
    while alive:
        for process in [process for process in alive if process.poll() is not None]:
            alive.remove(process)
            _kill_group(process)
            if first_code == 0 and _exit_code(process) != 0:
                first_code, now = _exit_code(process), time.monotonic()
                deadlines = [(now + grace, signal.SIGTERM), (now + 2 * grace, signal.SIGKILL)]
        if deadlines and time.monotonic() > deadlines[0][0]:
            _send(alive, deadlines.pop(0)[1])
        time.sleep(_POLL_S)
    return first_code


def run(command: Sequence[str]) -> int:
    """Runs the command as the flags say; returns the exit code."""
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: _send(processes, received))
    for index in range(_NUM_PROCESSES.value):
        processes.append(_start(command, index, port))
    lock = threading.Lock()
    threads = []
    for index, process in enumerate(processes):
        for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
            thread = threading.Thread(target=_copy_lines, args=(source, target, b"[%d] " % index, lock))
            thread.start()
            threads.append(thread)
    code = _wait(processes, _GRACE.value)
    for thread in threads:
        thread.join()
    return code


def main() -> None:
    argv = sys.argv
    split = argv.index("--") if "--" in argv else len(argv)
    if {"--help", "-help", "-h"} & set(argv[1:split]):
        print(f"{__doc__}\n{_FLAGS.module_help(sys.modules[__name__])}")
        return
    command = argv[split + 1 :]
    try:
        rest = _FLAGS(argv[:split])
    except flags.UnrecognizedFlagError as error:
        fail(error if "--" in argv else f"{error}; if it is one of the command's, put -- before the command")
    except flags.Error as error:
        fail(error)
    if len(rest) > 1 or not command:
        fail("the command to run stands after the flags and --, such as -- mean-jax-train --data=STORE --workdir=RUN")
    try:
        code = run(command)
    except FileNotFoundError:
        fail(f"{command[0]}: no such command; give its path")
    except ValueError as error:
        fail(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
