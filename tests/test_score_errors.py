"""Input that mean-jax-score must answer for: documented fallbacks, and one error line with exit code 2 else."""

import json
from pathlib import Path
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.score import main
from tests.test_prepare import garbled, replaced


@pytest.fixture(scope="module")
def few(table):
    """Forty customers as they come to scoring, without labels."""
    return table[:40].drop_columns(["cltv_30", "cltv_365"])


@pytest.fixture
def scores_of(run_path, tmp_path, call):
    """Returns a function from a table or path to (exit code, standard error, scores or None)."""

    def run(table: pa.Table | Path, workdir=run_path):
        path, output = table, tmp_path / "scores.parquet"
        if isinstance(table, pa.Table):
            path = tmp_path / "input.parquet"
            pq.write_table(table, path)
        output.unlink(missing_ok=True)
        code, stderr = call(main, f"--workdir={workdir}", f"--input={path}", f"--output={output}")
        return code, stderr, pq.read_table(output) if output.exists() else None

    return run


@pytest.fixture
def refused(scores_of, tmp_path):
    """Returns a function that expects an error line for an input or a run, and nothing written."""

    def check(message: str, table: pa.Table | Path, **options) -> None:
        code, stderr, scores = scores_of(table, **options)
        errors = [line for line in stderr.splitlines() if "ignoring" not in line]
        assert code == 2
        assert len(errors) == 1
        assert re.match(f"error: .*{message}", errors[0]), stderr
        assert scores is None
        assert not list(tmp_path.glob(".*"))

    return check


@pytest.fixture
def same_scores(scores_of):
    """Returns a function that expects two inputs to get the same scores."""

    def check(table: pa.Table | Path, expected: pa.Table | Path) -> None:
        code, stderr, scores = scores_of(table)
        assert code == 0, stderr
        assert scores.equals(scores_of(expected)[2])

    return check


# Documented fallbacks.


def test_further_columns_are_ignored(few, scores_of, same_scores):
    wider = replaced(few, extra=[[1]] * 40, cltv_30=["not looked at"] * 40).select(
        ["extra", "city", "cltv_30", *[name for name in few.column_names if name != "city"]]
    )
    same_scores(wider, few)
    assert "ignoring 1 columns that the model does not use: extra" in scores_of(wider)[1]


def test_categories_that_training_never_saw_are_one(few, same_scores):
    same_scores(replaced(few, city=["never seen"] * 40), replaced(few, city=["nor this"] * 40))


def test_an_unseen_category_is_not_a_missing_one(few, scores_of):
    unseen = scores_of(replaced(few, city=["never seen"] * 40))[2]
    missing = scores_of(replaced(few, city=pa.nulls(40, pa.string())))[2]
    assert not unseen.equals(missing)


def test_missing_values(few, same_scores, scores_of):
    nothing = {name: pa.nulls(40) for name in few.column_names if name != "customer_id"}
    code, _, scores = scores_of(replaced(few, **nothing))
    assert code == 0
    assert len(set(scores["cltv_30_raw"].to_pylist())) == 1
    same_scores(replaced(few, age=np.full(40, np.nan)), replaced(few, age=pa.nulls(40, pa.float64())))


def test_numbers_of_other_types(few, same_scores):
    whole = replaced(few, orders=few["orders"].cast(pa.int8()), is_member=few["is_member"].cast(pa.int64()))
    same_scores(whole, few)
    texts = replaced(few, age=few["age"].cast(pa.string()), is_member=few["is_member"].cast(pa.string()))
    same_scores(texts, few)
    same_scores(replaced(few, orders=few["orders"].combine_chunks().dictionary_encode()), few)
    padded = pa.array([f" {value} " for value in few["orders"].to_pylist()])
    same_scores(replaced(few, orders=padded), few)


def test_booleans_and_numbers_in_csv(few, same_scores, tmp_path):
    pa_csv.write_csv(replaced(few, channel=few["channel"].cast(pa.string())), tmp_path / "a.csv")
    same_scores(tmp_path / "a.csv", few)


def test_a_category_may_come_as_a_number(few, same_scores):
    same_scores(replaced(few, city=np.arange(40)), replaced(few, city=[str(value) for value in range(40)]))


# Refused tables.


def test_a_missing_column(few, refused):
    renamed = few.rename_columns({"spend": "spending"})
    refused(
        r"--input: column spend, which the model needs, is not in .*input\.parquet; did you mean spending\?", renamed
    )
    refused(r"column customer_id, .* is not in .*input\.parquet", few.drop_columns(["customer_id"]))


def test_text_that_is_no_number(few, refused, tmp_path):
    texts = few["age"].cast(pa.string()).to_pylist()
    texts[11] = "abc"
    refused(r"input\.parquet row 12: column age is 'abc'; expected a number", replaced(few, age=texts))
    (tmp_path / "a.csv").write_text(
        "customer_id,spend,orders,age,is_member,channel,city\na,1,2,3,true,web,a\nb,1,two,3,true,web,a\n"
    )
    refused(r"a\.csv row 2: column orders is 'two'; expected a number", tmp_path / "a.csv")


def test_values_and_types_that_cannot_be_read(few, refused):
    refused(
        r"input\.parquet row 40: column spend is inf; expected a finite number",
        replaced(few, spend=np.append(np.ones(39), np.inf)),
    )
    refused(r"column spend is of type list<.*>; expected numbers", replaced(few, spend=[[1.0]] * 40))
    refused(r"column city is of type list<.*>; expected text", replaced(few, city=[["a"]] * 40))


@pytest.mark.parametrize("column", ["customer_id", "city"])
@pytest.mark.parametrize("kind", ["plain", "dictionary"])
def test_text_that_is_not_utf8(few, refused, kind, column):
    message = rf"input\.parquet row 18: column {column} is b'caf\\xe9', not UTF-8; write text as UTF-8"
    refused(message, garbled(few, column, 17, kind))


def test_ids(few, refused):
    ids = few["customer_id"].to_pylist()
    refused(
        r"--input: customer_id 'c00000' stands in .*input\.parquet row 1 and in .*input\.parquet row 3; one row per",
        replaced(few, customer_id=[*ids[:2], ids[0], *ids[3:]]),
    )
    refused(
        r"input\.parquet row 3: column customer_id is null; every row needs an id",
        replaced(few, customer_id=[*ids[:2], None, *ids[3:]]),
    )
    refused(
        r"input\.parquet row 1: column customer_id is of type list<.*>; ids are integers or text",
        replaced(few, customer_id=[[name] for name in ids]),
    )


def test_no_rows_and_no_table(few, refused, tmp_path):
    refused(r"--input: .*input\.parquet has no rows", few[:0])
    refused(r"--input: .*no\.parquet does not exist", tmp_path / "no.parquet")


# Refused runs and outputs.


@pytest.fixture
def run_copy(run_path, tmp_path) -> Path:
    return Path(shutil.copytree(run_path, tmp_path / "run"))


def test_a_run_can_be_copied(few, scores_of, run_copy):
    assert scores_of(few, workdir=run_copy)[2].equals(scores_of(few)[2])


def test_no_run(few, refused, tmp_path):
    refused(r"--workdir: run folder .*nowhere does not exist; train with mean-jax-train first", few, workdir="nowhere")
    refused(r"--workdir: .* is not a run folder, it has no config\.json", few, workdir=tmp_path)


def test_an_unfinished_run(few, refused, run_copy):
    (run_copy / "run.json").unlink()
    refused(r"--workdir: the run in .* is not finished; run the same mean-jax-train command", few, workdir=run_copy)


JSON_FILES = ("config.json", "schema.json", "transform.json", "calibration.json", "run.json", "checkpoints/best-*.json")


def one_file(run: Path, pattern: str) -> Path:
    return next(path for path in sorted(run.glob(pattern)) if path.is_file())


@pytest.mark.parametrize("pattern", JSON_FILES)
def test_a_run_of_another_version(few, refused, run_copy, pattern):
    path = one_file(run_copy, pattern)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    refused(rf"{path.name}: format version 99, this program reads version \d", few, workdir=run_copy)


@pytest.mark.parametrize("pattern", JSON_FILES)
def test_a_json_file_of_the_run_that_is_damaged(few, refused, run_copy, pattern):
    path = one_file(run_copy, pattern)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(rf"{path.name}: damaged", few, workdir=run_copy)
    path.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    refused(rf"{path.name}: (damaged|checksum does not match)", few, workdir=run_copy)
    path.unlink()
    refused(rf"({path.name}: missing|it has no config|is not finished)", few, workdir=run_copy)


def test_a_checkpoint_file_that_is_damaged(few, refused, run_copy):
    steps = [path for path in (run_copy / "checkpoints" / "best").iterdir() if path.is_dir()]
    best = json.loads((run_copy / "run.json").read_text())["best"]
    root = next(path for path in steps if path.name == str(best))
    files = sorted(
        (path for path in root.rglob("*") if path.is_file() and path.stat().st_size), key=lambda p: p.stat().st_size
    )
    for path in (files[0], files[-1]):
        content = path.read_bytes()
        for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(changed)
            refused(rf"{re.escape(path.name)}: checksum does not match", few, workdir=run_copy)
        path.unlink()
        refused(rf"{re.escape(path.name)}: missing from the checkpoint", few, workdir=run_copy)
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["scores", "scores.parquet"])
def test_an_output_that_exists(few, run_path, tmp_path, call, name):
    pq.write_table(few, tmp_path / "input.parquet")
    arguments = (f"--workdir={run_path}", f"--input={tmp_path / 'input.parquet'}", f"--output={tmp_path / name}")
    assert call(main, *arguments)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, stderr = call(main, *arguments)
    assert code == 2
    assert re.fullmatch(r"error: --output: .* exists .*; remove it or choose another --output\n", stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_space_left(few, refused, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "scores.parquet")

    monkeypatch.setattr("mean_jax.scoring.score.pq.ParquetWriter.write_batch", fail)
    refused(r"no space left on the disk while writing scores\.parquet; free some or choose another folder", few)


def test_a_folder_in_the_place_of_the_output_file(few, run_path, tmp_path, call):
    pq.write_table(few, tmp_path / "input.parquet")
    (tmp_path / "x.parquet").mkdir()
    arguments = (f"--workdir={run_path}", f"--input={tmp_path / 'input.parquet'}", f"--output={tmp_path / 'x.parquet'}")
    code, stderr = call(main, *arguments)
    assert code == 2
    assert re.fullmatch(r"error: --output: .*x\.parquet is a folder, and a name that ends in .*\n", stderr)
