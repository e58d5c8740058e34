"""Worker processes that keep the order of results and errors, and that never outlive the command.

The processes are spawned, not forked: the threads of Arrow and JAX do not survive a fork. Everything that comes back is
put in the order of the tasks, so that a result, or the error that is raised, does not depend on how many work.
"""

from collections.abc import Callable, Iterable, Iterator
import multiprocessing
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
import os
import pickle
import signal
import threading
import traceback
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa

from mean_jax.errors import UserError
from mean_jax.threads import available_processors

Task = TypeVar("Task")
Result = TypeVar("Result")
# Tasks per process that may be done or under way before the oldest result is taken: bounds what waits in memory.
_TASKS_AHEAD = 2


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed without a chance to end its workers


def _portable(error: BaseException) -> BaseException:
    """Returns the error in a form that can be sent, with its traceback in a note."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, UserError | OSError):
        error.add_note("in a worker process:\n" + traceback.format_exc())
    return error


def _send_message(connection: Connection, message: Any) -> None:
    """Sends a message; contiguous arrays go as they stand in memory, not copied into the pickle first."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    parts = [array.raw() for array in arrays]
    connection.send((content, [part.nbytes for part in parts]))
    for part in parts:
        connection.send_bytes(part)


def _receive_message(connection: Connection) -> Any:
    """Returns what `_send_message` sent."""
    content, sizes = connection.recv()
    parts = [bytearray(size) for size in sizes]
    for part in parts:
        connection.recv_bytes_into(part)
    return pickle.loads(content, buffers=parts)


def _work(connection: Connection, num_threads: int) -> None:
    """The life of a worker: answers (index, function or None, task) with (index, is_error, result)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pa.set_cpu_count(num_threads)
    # Arrow's own allocators give pages back between batches, and the system then clears them anew.
    pa.set_memory_pool(pa.system_memory_pool())
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            index, given, task = _receive_message(connection)
        except EOFError:
            return
        function = given or function
        assert function is not None
        try:
            answer = (index, False, function(task))
        except Exception as error:
            answer = (index, True, _portable(error))
        _send_message(connection, answer)


class Workers:
    """A context manager; leaving it, in whatever way, kills the processes and waits for them."""

    def __init__(self, num_workers: int) -> None:
        """Starts nothing yet: processes come with the first tasks that can share them.

        Args:
          num_workers: processes; 1 does the work in this process.
        """
        self.num_workers = num_workers
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        num_threads = max(1, available_processors() // self.num_workers)
        # A worker inherits the mask: Ctrl-C reaches all processes of a terminal, and only this one is to answer. The
        # tracker is started first, as its start would lift the mask again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            while len(self._processes) < number:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, num_threads), daemon=True)
                process.start()
                self._processes.append(process)  # once it can be killed and waited for
                self._connections.append(ours)
                theirs.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task in the order of the tasks; the function and all else must be picklable.

        Raises:
          UserError: a process was killed from outside.
          Exception: what the function raised for the first task of those that failed.
        """
        pending = list(tasks)
        if self.num_workers == 1 or len(pending) < 2:
            yield from map(function, pending)
            return
        self._start(min(self.num_workers, len(pending)))
        yield from self._map(function, pending)

    def _map(self, function: Callable[[Task], Result], tasks: list[Task]) -> Iterator[Result]:
        fresh = set(self._connections)  # those that do not know the function yet
        idle = list(self._connections)
        done: dict[int, tuple[bool, Any]] = {}
        sent = taken = 0
        while taken < len(tasks):
            while idle and sent < min(len(tasks), taken + _TASKS_AHEAD * len(self._connections)):
                connection = idle.pop()
                self._send(connection, (sent, function if connection in fresh else None, tasks[sent]))
                fresh.discard(connection)
                sent += 1
            if taken in done:
                is_error, result = done.pop(taken)
                if is_error:
                    raise result
                taken += 1
                yield result
                continue
            for ready in wait(self._connections):
                assert isinstance(ready, Connection)
                index, is_error, result = self._receive(ready)
                done[index] = (is_error, result)
                idle.append(ready)

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            _send_message(connection, message)
        except OSError:
            raise self._killed(connection) from None

    def _receive(self, connection: Connection) -> Any:
        try:
            return _receive_message(connection)
        except (EOFError, OSError):
            raise self._killed(connection) from None

    def _killed(self, connection: Connection) -> UserError:
        process = self._processes[self._connections.index(connection)]
        process.join(timeout=5)
        code = process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        mend = "run again, with --num_workers=1 if it comes back"
        if code == -signal.SIGKILL:
            how += ", most likely because memory ran out"
            mend = "use fewer workers or a machine with more memory"
        return UserError(f"--num_workers={self.num_workers}: a worker process was ended {how}; {mend}")
