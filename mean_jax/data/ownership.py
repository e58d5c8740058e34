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
import tempfile

from mean_jax.errors import UserError
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


@contextlib.contextmanager
def scratch_folder(folder: Path, output: Path, elsewhere: Path | None) -> Iterator[Path]:
    """Yields an empty folder for what is needed until the output is whole, and removes it in the end.

    Args:
      folder: that this process has locked and writes the output in; the scratch folder stands in it by default.
      output: what it is to become; tells whose folders a killed process has left elsewhere.
      elsewhere: the folder that is to hold the scratch folder instead.

    Raises:
      UserError: there is no such folder.
    """
    with contextlib.ExitStack() as stack:
        home = folder
        if elsewhere is not None:
            name = Path(os.path.abspath(output)).name
            if not elsewhere.is_dir():
                raise UserError(f"--scratch: {elsewhere} is no folder; make it or choose another")
            if not os.access(elsewhere, os.W_OK | os.X_OK):
                raise UserError(f"--scratch: {elsewhere} cannot be written to; change its rights or choose another")
            remove_abandoned(elsewhere / name)
            home = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=elsewhere))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            stack.enter_context(lock(home))
        for parent in {folder, home}:
            stack.callback(shutil.rmtree, parent / SCRATCH_NAME, ignore_errors=True)
            (parent / SCRATCH_NAME).mkdir(parents=True)
        yield home / SCRATCH_NAME
