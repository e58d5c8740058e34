"""Stopping at a dispatch boundary when the scheduler or the user asks for it."""

from collections.abc import Iterator
import contextlib
import signal
from types import FrameType


class Interruption:
    """Remembers SIGTERM and SIGINT while it is entered, for the loop to stop at the next dispatch boundary."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.signal_name is not None:
            raise KeyboardInterrupt  # the second signal means now
        self.signal_name = signal.Signals(number).name

    @contextlib.contextmanager
    def watch(self) -> Iterator["Interruption"]:
        previous = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
