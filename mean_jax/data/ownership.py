"""Which folders a living process works in, and the removal of those whose process was killed.

A folder is locked with flock, which the system releases however its holder ends. File systems that know no such lock
are worked on without it, and what a killed process leaves there stays.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import shutil

from mean_jax.log import LOGGER

SCRATCH_NAME = "scratch"  # made once the folder is locked: one without it may be about to be


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder for this process.

    Raises:
      BlockingIOError: another living process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            LOGGER.warning("%s cannot be locked (%s): run one command at a time on it", folder, error.strerror)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    if not (folder / SCRATCH_NAME).is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_abandoned(output: Path) -> None:
    """Removes the temporary folders beside `output` in which a killed process was writing it."""
    output = Path(os.path.abspath(output))
    for folder in output.parent.iterdir() if output.parent.is_dir() else ():
        is_temporary = folder.name.startswith(f".{output.name}.") and folder.name.endswith(".tmp")
        if is_temporary and folder.is_dir() and _is_abandoned(folder):
            LOGGER.info("%s: removed, a run that was killed had left it", folder)
            shutil.rmtree(folder, ignore_errors=True)
