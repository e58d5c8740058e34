"""Files that appear whole or not at all: atomic writes, checksums and self-verifying JSON.

Every writer works under a temporary name beside its target and renames at the end, so a reader never sees half a
file and a killed process leaves nothing that looks complete.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any
import uuid

from mean_jax.errors import UserError

_CHUNK_BYTES = 1 << 22
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def file_sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _absolute(path: Path) -> Path:
    """Returns the path with a name at its end: no `.`, `..` or trailing slash."""
    return Path(os.path.abspath(path))


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sync(path: Path) -> None:
    """Makes a file, or what names stand in a folder, outlast a power failure; for folders, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to the system's errors, which writes do not carry."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(error.filename or path)) from error


def remove_temporaries(folder: Path, prefix: str = "") -> None:
    """Removes what killed atomic writers of files named `prefix...` left in a folder; for its sole owner to call."""
    for path in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.name.startswith(f".{prefix}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, deletes it on any exception."""
    path = _absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_free_output(path: Path, flag: str = "--output") -> None:
    """Raises UserError if `path` holds anything already: results of two runs never mix."""
    if _absolute(path) == Path.cwd():  # an empty path is this one too
        raise UserError(f"{flag}: is empty or the current folder; name a folder or file to make")
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{flag}: folder {path} exists and is not empty; remove it or choose another {flag}")
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}: {path} exists already; remove it or choose another {flag}")
    if path.is_dir() and path.suffix == ".parquet":
        raise UserError(
            f"{flag}: {path} is a folder, and a name that ends in .parquet is one file; "
            f"remove it or choose another {flag}"
        )


def require_new_folder(path: Path, flag: str = "--output") -> None:
    """Raises UserError unless a folder can be renamed to `path`: nothing is there, or an empty folder."""
    require_free_output(path, flag)
    absolute = _absolute(path)
    for is_special, what in ((absolute.is_symlink(), "a symbolic link"), (os.path.ismount(absolute), "a mount point")):
        if is_special:
            raise UserError(f"{flag}: {path} is {what}, which cannot be replaced; name a new folder")


@contextlib.contextmanager
def atomic_folder(path: Path, flag: str = "--output") -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` on success, deletes it on any exception.

    Raises:
      UserError: `path` is an existing file, a folder with content, the current folder, a link or a mount point.
    """
    require_new_folder(path, flag)
    path = _absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _payload_sha256(payload: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, kind: str, version: int, payload: dict[str, Any]) -> None:
    """Writes `payload` atomically with its kind, format version and checksum in front."""
    payload = json.loads(json.dumps(payload))  # as a reader will see it: string keys, lists
    content = {"format": kind, "version": version, "sha256": _payload_sha256(payload), **payload}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Reads what `write_json` wrote and returns the payload.

    Raises:
      UserError: the file is missing, not JSON, of another kind or version, or its checksum does not match.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: missing; expected a {kind} file")
    try:
        content = json.loads(path.read_text())
        found_kind, found_version, digest = (content.pop(key) for key in ("format", "version", "sha256"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged or not a {kind} file; restore it from a copy or make it again") from None
    if found_kind != kind:
        raise UserError(f"{path}: is a {found_kind} file, expected {kind}")
    if found_version != version:
        raise UserError(
            f"{path}: format version {found_version}, this program reads version {version}; "
            "use the program version that wrote it or make it again"
        )
    if _payload_sha256(content) != digest:
        raise UserError(f"{path}: checksum does not match, the file was altered; restore it or make it again")
    return content
