"""mean-jax-score: parts, order, resumption, and the same numbers however the work is divided."""

import json
from pathlib import Path
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.score import main
from mean_jax.data import ids as ids_lib
from mean_jax.data.tables import ROWS_PER_BATCH
from mean_jax.errors import UserError
from mean_jax.fileio import write_json
from mean_jax.scoring.predictor import Predictor
from mean_jax.scoring.score import score


def read_scores(path: Path) -> pa.Table:
    files = [path] if path.is_file() else sorted(path.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def check_equal(scores: pa.Table, expected: pa.Table) -> None:
    """Equal up to the rounding of matrix products over batches of another size."""
    assert scores.schema.equals(expected.schema)
    for name in expected.column_names:
        got, wanted = scores[name].combine_chunks(), expected[name].combine_chunks()
        if pa.types.is_list(wanted.type):
            got, wanted = got.flatten(), wanted.flatten()
        if pa.types.is_floating(wanted.type):
            np.testing.assert_allclose(got.to_numpy(), wanted.to_numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            assert got.equals(wanted), name


@pytest.fixture(scope="module")
def output(run_path, table_path, tmp_path_factory) -> Path:
    """The folder of a job of four parts."""
    folder = tmp_path_factory.mktemp("scores") / "scores"
    assert score(str(run_path), str(table_path), folder, rows_per_part=300) == 1000
    return folder


@pytest.fixture(scope="module")
def expected(output) -> pa.Table:
    return read_scores(output)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_parts(output):
    assert names_in(output) == ["_SUCCESS", *(f"part-0000{part}.parquet" for part in range(4))]
    assert [pq.read_metadata(path).num_rows for path in sorted(output.glob("part-*"))] == [300, 300, 300, 100]


def test_ids_are_complete_and_in_order(expected, table):
    assert expected["customer_id"].equals(table["customer_id"])


def test_columns(expected):
    columns = {"customer_id": pa.string()}
    for label in ("cltv_30", "cltv_365"):
        columns |= {label: pa.float64(), f"{label}_raw": pa.float64(), f"{label}_percentile": pa.float64()}
        columns[f"{label}_buckets"] = pa.list_(pa.float32())
    assert dict(zip(expected.schema.names, expected.schema.types, strict=True)) == columns


def test_values(expected):
    for label in ("cltv_30", "cltv_365"):
        calibrated, raw = expected[label].to_numpy(), expected[f"{label}_raw"].to_numpy()
        percentile = expected[f"{label}_percentile"].to_numpy()
        assert np.isfinite(calibrated).all()
        assert calibrated.min() >= 0
        order = np.argsort(raw)
        assert (np.diff(calibrated[order]) >= 0).all()
        assert (np.diff(percentile[order]) >= 0).all()
        assert 0 <= percentile.min() < 5 < 95 < percentile.max() <= 100
        buckets = np.stack(expected[f"{label}_buckets"].to_numpy())
        assert buckets.shape == (1000, 4)
        np.testing.assert_allclose(buckets.sum(axis=1), 1.0, rtol=1e-5)


def test_success_names_rows_and_run(output, run_path):
    content = json.loads((output / "_SUCCESS").read_text())
    assert (content["format"], content["rows"]) == ("mean-jax scores", 1000)
    assert content["run"] == json.loads((run_path / "run.json").read_text())["identity"]
    assert [(part["file"], part["rows"]) for part in content["parts"]] == [
        ("part-00000.parquet", 300),
        ("part-00001.parquet", 300),
        ("part-00002.parquet", 300),
        ("part-00003.parquet", 100),
    ]


@pytest.mark.parametrize("rows_per_part", [1000, 5000, 137])
def test_the_size_of_parts_does_not_matter(run_path, table_path, tmp_path, expected, rows_per_part):
    score(str(run_path), str(table_path), tmp_path / "scores", rows_per_part)
    check_equal(read_scores(tmp_path / "scores"), expected)


def test_one_file(run_path, table_path, tmp_path, expected, call):
    path = tmp_path / "scores.parquet"
    code, _ = call(main, f"--workdir={run_path}", f"--input={table_path}", f"--output={path}")
    assert code == 0
    assert names_in(tmp_path) == ["scores.parquet"]
    check_equal(read_scores(path), expected)


def test_files_of_the_input_do_not_matter(run_path, table, tmp_path, expected):
    parts = tmp_path / "parts"
    parts.mkdir()
    for index, (start, stop) in enumerate([(0, 0), (0, 400), (400, 401), (401, 1000)]):
        pq.write_table(table[start:stop], parts / f"{index}.parquet", row_group_size=150)
    score(str(run_path), str(parts), tmp_path / "scores", rows_per_part=300)
    score(str(run_path), str(parts), tmp_path / "scores.parquet")
    check_equal(read_scores(tmp_path / "scores"), expected)
    check_equal(read_scores(tmp_path / "scores.parquet"), expected)


def test_csv_gives_the_same_scores(run_path, table, tmp_path, expected):
    plain = table.set_column(table.column_names.index("channel"), "channel", table["channel"].cast(pa.string()))
    pa_csv.write_csv(plain, tmp_path / "table.csv")
    score(str(run_path), str(tmp_path / "table.csv"), tmp_path / "scores")
    check_equal(read_scores(tmp_path / "scores"), expected)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(np.arange(1000)),
        pa.array(np.arange(1000, dtype=np.uint8).astype(np.uint64) + np.arange(1000, dtype=np.uint64) * 256),
        pa.array([f"x{index}" for index in range(1000)], pa.large_string()),
        pa.array([f"x{index}" for index in range(1000)]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_keep_their_type(run_path, table, tmp_path, expected, ids):
    pq.write_table(table.set_column(0, "customer_id", ids), tmp_path / "table.parquet")
    score(str(run_path), str(tmp_path / "table.parquet"), tmp_path / "scores", rows_per_part=300)
    scores = read_scores(tmp_path / "scores")
    assert scores["customer_id"].type == ids.type
    assert scores["customer_id"].to_pylist() == ids.to_pylist()
    check_equal(scores.drop_columns("customer_id"), expected.drop_columns("customer_id"))


@pytest.fixture
def interrupted(run_path, table_path, tmp_path, monkeypatch):
    """The folder of a job that was stopped in its third part; afterwards every scored block is counted."""
    folder = tmp_path / "scores"
    scored: list[int] = []
    original = Predictor.score

    def stop_at_third(self, batch, place):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(batch.num_rows)
        return original(self, batch, place)

    def count(self, batch, place):
        scored.append(batch.num_rows)
        return original(self, batch, place)

    monkeypatch.setattr(Predictor, "score", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        score(str(run_path), str(table_path), folder, rows_per_part=300)
    scored.clear()
    monkeypatch.setattr(Predictor, "score", count)
    return folder, scored


def test_an_interrupted_job_leaves_whole_parts_only(interrupted):
    folder, _ = interrupted
    assert names_in(folder) == ["_progress.json", "part-00000.parquet", "part-00001.parquet"]


def test_a_second_call_goes_on(interrupted, run_path, table_path, output):
    folder, scored = interrupted
    (folder / ".part-00002.parquet.0123456789ab.tmp").write_text("half")  # as a killed process leaves it
    assert score(str(run_path), str(table_path), folder, rows_per_part=300) == 1000
    assert scored == [300, 100]
    assert names_in(folder) == names_in(output)
    for name in names_in(output):
        assert (folder / name).read_bytes() == (output / name).read_bytes(), name


def test_a_call_after_the_last_part_only_finishes(interrupted, run_path, table_path, monkeypatch):
    folder, scored = interrupted

    def stop_at_success(path, *arguments):
        if path.name == "_SUCCESS":
            raise KeyboardInterrupt
        write_json(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mean_jax.scoring.score.write_json", stop_at_success)
        score(str(run_path), str(table_path), folder, rows_per_part=300)
    assert "part-00003.parquet" in names_in(folder)
    scored.clear()
    assert score(str(run_path), str(table_path), folder, rows_per_part=300) == 1000
    assert scored == []
    assert "_SUCCESS" in names_in(folder)


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_a_harmed_part_is_scored_again(interrupted, run_path, table_path, output, harm):
    folder, scored = interrupted
    part = folder / "part-00001.parquet"
    if harm == "altered":
        part.write_bytes(part.read_bytes()[:-1] + b"X")
    else:
        part.unlink()
    score(str(run_path), str(table_path), folder, rows_per_part=300)
    assert scored == [300, 300, 100]
    assert part.read_bytes() == (output / part.name).read_bytes()


def test_a_job_does_not_go_on_with_other_work(interrupted, run_path, table, table_path, tmp_path):
    folder, scored = interrupted
    pq.write_table(table[:900], tmp_path / "other.parquet")
    for path, rows_per_part in ((table_path, 200), (tmp_path / "other.parquet", 300)):
        with pytest.raises(UserError, match=r"--output: .* holds unfinished scores of another run, input or part size"):
            score(str(run_path), str(path), folder, rows_per_part)
    assert scored == []
    assert names_in(folder) == ["_progress.json", "part-00000.parquet", "part-00001.parquet"]


@pytest.mark.parametrize("name", ["scores", "scores.parquet"])
def test_nothing_is_left_when_the_first_part_fails(run_path, table_path, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Predictor, "score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(str(run_path), str(table_path), tmp_path / name)
    assert names_in(tmp_path) == []


def test_memory_does_not_grow_with_the_rows(run_path, table, tmp_path, monkeypatch):
    """The peaks of what NumPy and Arrow allocate are the same for four times the rows."""
    original = Predictor.score
    arrow_bytes: list[int] = []

    def observe(self, batch, place):
        arrow_bytes.append(pa.total_allocated_bytes())
        return original(self, batch, place)

    monkeypatch.setattr(Predictor, "score", observe)
    monkeypatch.setattr(ids_lib, "_HASHES_PER_PASS", 10_000)
    monkeypatch.setattr(ids_lib, "_READ_BYTES", 80_000)

    def peak_bytes(name: str, num_blocks: int) -> int:
        ids = np.arange(num_blocks * ROWS_PER_BATCH)
        rows = table.take(pa.array(ids % len(table))).set_column(0, "customer_id", pa.array(ids))
        pq.write_table(rows, tmp_path / f"{name}.parquet", row_group_size=ROWS_PER_BATCH)
        del rows, ids
        arrow_bytes.clear()
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        score(str(run_path), str(tmp_path / f"{name}.parquet"), tmp_path / name, rows_per_part=2 * ROWS_PER_BATCH)
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return traced + max(arrow_bytes) - before

    peak_bytes("compile", 1)
    small, large = peak_bytes("small", 2), peak_bytes("large", 8)
    further_id_bytes = 6 * ROWS_PER_BATCH * 8
    assert large - small < further_id_bytes / 2


def test_a_call_that_fails_removes_only_what_it_made(interrupted, run_path, table_path, monkeypatch):
    folder, _ = interrupted
    (folder / "part-00000.parquet").write_bytes(b"altered")
    before = names_in(folder)
    monkeypatch.setattr(Predictor, "score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(str(run_path), str(table_path), folder, rows_per_part=300)
    assert names_in(folder) == before


def test_a_folder_that_was_there_stays(run_path, table_path, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "score", lambda *_: 1 / 0)
    (tmp_path / "scores").mkdir()
    with pytest.raises(ZeroDivisionError):
        score(str(run_path), str(table_path), tmp_path / "scores")
    assert names_in(tmp_path / "scores") == []


@pytest.mark.parametrize("ids", [range(1000), ["007", *range(1000, 1999)]], ids=["whole numbers", "leading zeros"])
def test_ids_of_csv_are_text_unless_all_are_written_as_integers(run_path, table, tmp_path, ids):
    lines = [f"{name},{spend},1,40,true,web,a" for name, spend in zip(ids, table["spend"].to_pylist(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["customer_id,spend,orders,age,is_member,channel,city", *lines]))
    score(str(run_path), str(tmp_path / "a.csv"), tmp_path / "scores")
    assert read_scores(tmp_path / "scores")["customer_id"].to_pylist() == list(map(type(ids[0]), ids))


def test_a_csv_of_many_parts_is_read_once(run_path, table, tmp_path, monkeypatch):
    from mean_jax.data.units import Unit

    channel = table.column("channel").cast("string")
    plain = table.set_column(table.schema.get_field_index("channel"), "channel", channel)
    pa_csv.write_csv(plain, tmp_path / "customers.csv")
    read = []
    rows_of = Unit.rows

    def counting(unit, columns):
        for rows in rows_of(unit, columns):
            read.append(rows.batch.num_rows)
            yield rows

    monkeypatch.setattr(Unit, "rows", counting)
    assert score(str(run_path), str(tmp_path / "customers.csv"), tmp_path / "scores", rows_per_part=90) == 1000
    assert sum(read) == 1000
    ids = pq.read_table(tmp_path / "scores").column("customer_id")
    assert ids.to_pylist() == table.column("customer_id").to_pylist()


def test_a_part_that_this_process_does_not_see_is_no_success(run_path, table_path, tmp_path, monkeypatch):
    """As where a network file system shows the files of another host late."""
    from mean_jax.scoring import score as module

    opened = module._open_job

    def without_the_last_part(folder, identity):
        job = opened(folder, identity)
        job.own.pop(3, None)
        return job

    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"shows 3 of 4 parts; .* run the same command"):
        patch.setattr(module, "_open_job", without_the_last_part)
        score(str(run_path), str(table_path), tmp_path / "scores", rows_per_part=300)
    assert "_SUCCESS" not in names_in(tmp_path / "scores")
    assert score(str(run_path), str(table_path), tmp_path / "scores", rows_per_part=300) == 1000
    assert names_in(tmp_path / "scores")[0] == "_SUCCESS"
