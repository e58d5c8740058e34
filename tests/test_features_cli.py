"""mean-jax-features from files to files: inputs in every form, outputs whole."""

import gzip
from pathlib import Path
import re
import sys

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.features import main
from mean_jax.features import build
from mean_jax.features.spec import FeatureSpec
from tests.features_command import DAY, START, Command, command, good_log, write_log

__all__ = ["command"]  # a fixture

# Ibis calls a method that DuckDB 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


def test_one_file_sorted_by_id_with_a_report(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "customers.parquet"
    report = command(write_log(tmp_path / "log.parquet", good_log()), f"--output={output}", "--horizons=30,365")
    table = pq.read_table(output)
    assert table["customer_id"].to_pylist() == [1, 2, 3]
    assert table.schema.field("customer_id").type == pa.int32()
    assert table.column_names[-2:] == ["cltv_30", "cltv_365"]
    assert table["cltv_30"].to_pylist() == [40.0, 0.0, 0.0]
    assert table["cltv_365"].null_count == 3
    assert [path.name for path in output.parent.iterdir()] == ["customers.parquet"]
    assert "5 rows of 4 customers from 2020-01-01" in report
    assert "1 of 4 customers dropped" in report
    assert "cltv_30: 3 customers labelled, 66.7 % zero, total 40.00" in report
    assert "cltv_365: no customer labelled, as the log ends before the horizon is over" in report
    assert "cltv_365: 0" not in report
    useless = r"constant columns and labels without a value, to leave out of training: mean-jax-prepare --exclude=(.*)"
    *constant, label = re.search(useless, report)[1].split(",")
    assert "order_count" in constant
    assert label == "cltv_365"


def test_negative_labels_are_set_to_zero_and_counted(command: Command, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", good_log(amount=[10.0, 20.0, 30.0, -40.0, 50.0]))
    report = command(log, f"--output={tmp_path / 'net.parquet'}", "--horizons=30")
    assert "total 0.00; 1 below 0 were set to 0" in report
    assert "without a value" not in report
    assert pq.read_table(tmp_path / "net.parquet")["cltv_30"].to_pylist() == [0.0, 0.0, 0.0]
    assert "below 0" not in command(log, f"--output={tmp_path / 'gross.parquet'}", "--horizons=30", "--nonet")


def test_a_folder_of_part_files_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ROWS_PER_PART", 150_000)
    rows = 300_000  # DuckDB streams about 120,000 at a time
    ids = [f"c{i:06d}" for i in range(rows)]
    times = pa.array([START, *[START - 90 * DAY] * (rows - 1)])
    write_log(
        tmp_path / "log.parquet", pa.table({"customer_id": ids[::-1], "timestamp": times, "amount": [1.0] * rows})
    )
    spec = FeatureSpec(horizons=())
    summary = build.build_customer_table(str(tmp_path / "log.parquet"), tmp_path / "out", spec)
    parts = sorted((tmp_path / "out").iterdir())
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]
    assert len(parts) > 1
    assert pa.concat_tables(map(pq.read_table, parts))["customer_id"].to_pylist() == ids[:-1]
    assert summary.customers == rows - 1


def test_files_folders_globs_and_csv_give_the_same_table(command: Command, tmp_path: Path) -> None:
    log = good_log()
    parts = [log.slice(0, 2), log.slice(2).select(["amount", "timestamp", "city", "customer_id"])]
    for kind in ("plain", "spark", "csv", "zipped"):
        (tmp_path / kind).mkdir()
    pq.write_table(log, tmp_path / "plain" / "log[1].parquet")
    pq.write_table(log.slice(0, 1), tmp_path / "plain" / "log1.parquet")
    for i, part in enumerate(parts):
        pq.write_table(part, tmp_path / "spark" / f"part-{i}.parquet")
        pa_csv.write_csv(part, tmp_path / "csv" / f"part-{i}.csv")
        pa_csv.write_csv(part, tmp_path / "part.csv")
        (tmp_path / "zipped" / f"part-{i}.csv.gz").write_bytes(gzip.compress((tmp_path / "part.csv").read_bytes()))
    (tmp_path / "spark" / "_SUCCESS").write_text("")
    (tmp_path / "spark" / "_temporary").mkdir()
    write_log(tmp_path / "spark" / "_temporary" / "part-2.parquet", log)
    tables = []
    for i, source in enumerate(["plain/log[1].parquet", "spark", "spark/part-*.parquet", "csv", "zipped"]):
        output = tmp_path / f"{i}.parquet"
        command(f"--transactions={tmp_path / source}", f"--output={output}", "--horizons=30,90")
        tables.append(pq.read_table(output).to_pylist())
    assert len(tables[0]) == 3
    assert all(table == tables[0] for table in tables)


def test_words_for_missing_values_in_csv_are_those_of_prepare(command: Command, tmp_path: Path) -> None:
    """A column of numbers stays one, as R and pandas write what is missing."""
    pa_csv.write_csv(good_log(city=["1.5", "NA", "2", "NaN", "null"]), tmp_path / "log.csv")
    command(f"--transactions={tmp_path / 'log.csv'}", f"--output={tmp_path / 'o.parquet'}", "--horizons=30")
    assert pq.read_table(tmp_path / "o.parquet")["city_sum"].to_pylist() == [None, 2.0, 1.5]


def test_types_widen_over_files(command: Command, tmp_path: Path) -> None:
    """Integers beside 32-bit floats keep all their digits; times of every form are the instants they name."""
    large = 2**24 + 1
    (tmp_path / "log" / "region=north").mkdir(parents=True)
    start = pa.array([START] * 5)
    logs = [
        good_log(customer_id=pa.array([1] * 5, pa.int8()), timestamp=start.cast(pa.date32()), amount=[large] * 5),
        good_log(customer_id=[2] * 5, timestamp=start, Amount=pa.array([0.5] * 5, pa.float32()), amount=None),
        good_log(
            timestamp=pa.array([START + 400 * DAY] * 5, pa.timestamp("ns", "Asia/Tokyo")),
            city=pa.nulls(5),
            amount=[1] * 5,
        ),
    ]
    for i, log in enumerate(logs):
        write_log(tmp_path / "log" / "region=north" / f"{i}.parquet", log)
    command(f"--transactions={tmp_path / 'log'}", f"--output={tmp_path / 'o.parquet'}", "--horizons=30")
    table = pq.read_table(tmp_path / "o.parquet")
    assert table["customer_id"].to_pylist() == [1, 2]
    assert table["amount_sum"].to_pylist() == [5.0 * large, 2.5]
    assert table["city_first"].to_pylist() == ["Oslo"] * 2
    assert table["first_month"].to_pylist() == [1, 1]
    assert not any("region" in name for name in table.column_names), "names of folders are not read"


def test_a_column_that_a_file_lacks_is_null_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    write_log(tmp_path / "log" / "1.parquet", good_log(city=None))
    write_log(tmp_path / "log" / "2.parquet", good_log())
    command(f"--transactions={tmp_path / 'log'}", f"--output={tmp_path / 'o.parquet'}", "--exclude=none", code=2)
    command(f"--transactions={tmp_path / 'log'}", f"--output={tmp_path / 'o.parquet'}", "--horizons=30")
    table = pq.read_table(tmp_path / "o.parquet")
    assert table["city_first"].to_pylist() == ["Oslo", "Rome", "Rome"]
    assert table["order_count"].to_pylist() == [1, 1, 1]


def test_as_of_reports_a_window_that_begins_before_the_log(command: Command, tmp_path: Path) -> None:
    log = good_log(shipped=[START] * 5)
    report = command(
        write_log(tmp_path / "log.parquet", log),
        f"--output={tmp_path / 'o.parquet'}",
        *("--as_of=2020-02-01", "--horizons=30", "--memory_limit=500MB"),
    )
    assert "begins before the log" in report
    assert "column shipped is not used" in report
    assert "1 of 4 customers dropped: no transaction in the observation window" in report


def test_help_explains_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mean-jax-features", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    text = capsys.readouterr().out
    names = ("transactions", "output", "backend", "spark_master", "exclude", "as_of", "[no]net", "sub_windows")
    for flag in (*names, "memory_limit"):
        assert f"--{flag}: " in text
    for default in ("customer_id", "timestamp", "amount", "duckdb", "90", "30,90,180,365", "true", "3"):
        assert f"(default: '{default}')" in text
