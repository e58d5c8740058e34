"""Orbax checkpoints with checksums of their files; the only file that imports Orbax.

`latest` holds the whole training state, `best` the variables to predict with. A checkpoint counts once its seal, the
list of its files' checksums, stands beside it, so a half-written one is never read.

In a job of several processes all of them open, save, close and load together, and the folder is one that all see.
Process 0 alone judges checkpoints, writes seals and deletes. A checkpoint may be loaded on another topology than it
was saved on: shardings are those of the tree that is asked for.
"""

import asyncio
from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import errno
import itertools
import os
from pathlib import Path
import re
import shutil
from typing import Any
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from mean_jax.errors import UserError
from mean_jax.fileio import file_sha256, read_json, remove_temporaries, write_json
from mean_jax.log import LOGGER

KIND = "mean-jax checkpoint"
VERSION = 1
_KEPT_CHECKPOINTS = 2
_MIN_SLICE_BYTES = 2**24
_MAX_LISTED = 20  # leaves that do not fit, in one error line
_POLICIES = ocp.training.preservation_policies
_NOTHING = -1  # in place of a step
_ANSWER_BYTES = 8192  # of what process 0 tells the others
_writer_numbers = itertools.count()


def _seal_path(folder: Path, step: int) -> Path:
    return folder.with_name(f"{folder.name}-{step}.json")


def _tree_shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _barrier(name: str) -> None:
    """Waits for all processes; on no device, so a thread may call it. A name serves once in the life of a job."""
    asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="mean_jax"))


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

        Whatever stands there for later steps, without a seal or not as its seal says is the rest of a killed process
        (which may have been removing an older step), or damaged, and is removed.
        """
        self._folder = Path(folder)
        # Processes open writers in the same order, so the number names the same writer in all of them.
        self._name = f"checkpoints_{next(_writer_numbers)}"
        if jax.process_index() == 0:
            self._tidy(restored_step)
        _barrier(f"{self._name}_tidy")
        context = ocp.Context()
        context.multiprocessing.barrier_sync_key_prefix = self._name
        # Many small arrays: cutting each among the devices that all have it takes longer than writing them.
        context.array.saving.min_slice_bytes_for_replica_parallel = _MIN_SLICE_BYTES
        context.array.saving.enable_write_sharding_file = False  # nothing reads it: `load` names every sharding
        self._checkpointer = ocp.training.Checkpointer(
            self._folder.absolute(), context=context, preservation_policy=_POLICIES.LatestN(_KEPT_CHECKPOINTS)
        )
        self._sealing = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future[None] | None = None

    def _tidy(self, restored_step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self._folder.parent, f"{self._folder.name}-")
        kept = {step for step in sealed_steps(self._folder) if step <= restored_step and _is_whole(self._folder, step)}
        for path in self._folder.iterdir():
            if path.name not in map(str, kept):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._remove_seals(kept)

    def save(self, step: int, tree: Any, notes: dict[str, Any] | None = None) -> None:
        """Starts saving; the previous save is finished and sealed first.

        Args:
          step: higher than that of any save before.
          tree: pytree of arrays, which nobody overwrites meanwhile.
          notes: a few host values to keep in the seal, as JSON.

        Raises:
          OSError: the disk is full, now or while the previous save was written.
        """
        self.wait()
        seal = {"step": step, "leaves": _tree_shapes(tree), "notes": notes or {}}
        with _disk_errors(self._folder):
            response = self._checkpointer.save_async(step, tree, force=True)
        self._pending = self._sealing.submit(self._seal, seal, response)

    def _seal(self, seal: dict[str, Any], response: Any) -> None:
        """Waits until the save is on disk, then writes its seal; every process returns after that only."""
        step = seal["step"]
        if not response.result():
            raise RuntimeError(f"{self._folder}: Orbax did not save step {step}")
        if jax.process_index() == 0:
            root = self._folder / str(step)
            paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
            files = {str(path.relative_to(root)): file_sha256(path) for path in paths}
            write_json(_seal_path(self._folder, step), KIND, VERSION, seal | {"files": files})
            self._remove_seals({step for step in sealed_steps(self._folder) if (self._folder / str(step)).is_dir()})
        _barrier(f"{self._name}_{step}")

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
    seals = (re.fullmatch(rf"{re.escape(folder.name)}-(\d+)\.json", path.name) for path in folder.parent.glob("*.json"))
    return sorted((int(seal[1]) for seal in seals if seal), reverse=True)


def _committed_steps(folder: Path) -> set[int]:
    """Returns the steps whose save Orbax has finished, sealed or not."""
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else set()


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Compares the files of a checkpoint with its seal and returns the seal.

    Raises:
      UserError: a file is missing, cut or altered, or the seal is; the line names it.
    """
    path = _seal_path(folder, step)
    if not path.is_file():
        raise UserError(f"{path}: missing; checkpoint {folder / str(step)} was never finished, or lost its checksums")
    seal = read_json(path, KIND, VERSION)
    for name, digest in seal["files"].items():
        path = folder / str(step) / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; restore it from a copy of the run or train again")
        if file_sha256(path) != digest:
            raise UserError(f"{path}: checksum does not match, the checkpoint was cut or altered; train again")
    return seal


def _is_whole(folder: Path, step: int) -> bool:
    try:
        verify(folder, step)
    except UserError:
        return False
    return True


def _decided_by_lead(decide: Callable[[], int]) -> int:
    """Returns on all processes what `decide` returns on process 0, or raises its UserError."""
    if jax.process_count() == 1:
        return decide()
    answer = ""
    if jax.process_index() == 0:
        try:
            answer = str(decide())
        except UserError as error:
            answer = f"refused: {error}"
    padded = answer.encode()[:_ANSWER_BYTES].ljust(_ANSWER_BYTES)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    answer = np.asarray(told, np.uint8).tobytes().decode(errors="ignore").strip()
    if answer.startswith("refused: "):
        raise UserError(answer.removeprefix("refused: "))
    return int(answer)


def _require_fit(folder: Path, step: int, saved: dict[str, str], expected: dict[str, str]) -> None:
    differing = [
        f"{path}: saved {saved.get(path, 'nothing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted(saved.keys() | expected.keys())
        if saved.get(path) != expected.get(path)
    ]
    if differing:
        listed = "; ".join(differing[:_MAX_LISTED])
        rest = f"; and {len(differing) - _MAX_LISTED} more" if len(differing) > _MAX_LISTED else ""
        raise UserError(
            f"{folder / str(step)}: does not fit the model in {len(differing)} arrays: {listed}{rest}; "
            "use the config and the program version that wrote it, or train in a new folder"
        )


def _load_verified(folder: Path, step: int, abstract: Any) -> Any:
    _require_fit(folder, step, read_json(_seal_path(folder, step), KIND, VERSION)["leaves"], _tree_shapes(abstract))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def as_asked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)

    with warnings.catch_warnings(), ocp.training.Checkpointer(folder.absolute()) as checkpointer:
        return checkpointer.load(step, jax.tree.map(as_asked, abstract))


def load(folder: Path, step: int, abstract: Any) -> Any:
    """Returns the verified checkpoint of a step in the structure of `abstract`.

    Args:
      folder: RUN/checkpoints/NAME.
      step: one of `sealed_steps`.
      abstract: pytree of ShapeDtypeStruct or arrays; a leaf with a sharding is loaded so, one without on one device.

    Raises:
      UserError: a damaged file, or leaves that differ in path, shape or dtype (each is listed, up to 20).
    """
    folder = Path(folder)
    _decided_by_lead(lambda: verify(folder, step)["step"])
    return _load_verified(folder, step, abstract)


def read_notes(folder: Path, step: int) -> dict[str, Any]:
    """Returns the notes in the seal of a checkpoint; seals of before they were introduced have none."""
    notes: dict[str, Any] = read_json(_seal_path(Path(folder), step), KIND, VERSION).get("notes", {})
    return notes


def _newest_whole(folder: Path, strict: bool) -> int:
    """Returns the step of the newest checkpoint that is whole, or _NOTHING if none was ever finished."""
    sealed = sealed_steps(folder)
    for step in sorted(_committed_steps(folder) | set(sealed), reverse=True):
        try:
            verify(folder, step)
        except UserError as error:
            if strict:
                raise UserError(
                    f"{error}; --strict_restore refuses to go on: leave it out, or remove {folder / str(step)} and "
                    f"{_seal_path(folder, step).name}, to use the checkpoint before"
                ) from error
            LOGGER.warning("skipping a damaged checkpoint: %s", error)
            continue
        return step
    if sealed:
        raise UserError(
            f"{folder}: all {len(sealed)} checkpoints are damaged; restore the run from a copy or train in a new folder"
        )
    return _NOTHING


def load_newest(folder: Path, abstract: Any, strict: bool = False) -> tuple[int, Any] | None:
    """Returns (step, tree) of the newest checkpoint that is whole, or None if none was ever finished.

    A damaged one is named in the log and the one before it is tried.

    Args:
      folder: RUN/checkpoints/NAME.
      abstract: as for `load`.
      strict: refuse a damaged one instead.

    Raises:
      UserError: all are damaged, or the newest is and `strict` is set, or the tree does not fit.
    """
    folder = Path(folder)
    step = _decided_by_lead(lambda: _newest_whole(folder, strict))
    return None if step == _NOTHING else (step, _load_verified(folder, step, abstract))
