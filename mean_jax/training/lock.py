"""One run folder, one trainer: a lock file that a killed process cannot leave locked for good.

Each contender writes a lock file under a name of its own and only then looks for others: who sees another one that is
alive takes its own away again. Of two that come together at least one sees the other, and removing the file of a dead
owner can harm nobody else, so a takeover needs no second lock. Two that see each other both withdraw and try again
after random times.

An owner on this machine is alive while its process is; one elsewhere while it refreshes its file, every few seconds.
Ages are measured on the clock of the file system, so the clocks of two hosts need not agree.
"""

from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import random
import socket
import sys
import threading
import time
from typing import NamedTuple
import uuid

from mean_jax.errors import UserError
from mean_jax.log import LOGGER

_PREFIX, _SUFFIX = "train-", ".lock"
_REFRESH_SECONDS = 5.0
_STALE_SECONDS = 60.0  # a host that is silent for so long has lost its process or its network
_LOOK_SECONDS = 1.0  # between two looks at a lock of another host
_WAIT_SECONDS = (0.05, 0.25)  # between two looks; a contender that withdraws is gone within milliseconds


class Owner(NamedTuple):
    """Who wrote a lock file."""

    machine: str  # host, boot and process namespace: where `pid` means the process that it says
    host: str
    pid: int
    start: str  # of the process, so that a pid that is used again is not taken for it
    since: str  # local time, for people
    command: str


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""  # not Linux, or the process is gone


def _process_start(pid: int) -> str:
    """Returns when a process of this machine started, in ticks since the boot; empty where that is unknown."""
    # The name of the program, in parentheses, may hold spaces; the start is the 20th field after it.
    fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _this_process() -> Owner:
    host = socket.gethostname()
    namespace = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    machine = f"{host} {_read_text('/proc/sys/kernel/random/boot_id')} {namespace}"
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(machine, host, pid, _process_start(pid), since, " ".join(sys.argv))


def _is_alive(owner: Owner | None, me: Owner, silent_seconds: float) -> bool:
    """Tells whether the owner of a lock file, None if the file does not say, may still be at work."""
    if owner is None or owner.machine != me.machine:
        return silent_seconds < _STALE_SECONDS
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return _process_start(owner.pid) == owner.start


def _read_owner(path: Path) -> Owner | None:
    """Returns the owner that a lock file names; None if it is being written or was cut."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return None


class Held:
    """A lock that this process holds."""

    def __init__(self, path: Path, flag: str) -> None:
        self.path = path
        self._flag = flag
        self._is_lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="run-lock", daemon=True)
        self._thread.start()

    def _refresh(self) -> None:
        while not self._released.wait(_REFRESH_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                self._is_lost = True
                return
            except OSError as error:  # a network file system that is away for a moment
                LOGGER.warning("%s: cannot be refreshed: %s", self.path, error)

    def check(self) -> None:
        """Raises UserError if another process has taken the folder over; call it before writing there."""
        if self._is_lost:
            raise UserError(
                f"{self._flag}: the lock {self.path} was taken away while this process was silent for more than "
                f"{_STALE_SECONDS:g} s; another process may train there, run the same command to go on"
            )

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)


def is_lock(path: Path) -> bool:
    """Tells whether a file in a run folder is a lock."""
    return path.name.startswith(_PREFIX) and path.suffix == _SUFFIX


def _living_owner(own: Path, me: Owner) -> tuple[str, Owner | None] | None:
    """Returns (file name, owner) of another lock file that is alive, after removing those that are not."""
    now = own.stat().st_mtime
    for path in sorted(own.parent.glob(f"{_PREFIX}*{_SUFFIX}")):
        if path == own:
            continue
        try:
            owner, silent_seconds = _read_owner(path), now - path.stat().st_mtime
        except FileNotFoundError:
            continue  # withdrawn or released meanwhile
        if _is_alive(owner, me, silent_seconds):
            return path.name, owner
        what = f"process {owner.pid} on {owner.host}" if owner else "an unknown process"
        LOGGER.warning("taking over %s from %s, which ended without leaving it", own.parent, what)
        path.unlink(missing_ok=True)
    return None


def _refusal(folder: Path, flag: str, owner: Owner | None, me: Owner) -> UserError:
    if owner is None:
        return UserError(f"{flag}: {folder} is being locked by another process; wait a minute or choose another {flag}")
    wait = (
        f"wait with `tail --pid={owner.pid} -f /dev/null`"
        if owner.machine == me.machine
        else f"wait for it (if it was killed, for {_STALE_SECONDS:g} s)"
    )
    return UserError(
        f"{flag}: {folder} is in use by process {owner.pid} on {owner.host} since {owner.since} "
        f"({owner.command}); {wait} or choose another {flag}"
    )


def _acquire(folder: Path, flag: str) -> Path:
    me = _this_process()
    seen: tuple[str, float] | None = None
    while True:
        own = folder / f"{_PREFIX}{uuid.uuid4().hex[:12]}{_SUFFIX}"
        try:
            own.write_text(json.dumps(me._asdict()))
        except FileNotFoundError:  # an owner that wrote nothing has just removed the folder
            folder.mkdir(parents=True, exist_ok=True)
            continue
        try:
            other = _living_owner(own, me)
        except BaseException:
            own.unlink(missing_ok=True)
            raise
        if other is None:
            return own
        own.unlink(missing_ok=True)
        name, owner = other
        is_here = owner is not None and owner.machine == me.machine
        try:
            refreshed = (folder / name).stat().st_mtime
        except FileNotFoundError:
            continue  # withdrawn or released meanwhile
        if seen is not None and seen[0] == name:  # contenders change their name with each try: this one stays
            if is_here or refreshed != seen[1]:
                raise _refusal(folder, flag, owner, me)
            # On another host, and silent since: the process that a restarted job comes after, or one that will
            # refresh its file in a moment.
            time.sleep(_LOOK_SECONDS)
            continue
        seen = (name, refreshed)
        time.sleep(random.uniform(*_WAIT_SECONDS))


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--workdir") -> Iterator[Held]:
    """Holds the run folder for this process while it is entered; makes the folder if it is not there.

    Of a job of several processes the lead process alone calls it. The lock goes with the block, however that ends, and
    a folder that was made for it and holds nothing else.

    Raises:
      UserError: a process that is alive holds it; the line says which, since when and how to wait.
    """
    folder = Path(workdir)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{flag}: {workdir} is a file, not a run folder; choose another {flag}") from None
    held = Held(_acquire(folder, flag), flag)
    try:
        yield held
    finally:
        held.release()
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
