"""The project's log: one line per event on standard error, without the chatter of the libraries below it.

A job of several processes speaks with one voice: `quieten` leaves the others than the lead their warnings and errors.
Progress bars follow the level too: `LOGGER.isEnabledFor(logging.INFO)`.
"""

import logging
import sys

LOGGER = logging.getLogger("mean_jax")


def start() -> None:
    """Sends the project's lines to standard error; the commands call it once."""
    LOGGER.handlers.clear()  # an earlier one may hold a standard error that has been replaced since
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)


def quieten() -> None:
    """Keeps warnings and errors only, for processes other than the lead."""
    LOGGER.setLevel(logging.WARNING)
