"""Threads for work that does without the interpreter's lock: how many there can be, and a map that runs ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import functools
import os
from typing import NoReturn, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_THREADS = 4  # as many items are under way, and one more is ready


def available_processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Callable[[], Result]]:
    """Yields what is to be done; an error of drawing an item is the last task's, so that it does not come too early."""
    try:
        for item in items:
            yield functools.partial(function, item)
    except Exception as error:
        yield functools.partial(_fail, error)


def _fail(error: Exception) -> NoReturn:
    raise error


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields function(item) in the order of the items, several of which are under way at the same time.

    Items are drawn in the thread of the caller, who also does the first one, before any other begins: what it compiles
    is there for the rest, which run in threads. At most one item or result more than there are threads is held. Errors,
    those of drawing an item too, come in the order of the items.
    """
    tasks = _tasks(function, items)
    for first in tasks:
        yield first()
        break
    num_threads = min(_MAX_THREADS, available_processors())
    started: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for task in tasks:
                started.append(pool.submit(task))
                if len(started) > num_threads:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            for future in started:
                future.cancel()
