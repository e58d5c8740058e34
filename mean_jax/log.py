"""The project's log: one line per event on standard error, without the chatter of the libraries below it."""

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
