"""What a command costs: seconds, bytes read and written, and memory of its whole process tree. Linux only.

The command runs in a session of its own, by which its processes are found. Memory is polled, so a peak shorter than the
interval may be missed; pages that several processes share are counted in each. Bytes are the kernel's own sums: those
of a process hold those of its children that have ended.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
from pathlib import Path
import signal
import subprocess
import time

from mean_jax.errors import UserError

POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0  # to remove its temporary files after SIGTERM


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of one command; bytes are decimal counts, not pages."""

    seconds: float
    cpu_seconds: float
    user_seconds: float  # of them the program's own, without the kernel's
    read_bytes: int  # through read(): page cache or disk, not memory maps
    written_bytes: int
    disk_read_bytes: int  # that the page cache did not have, memory maps included
    disk_written_bytes: int
    peak_rss_bytes: int
    peak_anonymous_bytes: int  # of it without the pages of files


def session_of(stat: str) -> int:
    """Returns the session id in the text of /proc/PID/stat; the command's name there may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[3])


def memory_of(status: str) -> tuple[int, int]:
    """Returns the resident and the anonymous bytes in the text of /proc/PID/status; 0 for a process that has ended."""
    kib = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "Rss"))}
    return 1024 * int(kib.get("VmRSS", 0)), 1024 * int(kib.get("RssAnon", 0))


def _session_memory(session: int) -> tuple[int, int]:
    rss, anonymous = 0, 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if session_of((process / "stat").read_text()) == session:
                own_rss, own_anonymous = memory_of((process / "status").read_text())
                rss, anonymous = rss + own_rss, anonymous + own_anonymous
    return rss, anonymous


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
            return


def measure(command: Sequence[str], log: Path) -> Usage:
    """Runs a command to its end and returns what it cost.

    Args:
      command: program and arguments.
      log: gets what the command prints.

    Raises:
      UserError: the command failed; the line has the end of its log.
    """
    peak_rss, peak_anonymous = 0, 0
    start = time.perf_counter()
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        # A process that has ended and is not reaped yet still shows its counters.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            rss, anonymous = _session_memory(process.pid)
            peak_rss, peak_anonymous = max(peak_rss, rss), max(peak_anonymous, anonymous)
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - start
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            _stop(process)
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing printed"])[-1]
        raise UserError(f"{' '.join(command)}: exit code {process.returncode}, see {log}: {last}")
    counters = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return Usage(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        user_seconds=usage.ru_utime,
        read_bytes=counters["rchar"],
        written_bytes=counters["wchar"],
        disk_read_bytes=counters["read_bytes"],
        disk_written_bytes=counters["write_bytes"],
        peak_rss_bytes=peak_rss,
        peak_anonymous_bytes=peak_anonymous,
    )
