"""mean-jax-features and the mistakes of its users: one line for each, and nothing written."""

import errno
import gzip
from pathlib import Path
import re
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.features.duckdb_backend import DuckDB
from tests.features_command import START, Command, command, fails, good_log, write_log

__all__ = ["command"]  # a fixture

# Ibis calls a method that DuckDB 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


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
        (_with_names(["customer_id", "timestamp", "amount", ""]), [], ["column 4 of", "has no name", "name it"]),
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
        ("log.csv", b",customer_id,timestamp,amount\n0,1,2020-01-01,1\n", ["column 1 of", "log.csv has no name"]),
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
