"""The channel on which the processes of a job call the roll, show that they live, wait for each other and part.

Process 0 (the hub) listens at the coordinator address; every other process (a member) keeps one connection to it. A
message is a line of JSON. Both ends run in a daemon thread of their own, so they go on while the main thread waits
for a device, and they know nothing of JAX: the channel stands before JAX starts and outlives its errors.

    member -> hub   hello: who I am              hub -> member   welcome: who all are, and where JAX shall meet
                    beat: I live                                 refused: why you are none of us
                    arrive: I am at a barrier                    beat, go: all are at the barrier
                    end: the job shall end                       end: the job ends, and why

A process is lost if its connection closes without an end (it was killed, or its machine fell) or if it shows no sign
of life for the peer timeout (it was stopped, or the network is cut). A call that keeps Python's interpreter lock for
as long looks the same; a main thread that hangs without it is not noticed. What happens at an end is not decided here:
`on_end` is called with the note in every process, in the thread of the channel.
"""

import asyncio
from collections.abc import Callable, Coroutine
import dataclasses
import json
import threading
import time
from typing import Any, TypeVar

from mean_jax.job.settings import JobSettings

_T = TypeVar("_T")
Message = dict[str, Any]

EXIT_USER_ERROR = 2
EXIT_PEER_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
GRACE_S = 1.0  # for which the word of a member waits: process 0 most likely comes to say the same
LINGER_S = 5.0  # for which process 0 waits until everyone has heard of the end
_BEATS_PER_TIMEOUT = 5
_MAX_PERIOD_S = 5.0


@dataclasses.dataclass(frozen=True)
class Note:
    """How a job ends before its work is done.

    Attributes:
      process: which one is the cause.
      kind: "error" (a user's mistake), "failed" (a defect), "stopped" (a signal) or "lost".
      exit_code: of all processes.
      text: one line that says why.
    """

    process: int
    kind: str
    exit_code: int
    text: str


@dataclasses.dataclass
class Peer:
    """A process of the job; the hub is connected to all, a member to the hub.

    Attributes:
      host: its machine.
      pid: its number there.
      writer: leads to it while it is connected to this process.
      heard: when (time.monotonic) it last said something.
      is_lost: whether it will never answer again.
    """

    host: str
    pid: int
    writer: asyncio.StreamWriter | None = None
    heard: float = dataclasses.field(default_factory=time.monotonic)
    is_lost: bool = False

    def send(self, **message: Any) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """Returns the next message, None at the end of the connection, {} for what is no message of ours."""
    try:
        line = await reader.readline()
    except OSError:
        return None
    except ValueError:  # longer than the reader's buffer
        return {}
    if not line:
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


class Channel:
    """What the two ends have in common.

    Args:
      settings: of the job.
      peer_timeout: seconds without a sign of life after which a process is lost.
      on_end: called in the channel's thread when the job ends before its work is done, with the note and with
        whether process 0 has said so to the user.
    """

    def __init__(self, settings: JobSettings, peer_timeout: float, on_end: Callable[[Note, bool], None]) -> None:
        self.settings = settings
        self.jax_address = ""  # where JAX's own service shall meet, known once the channel is open
        self.peers: dict[int, Peer] = {}
        self.peer_timeout = peer_timeout
        self._period = min(_MAX_PERIOD_S, peer_timeout / _BEATS_PER_TIMEOUT)
        self._on_end = on_end
        self._note: Note | None = None
        self._is_leaving = False
        self._gates: dict[str, asyncio.Event] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mean-jax-control", daemon=True)
        self._thread.start()

    def address_at(self, port: int) -> str:
        """Returns HOST:PORT on the machine of process 0."""
        return f"{self.settings.coordinator_address.rpartition(':')[0]}:{port}"

    def describe(self, process: int) -> str:
        peer = self.peers.get(process)
        return f"process {process}" + (f" on {peer.host} (pid {peer.pid})" if peer else "")

    def join(self, timeout: float) -> None:
        """Waits until all processes are there.

        Raises:
          UserError: not all came within `timeout` seconds, or one does not belong to the job; the line names them.
        """
        self._call(self._join(timeout))

    def barrier(self, name: str, timeout: float | None = None) -> None:
        """Waits until every process has called it with the same name; a name serves once.

        Raises:
          UserError: not all did within `timeout` seconds.
        """
        self._call(self._barrier(name, timeout))

    def end(self, note: Note) -> None:
        """Has `on_end` called in every process, with the first note that anyone gives."""
        self._call(self._end(note))

    def leave(self) -> None:
        """Says that connections may close from now on; all processes have passed a barrier just before."""
        self._is_leaving = True

    def close(self) -> None:
        """Ends the thread and the connections."""
        self._is_leaving = True
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def _shut(self) -> None:
        for peer in self.peers.values():
            if peer.writer is not None:
                peer.writer.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which the transports close

    async def _watch(self) -> None:
        """Sends a sign of life in every period, and misses those of the others."""
        while not self._is_leaving:
            before = time.monotonic()
            await asyncio.sleep(self._period)
            now = time.monotonic()
            was_asleep = now - before > 2 * self._period  # this process itself: what came meanwhile is still unread
            for process, peer in list(self.peers.items()):
                if peer.writer is None:
                    continue
                peer.send(beat=True)
                if was_asleep:
                    peer.heard = now
                elif now - peer.heard > self.peer_timeout - self._period:
                    self._lose(process, f"no sign of life for {now - peer.heard:.1f} s")

    def _lose(self, process: int, why: str) -> None:
        peer = self.peers[process]
        if self._is_leaving or self._note is not None or peer.is_lost:
            return
        peer.is_lost = True
        text = (
            f"{self.describe(process)} was lost: {why}; "
            "run the same command again, training goes on from the last checkpoint"
        )
        self._start(self._end(Note(process, "lost", EXIT_PEER_LOST, text)))

    async def _be_first(self, note: Note) -> None:
        """Returns if no other end has begun, else never: the process is about to go."""
        if self._note is not None:
            await asyncio.Event().wait()
        self._note = note

    async def _join(self, timeout: float) -> None:
        raise NotImplementedError

    async def _barrier(self, name: str, timeout: float | None) -> None:
        raise NotImplementedError

    async def _end(self, note: Note) -> None:
        raise NotImplementedError
