"""Threads for work that does without the interpreter's lock: how many there can be, and a map that runs ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import os
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_AHEAD = 4  # items under way, each in memory, and as many more that wait for their turn


def available_processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields function(item) in the order of the items, several of which are under way at the same time.

    The first one is done before the others begin: what it compiles is there for them. Errors come in the order of the
    items, those of the items themselves as soon as they are met.
    """
    remaining = iter(items)
    for first in remaining:
        yield function(first)
        break
    num_threads = min(_MAX_AHEAD, available_processors())
    started: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in remaining:
                started.append(pool.submit(function, item))
                if len(started) > 2 * num_threads:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            for future in started:
                future.cancel()
