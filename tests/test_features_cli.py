"""mean-jax-features from files to files: inputs in every form, outputs whole or not at all, one line per mistake."""

from collections.abc import Callable
import datetime
import errno
import gzip
from pathlib import Path
import re
import sys
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.features import main
from mean_jax.features import build
from mean_jax.features.duckdb_backend import DuckDB
from mean_jax.features.spec import FeatureSpec

# Ibis calls a method that DuckDB 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

START = datetime.datetime(2020, 1, 1)
DAY = datetime.timedelta(days=1)
Command = Callable[..., str]


def good_log(**columns: Any) -> pa.Table:
    """Returns a daily log of 4 customers over 400 days; columns replace those of the same name, None drops one."""
    log = {
        "customer_id": pa.array([3, 1, 2, 1, 4], pa.int32()),
        "timestamp": [START, START, START + DAY, START + 100 * DAY, START + 400 * DAY],
        "amount": [10.0, 20.0, 30.0, 40.0, 50.0],
        "city": ["Rome", "Oslo", "Rome", None, "Oslo"],
    }
    return pa.table({name: column for name, column in (log | columns).items() if column is not None})


@pytest.fixture
def command(call: Callable[..., tuple[int, str]]) -> Command:
    """Returns a function that runs the command and returns what it writes to standard error."""

    def run(*arguments: str, code: int = 0) -> str:
        found, error = call(main, *arguments)
        assert found == code, error
        return error

    return run


def fails(command: Command, folder: Path, *arguments: str) -> str:
    """Returns the line of a user's mistake, after checking that there is one line and that nothing was written."""
    before = sorted(folder.rglob("*"))
    error = command(*arguments, code=2)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return error


def write_log(path: Path, log: pa.Table) -> str:
    pq.write_table(log, path)
    return f"--transactions={path}"


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
    assert "constant columns" in report
    assert "order_count," in report


def test_negative_labels_are_set_to_zero_and_counted(command: Command, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", good_log(amount=[10.0, 20.0, 30.0, -40.0, 50.0]))
    report = command(log, f"--output={tmp_path / 'net.parquet'}", "--horizons=30")
    assert "total 0.00; 1 below 0 were set to 0" in report
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


def _with_names(names: list[str]) -> pa.Table:
    log = good_log()
    return pa.table([log[i] for i in range(len(names))], names=names)


@pytest.mark.parametrize(
    ("log", "arguments", "words"),
    [
        (good_log(customer_id=None, custmer_id=range(5)), [], ["--id_column", "customer_id", "mean custmer_id?"]),
        (good_log(), ["--time_column=timestmp"], ["--time_column", "timestmp", "did you mean timestamp?"]),
        (good_log(), ["--amount_column=euros"], ["--amount_column", "euros", "it has customer_id"]),
        (good_log(), ["--exclude=citty"], ["--exclude", "citty", "did you mean city?"]),
        (good_log(), ["--exclude=amount"], ["--amount_column=amount", "two roles"]),
        (good_log(), ["--time_column=amount"], ["--time_column=amount", "two roles"]),
        (
            _with_names(["customer_id", "timestamp", "amount", "amount"]),
            [],
            ["column amount", "once", "rename"],
        ),
        (_with_names(["customer_id", "timestamp", "amount", "Amount"]), [], ["column amount", "more than once"]),
        (good_log(customer_id=[1, None, None, 2, 3]), [], ["--id_column=customer_id", "null in 2 of 5 rows", "drop"]),
        (good_log(customer_id=[1.0] * 5), [], ["--id_column=customer_id", "float64", "integers or text"]),
        (good_log(timestamp=pa.array([START, None, None, None, START])), [], ["--time_column=timestamp", "null in 3"]),
        (good_log(timestamp=["2020-01-01"] * 4 + ["01/02/2020"]), [], ["=timestamp", "1 of 5", "'01/02/2020'", "ISO"]),
        (good_log(timestamp=["infinity"] * 5), [], ["--time_column=timestamp", "5 of 5", "'infinity'"]),
        (good_log(timestamp=range(5)), [], ["--time_column=timestamp", "int64", "expected a timestamp"]),
        (good_log(amount=["1", "2", "3", "4", "five"]), [], ["--amount_column=amount", "'five'", "no number"]),
        (good_log(amount=["1"] * 5), [], ["--amount_column=amount", "string", "convert it"]),
        (good_log(amount=[True] * 5), [], ["--amount_column=amount", "boolean"]),
        (good_log(amount=[1.0, 2.0, 3.0, 4.0, float("nan")]), [], ["--amount_column=amount", "NaN in 1 of 5"]),
        (
            good_log(amount=[1.0, 2.0, 3.0, 4.0, float("-inf")]),
            [],
            ["--amount_column=amount", "or beyond 3.4e38 in 1 of 5"],
        ),
        (good_log(amount=pa.array([1, None, 3, 4, 5])), [], ["--amount_column=amount", "null in 1 of 5"]),
        (good_log(amount=[1.0, 2.0, 3.0, 4.0, -1e39]), [], ["--amount_column=amount", "beyond 3.4e38 in 1 of 5"]),
        (
            good_log(amount=[1.0, 3e38, 3.0, 3e38, 4.0]),
            ["--observation_days=120"],
            ["column amount_sum", "6e+38", "unit"],
        ),
        (
            good_log(size=[1.0, 2.0, 3.0, 4.0, float("inf")]),
            [],
            ["column=size", "or beyond 3.4e38 in 1 of 5"],
        ),
        (good_log(basket=[["a"]] * 5), [], ["column basket", "array", "--exclude=basket"]),
        (good_log(basket=[b"a"] * 5), [], ["column basket", "binary", "--exclude=basket"]),
        (good_log().slice(0, 0), [], ["--transactions", "no rows"]),
        (good_log(), ["--horizons=30,month"], ["--horizons=30,month", "whole numbers"]),
        (good_log(), ["--horizons=30,0"], ["--horizons=0", "from 1 to"]),
        (good_log(), ["--horizons=30,30"], ["--horizons", "twice"]),
        (good_log(), ["--observation_days=0"], ["--observation_days=0", "from 1 to"]),
        (good_log(), ["--observation_days=ten"], ["--observation_days=ten"]),
        (
            good_log(),
            ["--observation_days=402", "--horizons="],
            ["--observation_days=402", "fewer days"],
        ),
        (good_log(), ["--observation_days=380"], ["--horizons=30,90", "too short", "shorter ones"]),
        (good_log(), ["--sub_windows=0"], ["--sub_windows=0", "from 1 to"]),
        (good_log(), ["--as_of=yesterday"], ["--as_of=yesterday", "2020-12-31"]),
        (good_log(), ["--as_of=2019-01-01"], ["--as_of=2019-01-01", "no customer", "2020-01-01", "another date"]),
        (good_log(), ["--as_of=2031-01-01"], ["--as_of=2031-01-01", "after the log", "2021-02-04", "earlier date"]),
        (good_log(), ["--memory_limit=lots"], ["--memory_limit=lots", "4GB"]),
        (good_log(), ["--spark_master=local"], ["--spark_master=local", "--backend=pyspark"]),
        (good_log(), ["--backend=polars"], ["--backend", "polars"]),
        (good_log(), ["--colour=red"], ["colour"]),
        (good_log(), ["log.parquet"], ["log.parquet", "--flag"]),
    ],
)
def test_a_mistake_is_one_line(
    command: Command, tmp_path: Path, log: pa.Table, arguments: list[str], words: list[str]
) -> None:
    transactions = write_log(tmp_path / "log.parquet", log)
    error = fails(command, tmp_path, transactions, f"--output={tmp_path / 'new' / 'o.parquet'}", *arguments)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.parquet", b"", ["log.parquet", "is empty"]),
        ("log.parquet", b"customer_id,timestamp,amount\n1,2020-01-01,1\n", ["log.parquet", "not a Parquet file"]),
        ("log.parquet", b"PAR1" + bytes(100), ["log.parquet", "cannot be read"]),
        ("log.csv", bytes(range(256)), ["log.csv", "neither Parquet nor CSV"]),
        ("log.csv", b"customer_id,timestamp,amount\n", ["log.csv", "no rows"]),
        (
            "log.csv",
            b"customer_id,timestamp,amount\n1,2020-01-01\n",
            ["log.csv line 2: 2 fields, the header has 3"],
        ),
        ("log.csv", b"customer_id,timestamp,amount\n\xff,2020-01-01,1\n", ["log.csv line 2: is not UTF-8"]),
        ("log.csv", b"customer_id;timestamp;amount\n1;2020-01-01;1\n", ["log.csv", "separated by ';'"]),
        ("log.csv", b"customer_id,timestamp,amount\n1,2020-01-01,1 EUR\n", ["--amount_column", "'1 EUR'"]),
        ("log.csv.gz", b"\x1f\x8bnot really", ["log.csv.gz", "cannot be read"]),
    ],
)
def test_an_unreadable_file_is_one_line(
    command: Command, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    error = fails(command, tmp_path, f"--transactions={tmp_path / name}", f"--output={tmp_path / 'o.parquet'}")
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7,2020-01-01", ["2 fields, the header has 3"]),
        ("7,2020-01-01,1,00", ["4 fields, the header has 3"]),
        ('7,"2020-01-01,1', ["a quoted value that begins there is not closed"]),
    ],
)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_a_broken_line_of_a_csv_is_named_by_its_number(
    command: Command, tmp_path: Path, line: str, words: list[str], is_zipped: bool
) -> None:
    """Deep in the file, beyond the first block that is read; empty lines count."""
    lines = ["customer_id,timestamp,amount", '1,"2020-01-01",1', "", *["1,2020-01-01,1"] * 150_000]
    content = "\n".join([*lines, line, *["1,2020-01-01,1"] * 3]).encode()
    file = tmp_path / f"log.csv{'.gz' * is_zipped}"
    file.write_bytes(gzip.compress(content, 1) if is_zipped else content)
    error = fails(command, tmp_path, f"--transactions={file}", f"--output={tmp_path / 'o.parquet'}")
    assert all(word in error for word in [f"{file} line {len(lines) + 1}: ", *words]), error


@pytest.mark.parametrize("quoted_rows", [(150,), (10, 30)], ids=["open to the end", "closed by a later row"])
def test_a_quote_that_swallows_rows_is_refused(command: Command, tmp_path: Path, quoted_rows: tuple[int, ...]) -> None:
    """Arrow would take the rows behind the quote for one value and say nothing."""
    lines = [f"{row % 7},2020-01-{1 + row % 28:02d},1,plain" for row in range(400)]
    for row in quoted_rows:
        lines[row] = lines[row].replace("plain", '"5 inch')
    file = tmp_path / "log.csv"
    file.write_text("\n".join(["customer_id,timestamp,amount,item", *lines]) + "\n")
    error = fails(command, tmp_path, f"--transactions={file}", f"--output={tmp_path / 'o.parquet'}")
    assert f"{file} line {quoted_rows[0] + 2}: a quoted value that begins there is not closed" in error


def test_quoted_line_breaks_are_read(command: Command, tmp_path: Path) -> None:
    """Also where they stand on the edge of a block."""
    lines = [f'{row % 7},2020-{1 + row % 9:02d}-01,1,"two\nlines"' for row in range(60_000)]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(["customer_id,timestamp,amount,item", *lines]) + "\n")
    command(f"--transactions={file}", f"--output={tmp_path / 'o.parquet'}", "--horizons=30")
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 7


@pytest.mark.parametrize(("how", "what"), [("written", "changed"), ("deleted", "vanished")])
def test_a_file_that_changes_while_it_is_read_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    stream = DuckDB.stream
    transactions = write_log(tmp_path / "log.parquet", good_log())

    def change(*arguments: Any) -> pa.RecordBatchReader:
        if how == "written":
            write_log(tmp_path / "log.parquet", good_log())
        else:
            (tmp_path / "log.parquet").rename(tmp_path / "other.parquet")
        return stream(*arguments)

    monkeypatch.setattr(DuckDB, "stream", change)
    error = command(transactions, f"--output={tmp_path / 'o.parquet'}", "--horizons=30", code=2)
    assert error.startswith("error: ")
    assert f"{tmp_path / 'log.parquet'}: {what} while it was read" in error
    assert len(list(tmp_path.iterdir())) == 1, "no output and no scratch"


def test_a_file_that_breaks_while_it_is_read_is_named_as_changed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_log = DuckDB.read_log
    transactions = write_log(tmp_path / "log.parquet", good_log())

    def truncate(*arguments: Any) -> ir.Table:
        (tmp_path / "log.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:1000])
        return read_log(*arguments)

    monkeypatch.setattr(DuckDB, "read_log", truncate)
    error = fails(command, tmp_path, transactions, f"--output={tmp_path / 'o.parquet'}")
    assert re.search(r"changed from \d+ to 1000 bytes while it was read", error)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"amount": ["1"] * 5}, ["column amount", "float64 in", "0.parquet but string in", "2.parquet"]),
        ({"customer_id": list("abcde")}, ["column customer_id", "int32 in", "0.parquet but string in", "2.parquet"]),
        ({"timestamp": ["2020-01-01"] * 5}, ["column timestamp", "0.parquet but string in", "2.parquet", "one type"]),
        ({"city": [True] * 5}, ["column city", "string in", "0.parquet but boolean in", "2.parquet"]),
    ],
)
def test_files_whose_types_clash_are_one_line(
    command: Command, tmp_path: Path, columns: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "log").mkdir()
    for name, log in (("0", good_log()), ("1", good_log()), ("2", good_log(**columns))):
        write_log(tmp_path / "log" / f"{name}.parquet", log)
    error = fails(command, tmp_path, f"--transactions={tmp_path / 'log'}", f"--output={tmp_path / 'o.parquet'}")
    assert all(word in error for word in words), error


def test_a_damaged_page_is_one_line(command: Command, tmp_path: Path) -> None:
    transactions = write_log(tmp_path / "log.parquet", good_log())
    content = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(content[:4] + bytes([255]) * 200 + content[204:])
    assert "log" in fails(command, tmp_path, transactions, f"--output={tmp_path / 'o.parquet'}")


def test_paths_that_cannot_be_used_are_one_line(command: Command, tmp_path: Path) -> None:
    transactions = write_log(tmp_path / "log.parquet", good_log())
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    write_log(tmp_path / "both" / "1.parquet", good_log())
    (tmp_path / "both" / "2.csv").write_text("customer_id\n1\n")
    output = f"--output={tmp_path / 'o.parquet'}"
    assert "does not exist" in fails(command, tmp_path, f"--transactions={tmp_path / 'nothing-*'}", output)
    assert "holds no .parquet" in fails(command, tmp_path, f"--transactions={tmp_path / 'empty'}", output)
    assert "both Parquet and CSV" in fails(command, tmp_path, f"--transactions={tmp_path / 'both'}", output)
    assert "exists already" in fails(command, tmp_path, transactions, f"--output={tmp_path / 'log.parquet'}")
    assert "not empty" in fails(command, tmp_path, transactions, f"--output={tmp_path / 'both'}")
    assert "--transactions" in fails(command, tmp_path, output)
    assert "--output" in fails(command, tmp_path, transactions)


@pytest.mark.parametrize("output", ["o.parquet", "folder"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    transactions = write_log(tmp_path / "log.parquet", good_log())
    monkeypatch.setattr(pq.ParquetWriter, "write_batch", no_space)
    error = fails(command, tmp_path, transactions, f"--output={tmp_path / output}", "--horizons=30")
    assert "no space left" in error


def test_too_little_memory_is_one_line(command: Command, tmp_path: Path) -> None:
    rows = 200_000
    log = pa.table({"customer_id": range(rows), "timestamp": [START] * rows, "amount": [1.0] * rows})
    arguments = [write_log(tmp_path / "log.parquet", log), f"--output={tmp_path / 'o.parquet'}", "--memory_limit=1MB"]
    assert "--memory_limit" in fails(command, tmp_path, *arguments, "--observation_days=1")


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
