"""How far a pass is: a bar on a terminal, a line of the log every ten seconds elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from mean_jax.log import LOGGER

_SECONDS_PER_LINE = 10.0


class Progress:
    """Counts the rows of one pass; a context manager."""

    def __init__(self, description: str, num_rows: int | None = None) -> None:
        """Starts counting.

        Args:
          description: what the pass does.
          num_rows: how many there are, if known.
        """
        self.seconds = 0.0  # that it took, once it is over
        self._description = description
        self._num_rows = num_rows
        self._done = 0
        self._start = self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=num_rows, desc=description, unit=" rows", unit_scale=True, disable=not self._is_terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self.seconds = time.monotonic() - self._start

    def update(self, num_rows: int) -> None:
        """Adds rows that are done."""
        self._done += num_rows
        self._bar.update(num_rows)
        now = time.monotonic()
        if self._is_terminal or now - self._said < _SECONDS_PER_LINE:
            return
        self._said = now
        rate = self._done / (now - self._start)
        share = f" of {self._num_rows:,} ({self._done / self._num_rows:.0%})" if self._num_rows else ""
        LOGGER.info("%s: %s%s rows, %s rows/s", self._description, f"{self._done:,}", share, f"{rate:,.0f}")
