"""How far long work is: a bar on a terminal, a line of the log every ten seconds elsewhere."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from mean_jax.log import LOGGER

_SECONDS_PER_LINE = 10.0


class Progress:
    """Counts the rows of one pass, or of one training; a context manager."""

    def __init__(self, description: str, num_rows: int | None = None, done_rows: int = 0) -> None:
        """Starts counting.

        Args:
          description: what is done with the rows.
          num_rows: how many there are, if known.
          done_rows: of these, how many an earlier call did.
        """
        self.seconds = 0.0  # that it took, once it is over
        self._description = description
        self._num_rows = num_rows
        self._done = self._said_rows = done_rows
        self._start = self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        is_silent = not (self._is_terminal and LOGGER.isEnabledFor(logging.INFO))  # as in all processes but the lead
        self._bar = tqdm(
            total=num_rows,
            initial=done_rows,
            desc=description,
            unit=" rows",
            unit_scale=True,
            leave=None,  # below another bar it goes once it is done
            disable=is_silent,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self.seconds = time.monotonic() - self._start

    def update(self, num_rows: int, state: str = "") -> None:
        """Adds rows that are done; `state` is what else there is to say, such as the loss."""
        self._done += num_rows
        self._bar.update(num_rows)
        if state:
            self._bar.set_postfix_str(state, refresh=False)
        now = time.monotonic()
        if self._is_terminal or now - self._said < _SECONDS_PER_LINE:
            return
        rate = (self._done - self._said_rows) / (now - self._said)
        self._said, self._said_rows = now, self._done
        share = f" of {self._num_rows:,} ({self._done / self._num_rows:.0%})" if self._num_rows else ""
        more = f", {state}" if state else ""
        LOGGER.info("%s: %s%s rows, %s rows/s%s", self._description, f"{self._done:,}", share, f"{rate:,.0f}", more)
