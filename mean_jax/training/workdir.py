"""The run folder as training finds it: made new, gone on with, or refused."""

import dataclasses
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from mean_jax import run as run_lib
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.fileio import remove_temporaries
from mean_jax.run import Program
from mean_jax.sharding import of_lead
from mean_jax.training import checkpoints, lock

# Sections of the config that do not change what a run is: it may go on with others.
_FREE_SECTIONS = ("mesh",)
_FREE_FIELDS = {"data": ("placement",)}
_LOCK_NAME_BYTES = 64  # at most, as process 0 tells it the others
_MAX_DIFFERENCES = 20  # named in an error line


def differences(saved: Any, asked: Any, prefix: str = "") -> list[str]:
    """Returns 'path: saved x, asked y' for every leaf in which two nested dictionaries differ."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        keys = sorted(saved.keys() | asked.keys())
        return [line for key in keys for line in differences(saved.get(key), asked.get(key), f"{prefix}.{key}")]
    return [] if saved == asked else [f"{prefix.lstrip('.')}: saved {saved}, asked {asked}"]


def _what_counts(program: Program) -> dict[str, Any]:
    sections = dataclasses.asdict(program.config)
    return {
        name: {field: value for field, value in fields.items() if field not in _FREE_FIELDS.get(name, ())}
        for name, fields in sections.items()
        if name not in _FREE_SECTIONS
    }


def open_run_folder(workdir: Path, program: Program, flag: str) -> bool:
    """Makes or re-opens the run folder; returns whether its training is finished already.

    Raises:
      UserError: the folder is none of a run, or of a run with another config or store; the line says what differs.
    """
    if not (workdir / run_lib.CONFIG_NAME).is_file():
        begun = (run_lib.TRANSFORM_NAME, run_lib.SCHEMA_NAME)  # all that a process killed in save_setup leaves
        if workdir.exists() and not (
            workdir.is_dir()
            and all(path.name in begun or path.suffix == ".tmp" or lock.is_lock(path) for path in workdir.iterdir())
        ):
            raise UserError(f"{flag}: {workdir} exists and is not a run folder; choose another")
        workdir.mkdir(parents=True, exist_ok=True)
        remove_temporaries(workdir)
        run_lib.save_setup(workdir, program)
        return False
    remove_temporaries(workdir)
    refuse_another_run(workdir, program, flag)
    return run_lib.is_finished(workdir)


def refuse_another_run(workdir: Path, program: Program, flag: str) -> None:
    """Raises UserError if the run folder is that of another program; the line says what differs."""
    saved = run_lib.load_setup(workdir)
    found = differences(_what_counts(saved), _what_counts(program))
    if found:
        raise _mismatch(flag, workdir, "config", found)
    found = differences(dataclasses.asdict(saved.schema), dataclasses.asdict(program.schema))
    if found:
        raise _mismatch(flag, workdir, "schema", found)
    if saved.transform.to_dict() != program.transform.to_dict():
        raise UserError(f"{flag}: {workdir} holds a run on another store; choose another")


def refuse_another_folder(workdir: Path, held: lock.Held | None, flag: str) -> None:
    """Raises UserError in a process whose run folder is not the one of process 0, where a copy would stop the job dead.

    Args:
      workdir: as this process knows the run folder.
      held: its lock, in process 0.
      flag: where the folder's name came from.
    """
    own = np.frombuffer((held.path.name if held else "").encode().ljust(_LOCK_NAME_BYTES), np.uint8)
    name = np.asarray(of_lead(own), np.uint8).tobytes().decode().strip()
    if held is None and not (workdir / name).is_file():
        raise UserError(
            f"{flag}: {workdir} is not the folder that process 0 trains in, whose lock {name} is missing here; "
            "name one folder in all processes of a job, on a file system that their machines share"
        )


def refuse_other_rows(workdir: Path, num_rows: int, flag: str) -> None:
    """Raises UserError if a run was begun on another number of training rows, which decides the order of them all."""
    for step in checkpoints.sealed_steps(workdir / run_lib.LATEST):
        try:
            begun_with = checkpoints.read_notes(workdir / run_lib.LATEST, step).get("num_rows", num_rows)
        except UserError:  # a damaged one; whoever restores it says so
            continue
        if begun_with != num_rows:
            raise UserError(
                f"--data: the store has {num_rows} training rows, those of step {step} in {workdir} came from "
                f"{begun_with}; rows were added since the run began: train on them in a new {flag}"
            )


def refuse_divided_job(program: Program, store: Store) -> None:
    """Raises UserError in a process whose devices or rows are not to be used as process 0 uses them."""
    settings = {f"--config.mesh.{name}": value for name, value in dataclasses.asdict(program.config.mesh).items()}
    settings |= {"--config.data.placement": program.config.data.placement, "--data": store.manifest["splits"]}
    own = np.array([zlib.crc32(repr(value).encode()) for value in settings.values()], np.uint32)
    differing = [name for name, is_same in zip(settings, own == of_lead(own), strict=True) if not is_same]
    if differing:
        raise UserError(
            f"{', '.join(differing)}: not the same as in process 0; give all processes of a job one command and one "
            "store, to which nothing is being added"
        )


def _mismatch(flag: str, workdir: Path, what: str, found: list[str]) -> UserError:
    more = f"; and {len(found) - _MAX_DIFFERENCES} more" if len(found) > _MAX_DIFFERENCES else ""
    listed = "; ".join(found[:_MAX_DIFFERENCES])
    return UserError(f"{flag}: {workdir} holds a run of another {what} ({listed}{more}); choose another")
