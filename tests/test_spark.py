"""Spark gives the customer table that DuckDB gives: public logs, every kind of column and file, every fault.

Sums may differ in their last digits, as the order of summation does; all else is equal. The two public logs are fetched
once; without a network only logs in their shape are compared.
"""

from collections.abc import Callable, Iterator
import dataclasses
import datetime
import os
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.data.public import DATASETS, load_dataset
from mean_jax.errors import UserError
from mean_jax.features import spark_backend
from mean_jax.features.build import build_customer_table
from mean_jax.features.spec import FeatureSpec

pytest.importorskip("pyspark", reason="the extra [spark] is not installed")
if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
    pytest.skip("no Java runtime is installed", allow_module_level=True)

pytestmark = [
    # PySpark forks to start Java; other tests of the same process may have loaded JAX, which warns of any fork.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Ibis calls a method that DuckDB 2 deprecates; PySpark leaves it to the collector to close its sockets.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

# For small data: few partitions, little compilation.
SETTINGS = {
    "spark.master": "local[2]",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.ui.enabled": "false",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.session.timeZone": "America/New_York",  # as a cluster may have it
    "spark.sql.ansi.enabled": "false",
}
START = datetime.datetime(2020, 1, 30)
DAY = datetime.timedelta(days=1)
Both = Callable[..., pa.Table]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The one Spark of this file; the engine finds it running."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    with spark_backend._standard_error_in(tmp_path_factory.mktemp("spark") / "spark.log"):
        session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture
def both(spark: Any, tmp_path: Path) -> Both:
    """Returns a function that computes the table of a log on both engines, compares them, and returns one."""

    def compute(log: Path | pa.Table, **options: Any) -> pa.Table:
        if isinstance(log, pa.Table):
            log = write(tmp_path / "log.parquet", log)
        spec = FeatureSpec(**options)
        tables = []
        for backend in ("duckdb", "pyspark"):
            output = tmp_path / f"{backend}.parquet"
            summary = build_customer_table(str(log), output, spec, backend=backend)
            tables.append((pq.read_table(output), summary))
        (expected, expected_summary), (actual, summary) = tables
        assert_same(actual, expected)
        assert (summary.span, summary.constant, summary.ignored) == (
            expected_summary.span,
            expected_summary.constant,
            expected_summary.ignored,
        )
        return actual

    return compute


def write(file: Path, log: pa.Table, **options: Any) -> Path:
    pq.write_table(log, file, **options)
    return file


def assert_same(actual: pa.Table, expected: pa.Table) -> None:
    """Asserts the same columns, types and rows in the same order, floats to 1e-9 of the column's largest."""
    assert actual.schema.equals(expected.schema), f"{actual.schema}\nagainst\n{expected.schema}"
    assert actual.num_rows == expected.num_rows
    for name in expected.column_names:
        if not pa.types.is_floating(expected.schema.field(name).type):
            assert actual[name].to_pylist() == expected[name].to_pylist(), name
            continue
        assert actual[name].is_null().equals(expected[name].is_null()), name
        found, wanted = (table[name].drop_null().to_numpy() for table in (actual, expected))
        scale = np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * scale, err_msg=name)


def random_times(rng: np.random.Generator, rows: int, days: int, unit: str) -> np.ndarray:
    """Returns times of `days` days, whole in `unit`, the last one included."""
    span = int(np.timedelta64(days, "D") / np.timedelta64(1, unit))
    steps = np.append(rng.integers(0, span, rows - 1), span - 1)
    return (np.datetime64("2000-11-01") + steps.astype(f"timedelta64[{unit}]")).astype("datetime64[us]")


def cdnow_shape(rows: int = 3000) -> pa.Table:
    """Integer ids, days, dollars, a number of pieces."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "customer_id": (300 * rng.random(rows) ** 2).astype(np.int64),
            "timestamp": random_times(rng, rows, 546, "D"),
            "amount": np.round(rng.lognormal(3.0, 1.0, rows), 2),
            "quantity": rng.geometric(0.4, rows),
        }
    )


def ta_feng_shape(rows: int = 3000) -> pa.Table:
    """Ids as text with leading zeros, categories with nulls, and returns, which Ta-Feng has not."""
    rng = np.random.default_rng(1)
    area = rng.choice(["115", "221", "others"], rows)
    return pa.table(
        {
            "customer_id": [f"{i:08d}" for i in (200 * rng.random(rows) ** 2).astype(int)],
            "timestamp": random_times(rng, rows, 120, "D"),
            "amount": rng.integers(-300, 2000, rows).astype(float),
            "cost": pa.array(rng.integers(1, 1500, rows), pa.int64(), mask=rng.random(rows) < 0.1),
            "age_group": pa.array(rng.choice(["<25", "25-29", ">65"], rows), mask=rng.random(rows) < 0.3),
            "area": pa.array(area).dictionary_encode(),
        }
    )


@pytest.mark.parametrize(("name", "num_customers"), [("cdnow", 23_570), ("ta_feng", 28_000)])
def test_a_public_log(name: str, num_customers: int, both: Both, tmp_path: Path) -> None:
    try:
        log = load_dataset(name).read_all()
    except UserError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    options = DATASETS[name].recipe.features
    assert options is not None
    assert both(log, **dataclasses.asdict(options)).num_rows > 0.9 * num_customers


def test_a_log_in_the_shape_of_cdnow(both: Both) -> None:
    assert both(cdnow_shape()).num_rows > 200


def test_a_log_in_the_shape_of_ta_feng_as_files_of_text(both: Both, tmp_path: Path) -> None:
    """As CSV, so that ids, numbers and categories are told apart from their text."""
    log = ta_feng_shape()
    (tmp_path / "csv").mkdir()
    pa_csv.write_csv(log.slice(0, 1000), tmp_path / "csv" / "1.csv")
    pa_csv.write_csv(log.slice(1000).drop_columns("area"), tmp_path / "csv" / "2.csv")
    table = both(tmp_path / "csv", observation_days=30, horizons=(30, 60))
    assert table.schema.field("customer_id").type == pa.string()
    assert {"cost_sum", "age_group_first", "area_most_frequent"} < set(table.column_names)


def test_one_window_for_all_and_columns_of_every_kind(both: Both, tmp_path: Path) -> None:
    """Microseconds, zones, NaN beside null, booleans, letters beyond ASCII, awkward names, files that differ."""
    rng = np.random.default_rng(2)
    rows = 2000
    times = random_times(rng, rows, 400, "us")
    price = rng.choice([np.nan, 0.0, 1.5, -2.25], rows)
    log = pa.table(
        {
            "customer_id": pa.array(rng.integers(0, 60, rows), pa.int32()),
            "timestamp": pa.array(times, pa.timestamp("us", "America/New_York")),
            "amount": pa.array(rng.integers(-5000, 9000, rows), pa.int32()).cast(pa.decimal128(12, 2)),
            "price": pa.array(price, mask=rng.random(rows) < 0.2),
            "store `1`": pa.array(rng.choice(["", "A", "a", "é", "zebra"], rows), mask=rng.random(rows) < 0.2),
            "is_online": pa.array(rng.random(rows) < 0.5, mask=rng.random(rows) < 0.2),
            "small": pa.array(rng.integers(0, 200, rows), pa.uint8()),
            "empty": pa.nulls(rows),
            "shipped": times,
            "nested": pa.array([[1]] * rows),
        }
    )
    folder = tmp_path / "a [log] {of} 100 %20"
    folder.mkdir()
    nanos = log.slice(0, 500).set_column(1, "timestamp", pa.array(times[:500], pa.timestamp("ns")))
    write(folder / "1.parquet", nanos.drop_columns("small"))
    write(folder / "2.parquet", log.slice(500, 500).select(log.column_names[::-1]))
    floats = log.slice(1000, 500).set_column(2, "Amount", log["amount"].slice(1000, 500).cast(pa.float32()))
    write(folder / "3.parquet", floats.set_column(6, "small", pa.array(rng.random(500))))
    write(folder / "4.parquet", log.slice(1500), use_deprecated_int96_timestamps=True)
    (folder / ".1.parquet.crc").write_bytes(b"a checksum of another file")
    table = both(
        folder,
        observation_days=200,
        horizons=(30, 90),
        as_of=datetime.date(2001, 8, 1),
        net=False,
        sub_windows=7,
        excluded=("nested",),
    )
    assert table["empty_distinct"].to_pylist() == [0] * table.num_rows
    assert table["store `1`_first"].null_count < table.num_rows
    assert not any("shipped" in name for name in table.column_names)


TIMES = [
    "2020-01-01",
    "2020-01-01 10:00",
    "2020-01-01T10:00Z",
    "2020-01-01T23:30-0330",
    "2020-01-01T23:30:00+02",
    "2020-01-01 23:30:15.9999999+05:45",
    "2020-02-29T00:00:00.000001Z",
    "1969-12-31 23:59:59.5",
]
NO_TIMES = ["2020-02-30", "2020-01-01 24:00", "2020-01-01 10:60", "2020-01-01 10", "10:00", "2020-1-1", "1577836800"]
NUMBERS = ["1", "-1.5", "+2", "5.", ".5", "1e3", "1E-3", " 7 ", "0x10", "1d", "1f", "1_000", "1,5", "-nan", "x", "٣"]


def test_text_means_the_same_times_and_numbers(both: Both, tmp_path: Path) -> None:
    """Each text is a column of its own or a customer of its own, so that one difference shows."""
    end = datetime.datetime(2021, 1, 1)
    names = [f"n{i}" for i in range(len(NUMBERS))]
    lines = [",".join(["customer_id,timestamp,amount", *names])]
    lines += [f'{i},{time},1,"' + '","'.join(NUMBERS) + '"' for i, time in enumerate(TIMES)]
    lines += [f"99,{end},1" + "," * len(names)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    table = both(tmp_path / "log.csv", horizons=())
    are_numbers = [f"{name}_sum" in table.column_names for name in names]
    assert are_numbers == [True] * 8 + [False] * 8
    hours = (table["recency_days"].to_numpy() * 24).round(9)
    np.testing.assert_array_equal(hours, [90 * 24] * len(TIMES))


@pytest.mark.parametrize("backend", ["duckdb", "pyspark"])
def test_the_same_text_is_no_time(spark: Any, tmp_path: Path, backend: str) -> None:
    log = {"customer_id": range(len(NO_TIMES)), "timestamp": NO_TIMES, "amount": [1.0] * len(NO_TIMES)}
    with pytest.raises(UserError, match=f"no ISO 8601 time in {len(NO_TIMES)} of {len(NO_TIMES)} rows"):
        build(tmp_path, pa.table(log), backend)


def build(folder: Path, log: pa.Table, backend: str) -> None:
    write(folder / "log.parquet", log)
    build_customer_table(str(folder / "log.parquet"), folder / "o.parquet", FeatureSpec(), backend=backend)


BAD = {
    "null": ([1.0, None, 3.0], "null in 1 of 3"),
    "nan": ([1.0, float("nan"), 3.0], "NaN in 1 of 3"),
    "infinite": ([1.0, 2.0, float("-inf")], "infinite or beyond 3.4e38 in 1 of 3"),
    "too large": ([1.0, 2.0, 1e39], "infinite or beyond 3.4e38 in 1 of 3"),
    "sum too large": ([3e38, 3e38, 1.0], "amount_sum of the customer table: reaches 6e"),
    "text": (["1", "2", "1d"], "no number in 1 of 3 rows .*'1d'"),
}


@pytest.mark.parametrize("backend", ["duckdb", "pyspark"])
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_amount_is_the_same_line(spark: Any, tmp_path: Path, backend: str, fault: str) -> None:
    amounts, words = BAD[fault]
    log = pa.table({"customer_id": ["a", "a", "b"], "timestamp": [START, START, START + 400 * DAY], "amount": amounts})
    with pytest.raises(UserError, match=words):
        build(tmp_path, log, backend)
    assert [file.name for file in tmp_path.iterdir()] == ["log.parquet"]


def test_what_spark_cannot_read_is_named(spark: Any, tmp_path: Path) -> None:
    log = pa.table({"customer_id": [1], "timestamp": [START], "amount": [1.0], "time": [datetime.time(12)]})
    with pytest.raises(UserError, match=r"Spark cannot read a column: .*TIME.*; write it as another type"):
        build(tmp_path, log, "pyspark")


def test_a_damaged_page_is_one_line(spark: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "log.parquet", cdnow_shape())
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes([255]) * 2000 + content[2004:])
    with pytest.raises(UserError, match=r"Spark failed: .*; mend the log"):
        build_customer_table(str(file), tmp_path / "o.parquet", FeatureSpec(), backend="pyspark")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_folder_of_part_files_is_ordered(
    spark: Any, both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mean_jax.features.build.ROWS_PER_PART", 50)
    monkeypatch.setattr(spark_backend, "_ROWS_PER_BATCH", 20)
    expected = both(cdnow_shape())
    build_customer_table(str(tmp_path / "log.parquet"), tmp_path / "parts", FeatureSpec(), backend="pyspark")
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]
    assert len(parts) > 3
    assert_same(pa.concat_tables(map(pq.read_table, parts)), expected)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs mean-jax-features on Spark in a process of its own."""
    write(folder / "log.parquet", cdnow_shape())
    return subprocess.run(
        [
            *(sys.executable, "-m", "mean_jax.cli.features", "--backend=pyspark", *arguments),
            *(f"--transactions={folder / 'log.parquet'}", f"--output={folder / 'o.parquet'}"),
        ],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_starts_spark_quietly_and_stops_it(tmp_path: Path) -> None:
    settings = " ".join(f"--conf {name}={value}" for name, value in SETTINGS.items() if name != "spark.master")
    done = command(
        tmp_path,
        *("--spark_master=local[1]", "--memory_limit=500MB"),
        PYSPARK_SUBMIT_ARGS=f"{settings} pyspark-shell",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line[2] == line[5] == ":" for line in lines), f"other lines than our own:\n{done.stderr}"
    assert "customer table of" in lines[-1]
    assert not done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"log.parquet", "o.parquet"}


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {"JAVA_HOME": "/nothing"}, ["Spark does not start", "/nothing/bin/java", "JAVA_HOME"]),
        (["--spark_master=nowhere"], {}, ["Spark does not start", "Master must", "--spark_master"]),
        (["--memory_limit=half"], {}, ["--memory_limit=half", "4GB"]),
    ],
)
def test_a_spark_that_does_not_start_is_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    done = command(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_without_pyspark_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(UserError, match=r"--backend=pyspark: .*; pip install 'mean-jax\[spark\]'"):
        build(tmp_path, cdnow_shape(), "pyspark")
