"""Orbax checkpoints with checksums of their files; the only file that imports Orbax.

`latest` holds the whole training state, `best` the variables to predict with. A checkpoint counts once its checksum
list stands beside it, so a half-written one is never read.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import errno
import os
from pathlib import Path
import shutil
from typing import Any
import warnings

import jax
from orbax.checkpoint import v1 as ocp

from mean_jax.errors import UserError
from mean_jax.fileio import file_sha256, read_json, write_json
from mean_jax.log import LOGGER

KIND = "mean-jax checkpoint"
VERSION = 1
_KEPT_CHECKPOINTS = 2
_POLICIES = ocp.training.preservation_policies


def _seal_path(folder: Path, step: int) -> Path:
    return folder.with_name(f"{folder.name}-{step}.json")


def _tree_shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns Orbax's words for a full disk into the OSError that every other writer raises."""
    try:
        yield
    except Exception as error:
        if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


class CheckpointWriter:
    """Saves pytrees under RUN/checkpoints/NAME in the background, keeping the newest two."""

    def __init__(self, folder: Path, restored_step: int) -> None:
        """Opens the folder for steps after `restored_step`.

        Whatever stands there for later steps or without a checksum list is the rest of a killed process, or damaged,
        and is removed: its step will be saved again.
        """
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = {step for step in sealed_steps(self._folder) if step <= restored_step}
        for path in self._folder.iterdir():
            if path.name not in map(str, kept):
                shutil.rmtree(path)
        self._remove_seals(kept)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder.absolute(), preservation_policy=_POLICIES.LatestN(_KEPT_CHECKPOINTS)
        )
        self._sealing = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, tree: Any) -> None:
        """Starts saving; the previous save is finished and sealed first.

        Raises:
          OSError: the disk is full, now or while the previous save was written.
        """
        self.wait()
        with _disk_errors(self._folder):
            response = self._checkpointer.save_async(step, tree, force=True)
        self._pending = self._sealing.submit(self._seal, step, _tree_shapes(tree), response)

    def _seal(self, step: int, shapes: dict[str, str], response: Any) -> None:
        """Waits until the save is on disk, then writes its checksum list."""
        if not response.result():
            raise RuntimeError(f"{self._folder}: Orbax did not save step {step}")
        root = self._folder / str(step)
        files = {str(path.relative_to(root)): file_sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}
        write_json(_seal_path(self._folder, step), KIND, VERSION, {"step": step, "files": files, "leaves": shapes})
        self._remove_seals({step for step in sealed_steps(self._folder) if (self._folder / str(step)).is_dir()})

    def _remove_seals(self, kept: set[int]) -> None:
        for step in set(sealed_steps(self._folder)) - kept:
            _seal_path(self._folder, step).unlink()

    def wait(self) -> None:
        """Blocks until the save under way is on disk and sealed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _disk_errors(self._folder):
                pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._sealing.shutdown()
            with _disk_errors(self._folder):
                self._checkpointer.close()


def sealed_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints under RUN/checkpoints/NAME, newest first."""
    folder = Path(folder)
    steps = [int(seal.stem.removeprefix(f"{folder.name}-")) for seal in folder.parent.glob(f"{folder.name}-*.json")]
    return sorted(steps, reverse=True)


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Compares the files of a checkpoint with its checksum list and returns the list.

    Raises:
      UserError: a file is missing, cut or altered; the line names it.
    """
    seal = read_json(_seal_path(folder, step), KIND, VERSION)
    for name, digest in seal["files"].items():
        path = folder / str(step) / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; restore it from a copy of the run or train again")
        if file_sha256(path) != digest:
            raise UserError(f"{path}: checksum does not match, the checkpoint was cut or altered; train again")
    return seal


def load(folder: Path, step: int, abstract: Any) -> Any:
    """Returns the verified checkpoint of a step in the structure of `abstract`.

    Args:
      folder: RUN/checkpoints/NAME.
      step: one of `sealed_steps`.
      abstract: pytree of ShapeDtypeStruct or arrays.

    Raises:
      UserError: a damaged file, or leaves that differ in path, shape or dtype (each is listed).
    """
    folder = Path(folder)
    saved, expected = verify(folder, step)["leaves"], _tree_shapes(abstract)
    differing = [
        f"{path}: saved {saved.get(path, 'nothing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted(saved.keys() | expected.keys())
        if saved.get(path) != expected.get(path)
    ]
    if differing:
        raise UserError(f"{folder / str(step)}: does not fit the model: {'; '.join(differing)}")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    with warnings.catch_warnings(), ocp.training.Checkpointer(folder.absolute()) as checkpointer:
        return checkpointer.load(step, shapes)


def load_newest(folder: Path, abstract: Any) -> tuple[int, Any] | None:
    """Returns (step, tree) of the newest checkpoint that is whole, or None if there is none.

    A damaged one is named in the log and the one before it is tried. A tree that does not fit is an error.
    """
    for step in sealed_steps(folder):
        try:
            verify(Path(folder), step)
        except UserError as error:
            LOGGER.warning("skipping a damaged checkpoint: %s", error)
            continue
        return step, load(folder, step, abstract)
    return None
