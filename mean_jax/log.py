"""The project's log: one line per event on standard error, without the chatter of the libraries below it."""

import logging
import sys

LOGGER = logging.getLogger("mean_jax")


def start() -> None:
    """Sends the project's lines to standard error; the commands call it once."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
