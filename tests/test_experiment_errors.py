"""What mean-jax-experiment refuses, and that it loses nothing by it."""

import dataclasses
import shutil

import pytest

from mean_jax.cli import experiment
from mean_jax.errors import UserError
from mean_jax.experiments import data, runner
from mean_jax.experiments.spec import DataSpec
from mean_jax.fileio import read_json, write_json
from tests.conftest import SMALL_EXPERIMENT

SWEEP = '(("MEAN", "mean", "sweep.field=tau", "sweep.values=(1.0,)"),)'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=table9"], "--config=table9: no such file; give a path or one of: choices, figure2"),
        (["--config=table1", "--config.data.name=nowhere"], "--config.data.name=nowhere: choose synthetic or one of"),
        (["--config=table1", '--config.peers=("xgboost",)'], "--config.peers=xgboost: expected some of constant_zero"),
        (["--config=table1", '--config.networks=(("MEAN", "nowhere"),)'], "--config=nowhere: no such file"),
        (["--config=table1", "--config.reference=GPT"], "--config.reference=GPT: expected one of DNN-ZILN"),
        (["--config=table1", "--config.train.num_sedes=2"], "did you mean train.num_seeds?"),
        (["--config=table1", '--config.metrics=("ginni",)'], "--config.metrics=ginni: expected some of"),
        (["--config=table1", '--config.networks=(("MEAN", "mean"), ("oracle", "mean"))'], "names that differ"),
        (["--config=figure2", '--config.networks=(("MEAN", "mean"),)'], "a network with a sweep, or a number"),
        (["--config=table4", f"--config.networks={SWEEP}"], "a network without a sweep, which only a curve"),
        (["--config=table1", "--config.data.num_features=5"], "--config.data.num_features=5: expected 24 or more"),
        (["--config=table1", '--config.data.labels=("cltv_7",)'], "labels=('cltv_7',): expected some of cltv_30"),
        (["--config=table1", "--data=/nowhere", "--smoke"], "--smoke: makes its own small table"),
        (["--config=table4", "--config.data.name=hillstrom"], "--config.data.source: hillstrom is read from a copy"),
        (["--config=table1", "--data=/nowhere"], "--data: folder /nowhere does not exist"),
        (["--config=table1", '--config.networks=(("MEAN", "mean", "model.tau=0.0"),)'], "model.tau=0.0: expected"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_results(arguments, expected, tmp_path, call):
    code, lines = call(experiment.main, *arguments, f"--output={tmp_path / 'out'}")
    assert code == 2
    assert lines.count("error:") == 1 and expected in lines
    assert not (tmp_path / "out/results.parquet").exists()


def test_data_that_are_refused_leave_nothing(tmp_path, call):
    """A corrected call finds the folder free, whether it was there before or not."""
    flags = ["--config.data.name=hillstrom", "--config.data.source=missing.csv"]
    (tmp_path / "empty").mkdir()
    for output in ("new/out", "empty"):
        code, lines = call(experiment.main, "--config=table4", f"--output={tmp_path / output}", *flags)
        assert code == 2 and "--config.data.source: missing.csv does" in lines
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_a_folder_of_something_else_is_refused(finished_experiment, tmp_path, call):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("")
    code, lines = call(experiment.main, "--config=table1", f"--output={tmp_path / 'other'}", "--smoke")
    assert code == 2 and "exists and is not empty" in lines
    for other in (["--config=table1", *SMALL_EXPERIMENT], ["--config=table2_3", "--smoke"]):
        before = (finished_experiment / "experiment.json").read_text()
        code, lines = call(experiment.main, *other, f"--output={finished_experiment}")
        assert code == 2 and "choose another --output" in lines
        assert (finished_experiment / "experiment.json").read_text() == before
    changed = '--config.networks=(("MEAN", "mean", "model.tau=3.0"), ("ZILN", "dnn_ziln"))'
    code, lines = call(experiment.main, "--config=table1", f"--output={finished_experiment}", "--smoke", changed)
    assert code == 2 and "mean.json: holds results of another configuration" in lines
    assert (finished_experiment / "experiment.json").read_text() == before


def refuse(*_):
    raise UserError("no luck")


def test_what_an_interrupted_call_made_is_not_taken_for_other_data(tmp_path, monkeypatch):
    """Only the data are there then, not yet the experiment's own file."""
    spec = DataSpec("synthetic", rows=300, num_features=30, labels=("cltv_30", "cltv_365"))
    with pytest.raises(UserError, match=r"^--config\.data\.source: .*nowhere does not exist"):
        data.open_data(dataclasses.replace(spec, name="kdd98", source=str(tmp_path / "nowhere")), tmp_path / "data")
    opened = data.open_data(spec, tmp_path / "data")  # of what failed nothing is there
    assert opened.store.schema.labels == spec.labels
    assert not [name for name in opened.store.schema.numeric if name.startswith("cltv_")]
    made = opened.fingerprint()
    begun = (tmp_path / "data" / "store").rename(tmp_path / "data" / "elsewhere")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no luck"):
        patch.setattr(data, "prepare", refuse)
        data.open_data(spec, tmp_path / "data")
    begun.rename(tmp_path / "data" / "store")  # what an earlier call made stays
    other = dataclasses.replace(spec, rows=301)
    with pytest.raises(UserError, match=r"--output: .*data holds other data .*rows=300.*; choose another --output"):
        data.open_data(other, tmp_path / "data")
    assert data.open_data(spec, tmp_path / "data").fingerprint() == made
    (tmp_path / "data" / data.SPEC_NAME).unlink()
    with pytest.raises(UserError, match=r"data has no data\.json that says of what it was made; choose another"):
        data.open_data(spec, tmp_path / "data")


def test_an_experiment_begun_before_a_field_existed_goes_on(finished_experiment, tmp_path, call):
    folder = tmp_path / "earlier"
    shutil.copytree(finished_experiment, folder)
    saved = read_json(folder / "experiment.json", runner.KIND, runner.VERSION)
    del saved["spec"]["train"]["on_nonfinite"]
    write_json(folder / "experiment.json", runner.KIND, runner.VERSION, saved)
    made = read_json(folder / "data/data.json", data.KIND, data.VERSION)
    del made["data"]["source"]
    write_json(folder / "data/data.json", data.KIND, data.VERSION, made)
    code, lines = call(experiment.main, "--config=table1", f"--output={folder}", "--smoke", *SMALL_EXPERIMENT)
    assert code == 0 and "finished in" not in lines
    assert "on_nonfinite" in read_json(folder / "experiment.json", runner.KIND, runner.VERSION)["spec"]["train"]


def test_a_mistake_does_not_lock_the_folder(tmp_path, call, store_path):
    """The mend that an error line proposes works in the same folder."""
    folder = tmp_path / "out"
    small = (
        '--config.networks=(("MEAN", "mean", "model.bottom_sizes=(8,)"),)',
        "--config.peers=()",
        f"--data={store_path}",
    )
    budget = ("--config.train.num_seeds=1", "--config.train.max_epochs=1")
    assert call(experiment.main, "--config=table1", f"--output={folder}", "--config.data.name=nowhere")[0] == 2
    code, lines = call(experiment.main, "--config=table1", f"--output={folder}", *small, *budget)
    assert code == 2 and "set --config.train.batch_size=512" in lines
    code, lines = call(
        experiment.main, "--config=table1", f"--output={folder}", *small, *budget, "--config.train.batch_size=512"
    )
    assert code == 0, lines
