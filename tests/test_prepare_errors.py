"""Bad input of mean-jax-prepare: one error line that names the place and the mend, exit code 2, nothing written."""

import errno
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.prepare import main
from mean_jax.data import passes
from mean_jax.data.transform import numeric_values
from mean_jax.errors import UserError
from tests.conftest import LABELS
from tests.test_prepare import garbled, replaced


@pytest.fixture
def refused(call, tmp_path):
    """Returns a function that expects the command to refuse an input with a line, and to leave nothing."""

    def check(table: pa.Table | Path | str, message: str, *flags: str) -> None:
        path = table
        if isinstance(table, pa.Table):
            path = tmp_path / "table.parquet"
            pq.write_table(table, path)
        output = tmp_path / "store"
        before = sorted(tmp_path.rglob("*"))
        labels = f"--label_columns={','.join(LABELS)}"
        code, stderr = call(main, f"--input={path}", f"--output={output}", labels, *flags)
        assert code == 2
        assert stderr.count("\n") == 1
        assert re.match(f"error: .*{message}", stderr), stderr
        assert sorted(tmp_path.rglob("*")) == before

    return check


def with_value(table: pa.Table, column: str, row: int, value) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return replaced(table, **{column: pa.array(values, table[column].type)})


def test_input_that_is_no_table(refused, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("customer_id,spend,cltv_30,cltv_365\n")
    (tmp_path / "text.parquet").write_text("text")
    refused(tmp_path / "no.parquet", r"--input: .*no\.parquet does not exist; give a Parquet or CSV file")
    refused(tmp_path / "empty.csv", r"empty\.csv is empty; remove it or give a table with rows")
    refused(tmp_path / "header.csv", r"header\.csv: has no rows")
    refused(tmp_path / "text.parquet", r"text\.parquet is not a Parquet file")


def test_a_column_without_a_name(refused, table, tmp_path):
    """As of the row numbers that pandas writes unless it is told not to."""
    numbered = table.append_column("", pa.array(range(len(table))))
    refused(numbered, rf"table\.parquet: column {len(numbered.column_names)} has no name; name it or write")
    pa_csv.write_csv(numbered, tmp_path / "table.csv")
    refused(tmp_path / "table.csv", rf"table\.csv: column {len(numbered.column_names)} has no name; name it or write")


def test_a_table_without_rows(refused, table):
    refused(table[:0], r"--input: .*table\.parquet has no rows")


def test_columns_that_are_not_there(refused, table):
    renamed = table.rename_columns({"customer_id": "costumer_id"})
    refused(renamed, r"--id_column: column customer_id is not in .*; did you mean costumer_id\?")
    refused(table.drop_columns(["cltv_365"]), r"--label_columns: column cltv_365 is not in .*; did you mean cltv_30\?")
    refused(table, r"--exclude: column agee is not in .*; did you mean age\?", "--exclude=agee")
    refused(table, r"--split_column: column part is not in .*; it has customer_id", "--split_column=part")


def test_a_column_name_twice(refused, table):
    twice = pa.Table.from_arrays([*table.columns, table["spend"]], [*table.column_names, "customer_id"])
    refused(twice, r"table\.parquet: column customer_id stands there 2 times; rename one")


def test_roles_that_exclude_each_other(refused, table):
    refused(table, r"column cltv_30 has two roles", "--exclude=cltv_30")
    refused(table, r"column cltv_30 has two roles", "--label_columns=cltv_30,cltv_30")
    refused(table, r"--label_columns: is empty; name at least one", "--label_columns=")
    refused(table, r"no feature column is left", "--exclude=spend,orders,age,is_member,channel,city")


def test_ids(refused, table):
    refused(
        with_value(table, "customer_id", 700, "c00003"),
        r"--input: customer_id 'c00003' stands in .*table\.parquet row 4 and in .*table\.parquet row 701; one row per",
    )
    refused(
        with_value(table, "customer_id", 6, None),
        r"table\.parquet row 7: column customer_id is null; every row needs an id",
    )
    refused(
        replaced(table, customer_id=np.arange(1000.0)),
        r"--id_column=customer_id: is of type double; ids are integers or text",
    )


def test_an_id_twice_where_splits_differ_or_no_label_is_known(refused, table):
    """Neither the shards nor the labelled rows alone would show these."""
    twice = with_value(table, "customer_id", 1, "c00000")
    part = pa.array(np.array(["train", "validation", "test"])[np.arange(1000) % 3])
    refused(replaced(twice, part=part), r"--input: customer_id 'c00000' stands in", "--split_column=part")
    unlabelled = with_value(with_value(twice, "cltv_30", 1, None), "cltv_365", 1, None)
    refused(unlabelled, r"--input: customer_id 'c00000' stands in")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            -1.5,
            r"row 3: label cltv_30 is negative \(-1\.5\); labels are amounts >= 0, or null where the horizon is not",
        ),
        (float("nan"), r"row 3: label cltv_30 is NaN \(nan\); labels are amounts >= 0"),
        (float("inf"), r"row 3: column cltv_30 \(label\) is inf; expected a finite number"),
        (1e39, r"row 3: column cltv_30 \(label\) is 1e\+39; expected a finite number below 3\.4e38"),
    ],
)
def test_a_label_that_is_no_amount(refused, table, value, message):
    refused(with_value(table, "cltv_30", 2, value), rf"table\.parquet {message}")


def test_labels_that_teach_nothing(refused, table):
    refused(
        replaced(table, cltv_365=np.zeros(1000)),
        r"label cltv_365 is never above zero in the training split; leave it out with --exclude=cltv_365 and, "
        r"if given, take it out of --label_columns\n",
    )
    refused(
        replaced(table, cltv_365=pa.nulls(1000, pa.float64())),
        r"label cltv_365 has no value in the training split; leave it out with --exclude=cltv_365 and",
    )
    refused(replaced(table, cltv_30=table["city"]), r"--label_columns: cltv_30 is of type string; a label is an amount")


def test_a_useless_label_may_be_left_out(call, table, tmp_path):
    pq.write_table(replaced(table, cltv_365=pa.nulls(1000, pa.float64())), tmp_path / "table.parquet")
    arguments = [f"--input={tmp_path / 'table.parquet'}", f"--output={tmp_path / 'store'}"]
    code, stderr = call(main, *arguments)
    assert code == 2 and "leave it out with --exclude=cltv_365" in stderr
    assert call(main, *arguments, "--exclude=cltv_365")[0] == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"age": pa.nulls(1000, pa.float64())},
            r"column age without any value in the training split; leave out with --exclude=age",
        ),
        ({"age": pa.nulls(1000)}, r"table\.parquet: column age has no value at all; .*--exclude=age"),
        ({"city": pa.nulls(1000, pa.string())}, r"column city without any value .*--exclude=city"),
        (
            {"age": np.ones(1000), "channel": ["web"] * 1000, "city": pa.nulls(1000, pa.string())},
            r"column city without any value and column age, channel constant .*; leave out with --exclude=city,age",
        ),
        (
            {"basket": [[1, 2]] * 1000},
            r"table\.parquet: column basket is of type list<.*>; features are numbers, booleans or text, leave it out",
        ),
        (
            {"when": pa.array([0] * 1000, pa.timestamp("s"))},
            r"column when is of type timestamp\[ms\]; .*--exclude=when",
        ),
        ({"age": np.append(np.ones(999), np.inf)}, r"table\.parquet row 1000: column age is inf; expected a finite"),
    ],
)
def test_features_that_cannot_be_used(refused, table, columns, message):
    refused(replaced(table, **columns), message)


@pytest.mark.parametrize("column", ["customer_id", "channel", "part"])
@pytest.mark.parametrize("kind", ["plain", "dictionary"])
def test_text_that_is_not_utf8(refused, table, monkeypatch, kind, column):
    monkeypatch.setattr(passes, "ROWS_PER_BATCH", 100)  # which share a dictionary
    row = 702
    if column == "part":
        parts = np.array(["train", "validation", "test"])[np.arange(len(table)) % 3]
        table = replaced(table, part=pa.array(parts))
    message = rf".*table.parquet row {row + 1}: column {column} is b'caf\\xe9', not UTF-8; write text as UTF-8\n"
    refused(garbled(table, column, row, kind), message, *(["--split_column=part"] if column == "part" else []))


def test_text_that_is_not_utf8_and_that_no_row_has(refused, table):
    channel = pa.array(table["channel"].to_pylist()).dictionary_encode()
    values = [value.encode() for value in channel.dictionary.to_pylist()]
    listed = pa.array([*values, b"caf\xe9"], pa.binary()).view(pa.string())
    column = pa.DictionaryArray.from_arrays(channel.indices, listed)
    message = r".*table.parquet: the dictionary of a text column holds b'caf\\xe9', which is not UTF-8 and which no row"
    refused(replaced(table, channel=column), message)


def test_numbers_whose_text_is_not_utf8():
    column = pa.array([b"1", b"2\xe9"], pa.binary()).view(pa.string())
    with pytest.raises(UserError, match=r"row 1: column spend is b'2\\xe9', not UTF-8"):
        numeric_values(column, "spend", lambda row: f"row {row}")


def test_text_in_a_numeric_csv_column(call, tmp_path):
    rows = [f"{index},{index * 0.5},{index % 3},1" for index in range(200_000)]
    rows[150_000] = "150000,abc,1,1"
    (tmp_path / "a.csv").write_text("\n".join(["customer_id,spend,cltv_30,cltv_365", *rows]))
    code, stderr = call(main, f"--input={tmp_path / 'a.csv'}", f"--output={tmp_path / 'store'}")
    assert code == 2
    warning, error = stderr.splitlines()
    assert re.search(r"a\.csv row 150001: column spend is 'abc': the numbers in it are read as text", warning)
    assert re.match(r"error: column spend has no value that stands in 5 training rows; leave out with", error)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("0.8,0.2", r"--split=0\.8,0\.2: expected three shares for training, validation and test that sum to 1"),
        ("0.7,0.2,0.2", r"--split=0\.7,0\.2,0\.2: expected three shares"),
        ("1.2,-0.1,-0.1", r"--split=1\.2,-0\.1,-0\.1: expected three shares"),
        ("nan,0.5,0.5", r"--split=nan,0\.5,0\.5: expected three shares"),
        ("a,b,c", r"--split=a,b,c: expected numbers such as 0\.7,0\.1,0\.2"),
        (
            "0.5,0,0.5",
            r"table\.parquet: the validation split has no rows with a known label; change --split or the numb",
        ),
    ],
)
def test_a_wrong_split(refused, table, split, message):
    refused(table, message, f"--split={split}")


def test_a_wrong_split_column(refused, table):
    part = np.array(["train", "validation", "test"])[np.arange(1000) % 3]
    refused(
        replaced(table, part=np.where(part == "test", "hold-out", part)),
        r"table\.parquet row 3: column part is 'hold-out'; expected one of train, validation, test",
        "--split_column=part",
    )
    refused(
        replaced(table, part=np.where(part == "test", "train", part)),
        r"table\.parquet: the test split has no rows with a known label; change column part",
        "--split_column=part",
    )


def test_an_output_that_exists(call, table_path, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    for output, message in ((tmp_path, "exists and is not empty"), (tmp_path / "mine.txt", "exists already")):
        code, stderr = call(main, f"--input={table_path}", f"--output={output}", f"--label_columns={','.join(LABELS)}")
        assert code == 2
        assert re.fullmatch(rf"error: --output: .*{message}; remove it or choose another --output\n", stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("writer", ["prepare.write_json", "sort.file_sha256", "passes.Spiller.append", "spill.write"])
def test_no_space_left(refused, table, monkeypatch, writer):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "train-00000.bin")

    monkeypatch.setattr(f"mean_jax.data.{writer}", fail)
    refused(table, r"no space left on the disk while writing train-00000\.bin; free some or choose another folder")


def test_a_disk_that_refuses_at_the_end_names_the_shard(refused, table, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mean_jax.data.passes.sync", fail)
    refused(table, r"no space left on the disk while writing .*train-00000\.bin; free some or choose another folder")


def test_flags(call, tmp_path):
    cases = {
        ("--inptu=x",): r"Unknown command line flag 'inptu'\. Did you mean: input \?",
        (): r".*--input must have a value.*--output must have a value.*",
        ("--input=a", "--output=b", "extra"): r"unexpected argument 'extra'; every option is a --flag, see --help",
        ("--input=a", "--output=b", "--split_seed=-1"): r"flag --split_seed=-1: .*",
        ("--input=a", "--output=b", "--split_seed=x"): r"flag --split_seed=x: .*",
    }
    for arguments, message in cases.items():
        code, stderr = call(main, *arguments)
        assert code == 2
        assert re.fullmatch(rf"error: {message}\n", stderr), stderr


def test_help_explains_every_flag(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mean-jax-prepare", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.startswith("mean-jax-prepare: customer table -> training store.")
    flags = ("input", "output", "id_column", "label_columns", "exclude", "split", "split_column", "min_category_count")
    flags += ("max_categories", "numeric_type", "num_workers", "scratch", "[no]append")
    for flag in flags:
        assert f"--{flag}: " in text
    assert "(default: '0.7,0.1,0.2')" in text


def test_a_terminated_prepare_leaves_nothing(table_path, tmp_path):
    """SIGTERM comes while the shards are written."""
    program = (
        "import os, signal\n"
        "from mean_jax.cli import prepare as command\n"
        "from mean_jax.data import prepare as lib\n"
        "lib.write_json = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "command.main()\n"
    )
    arguments = [f"--input={table_path}", f"--output={tmp_path / 'store'}", f"--label_columns={','.join(LABELS)}"]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], env=os.environ, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_label_unknown_in_the_whole_validation_split(refused, table):
    part = np.array(["train", "validation", "test"])[np.arange(1000) % 3]
    label = table["cltv_365"].to_numpy().copy()
    label[part == "validation"] = np.nan
    unknown = replaced(table, part=pa.array(part), cltv_365=pa.array(label, from_pandas=True))
    refused(unknown, r"label cltv_365 has no value in the validation split", "--split_column=part")


def test_a_label_that_is_zero_in_the_whole_validation_split(refused, table):
    part = np.array(["train", "validation", "test"])[np.arange(1000) % 3]
    label = np.where(part == "validation", 0.0, table["cltv_30"].to_numpy())
    message = r"label cltv_30 is never above zero in the validation split; leave it out with --exclude=cltv_30 and"
    refused(replaced(table, part=part, cltv_30=label), message, "--split_column=part")


def test_another_horizon_is_no_feature(refused, table):
    refused(
        table, r"column cltv_365 would be a feature .*; leave out with --exclude=cltv_365 or", "--label_columns=cltv_30"
    )


def test_no_label_by_default(call, table, tmp_path):
    pq.write_table(table.drop_columns(list(LABELS)), tmp_path / "table.parquet")
    code, stderr = call(main, f"--input={tmp_path / 'table.parquet'}", f"--output={tmp_path / 'store'}")
    assert code == 2
    assert stderr == "error: --label_columns: the table has no column cltv_<days>; name the labels with this flag\n"


@pytest.mark.parametrize(
    ("labels", "what"),
    [("cltv_30,cltv_365,30", "horizon 30"), ("cltv_30,cltv_365,cltv_30_raw", "column of the scores cltv_30_raw")],
)
def test_labels_whose_names_collide(refused, table, labels, what):
    more = replaced(table, **{labels.split(",")[-1]: table["cltv_30"]})
    refused(more, rf"--label_columns={labels}: two would be the {what}; rename", f"--label_columns={labels}")


def test_a_label_must_not_take_the_name_of_the_id_column(refused, table):
    more = replaced(table, cltv_30_raw=table["customer_id"])
    refused(more, "two would be the column of the scores cltv_30_raw; rename", "--id_column=cltv_30_raw")


def test_a_text_column_of_rare_values_only(refused, table):
    emails = [f"{index}@example.com" for index in range(1000)]
    refused(
        replaced(table, email=emails),
        r"column email has no value that stands in 5 training rows; leave out with --exclude=email or lower "
        r"--min_category_count=5",
    )


def test_the_current_folder_as_output(call, table_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in ("", "."):
        code, stderr = call(main, f"--input={table_path}", f"--output={output}")
        assert code == 2
        assert stderr == "error: --output: is empty or the current folder; name a folder or file to make\n"
    assert list(tmp_path.iterdir()) == []
