"""Runs as a user sees them: files, resuming, signals, early stopping, damaged checkpoints, mistakes."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from mean_jax import load, progress
from mean_jax.cli import prepare as prepare_cli
from mean_jax.cli import train as train_cli
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.evaluation.evaluate import evaluate
from mean_jax.run import BEST, LATEST, Program, load_run
from mean_jax.training import checkpoints, loop
from mean_jax.training.profile import Profile
from mean_jax.training.writers import read_metrics
from tests.conftest import TINY, make_table, tiny_config, train_tiny

FLAGS = [f"--config.{override}" for override in TINY]


def latest(run, store_path):
    store = Store(store_path)
    program = Program(tiny_config(), store.schema, store.transform)
    return checkpoints.load_newest(run / LATEST, program.abstract_state)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


class StopAfter:
    """Sends the process a signal when the given number of dispatches has been started."""

    def __init__(self, monkeypatch, count, number=signal.SIGTERM):
        make = loop.make_feed

        def make_counting(*args):
            feed = make(*args)

            def counted(first_step):
                for index, dispatch in enumerate(feed(first_step), start=1):
                    if index == count:
                        os.kill(os.getpid(), number)
                    yield dispatch

            return counted

        monkeypatch.setattr(loop, "make_feed", make_counting)


@pytest.fixture(scope="module")
def whole_run(store_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert train_tiny(store_path, path)
    return path


def test_a_run_folder_holds_what_the_design_names(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.json", "schema.json", "transform.json", "calibration.json", "run.json"} <= names
    assert {"checkpoints", "metrics.jsonl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = read_metrics(whole_run)
    assert {(line["epoch"], line["horizon"]) for line in lines} == {(e, h) for e in (1, 2, 3) for h in ("30", "365")}
    for line in lines:
        terms = sum(line[f"train/{term}"] for term in ("huber", "kl", "cross_entropy", "distillation"))
        assert terms == pytest.approx(line["train/total"], rel=1e-5)
        assert -1 <= line["validation/gini"] <= 1


@pytest.mark.parametrize("stopped_after", [1, 4, 7])
def test_a_stopped_run_goes_on_to_the_same_parameters(stopped_after, whole_run, store_path, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        StopAfter(patched, stopped_after)
        assert train_tiny(store_path, run) is False
    with pytest.raises(UserError, match="not finished"):
        load_run(run)
    assert train_tiny(store_path, run)
    assert_same(latest(run, store_path), latest(whole_run, store_path))
    assert_same(load_run(run).variables, load_run(whole_run).variables)
    for line, whole_line in zip(read_metrics(run), read_metrics(whole_run), strict=True):
        # The training means of the epoch that was cut in two cover its second part.
        assert {k: v for k, v in line.items() if "train/" not in k} == {
            k: v for k, v in whole_line.items() if "train/" not in k
        }
    assert load_run(run).identity == load_run(whole_run).identity


def test_sigterm_ends_the_command_with_code_0_and_says_how_to_go_on(store_path, tmp_path, monkeypatch, call):
    StopAfter(monkeypatch, 2)
    code, err = call(train_cli.main, *FLAGS, f"--data={store_path}", f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert "SIGTERM" in err and "run the same command to go on" in err


def test_checkpoints_within_an_epoch(whole_run, store_path, tmp_path):
    run = tmp_path / "run"
    train_tiny(store_path, run, "train.checkpoint_every_steps=3")
    assert_same(latest(run, store_path), latest(whole_run, store_path))


def test_a_damaged_latest_checkpoint_is_named_and_the_one_before_is_used(
    whole_run, store_path, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        StopAfter(patched, 7)
        train_tiny(store_path, run)
    steps = checkpoints.sealed_steps(run / LATEST)
    assert len(steps) == 2
    target = max((run / LATEST / str(steps[0])).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        checkpoints.verify(run / LATEST, steps[0])
    assert train_tiny(store_path, run)
    assert_same(load_run(run).variables, load_run(whole_run).variables)


def test_a_finished_run_is_not_trained_again(whole_run, store_path, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    before = (run / "run.json").stat().st_mtime_ns
    assert train_tiny(store_path, run)
    assert (run / "run.json").stat().st_mtime_ns == before


def test_a_finished_run_is_refused_once_its_store_has_more_rows(whole_run, store_path, tmp_path, call):
    run, store = shutil.copytree(whole_run, tmp_path / "run"), shutil.copytree(store_path, tmp_path / "store")
    rows = make_table(300)
    pq.write_table(rows.set_column(0, "customer_id", [[f"n{index}" for index in range(300)]]), tmp_path / "new.parquet")
    added = call(prepare_cli.main, "--append", f"--input={tmp_path / 'new.parquet'}", f"--output={store}")
    assert added[0] == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    flags = (*FLAGS, f"--data={store}")
    for damaged in (False, True):  # an older checkpoint knows it as well as the newest
        if damaged:
            (run / f"{LATEST}-{checkpoints.sealed_steps(run / LATEST)[0]}.json").write_text("{")
        code, err = call(train_cli.main, *flags, f"--workdir={run}")
        assert code == 2 and "finished already" not in err
        old, new = len(Store(store_path).split("train")), len(Store(store).split("train"))
        assert re.search(
            rf"--data: the store has {new} training rows, those of step \d+ in {run} came from {old}; .* new --workdir",
            one_error_line(err),
        )
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {
        run / f"{LATEST}-{checkpoints.sealed_steps(run / LATEST)[0]}.json"
    }
    assert call(train_cli.main, *FLAGS, f"--data={store_path}", f"--workdir={run}")[0] == 0  # as before on its own rows


def test_a_finished_run_needs_none_of_the_devices_that_trained_it(whole_run, store_path):
    assert train_tiny(store_path, whole_run, "mesh.data=64")


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_epoch_line_gives_the_means_that_the_metrics_have(placement, store_path, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert train_tiny(
            store_path, tmp_path / "run", "train.num_seeds=2", "train.max_epochs=2", f"data.placement={placement}"
        )
    lines = read_metrics(tmp_path / "run")
    for epoch in (1, 2):
        own = [line for line in lines if line["epoch"] == epoch]
        loss = np.mean([line["train/total"] for line in own])
        ginis = [
            np.mean([line["validation/gini"] for line in own if line["horizon"] == horizon])
            for horizon in ("30", "365")
        ]
        (said,) = [message for message in caplog.messages if message.startswith(f"epoch {epoch}: ")]
        numbers = [float(number) for number in re.findall(r"-?\d\.\d{4}", said)]
        assert numbers == pytest.approx([loss, *ginis], abs=6e-5)
        assert re.sub(r"-?\d\.\d{4}", "X", said) == (
            f"epoch {epoch}: loss X, validation gini 30: X (2 seeds), 365: X (2 seeds)"
        )


def test_a_run_says_how_far_it_is_and_what_its_parts_took(store_path, store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.0)
    with caplog.at_level("INFO"):  # an epoch is one dispatch
        assert train_tiny(store_path, tmp_path / "run", "train.max_epochs=1", "data.placement=device")
    lines = caplog.messages
    num_rows = {split: f"{len(store.split(split)):,}" for split in ("train", "validation")}
    for what, split in (
        ("validate", "validation"),
        ("calibrate, validation rows", "validation"),
        ("calibrate, training rows", "train"),
    ):
        last = [line for line in lines if line.startswith(f"{what}: ")][-1]
        assert last.startswith(f"{what}: {num_rows[split]} of {num_rows[split]} (100%) rows"), lines
    (parts,) = [line for line in lines if line.startswith("parts: ")]
    names = ("start", "steps", "validation", "checkpoints", "calibration")
    assert re.fullmatch("parts: " + ", ".join(rf"{name} \d+\.\d s" for name in names), parts), parts


def test_replicas_stop_early_and_keep_their_best_epoch(store_path, tmp_path, caplog):
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        train_tiny(store_path, run, "train.max_epochs=12", "train.patience=1", "train.learning_rate=0.05")
    lines = read_metrics(run)
    for horizon in ("30", "365"):
        ginis = [line["validation/gini"] for line in lines if line["horizon"] == horizon]
        rises = [b > max(ginis[: i + 1]) for i, b in enumerate(ginis[1:])]
        assert all(rises[:-1])  # every epoch but the last one improved
        assert len(ginis) == 12 or not rises[-1]
    assert len(lines) < 24
    for epoch in {line["epoch"] for line in lines}:  # what is shown is of those that still train
        loss = np.mean([line["train/total"] for line in lines if line["epoch"] == epoch])
        (shown,) = re.findall(rf"^epoch {epoch}: loss (\S+),", "\n".join(caplog.messages), re.MULTILINE)
        assert float(shown) == pytest.approx(loss, abs=6e-5)


@pytest.mark.parametrize("metric", ["loss", "percentile_mape"])
def test_other_metrics_can_stop_a_run(metric, store_path, tmp_path):
    assert train_tiny(store_path, tmp_path / "run", f"train.early_stopping_metric={metric}", "train.max_epochs=2")


def test_a_loss_that_is_not_finite_stops_with_step_replica_and_term(store_path, tmp_path):
    with pytest.raises(UserError, match=r"loss term [\w, ]+ of horizon \w+, seed 0 is not finite at step \d+;"):
        train_tiny(store_path, tmp_path / "run", "train.learning_rate=1e30")
    for step in checkpoints.sealed_steps(tmp_path / "run" / LATEST):
        checkpoints.verify(tmp_path / "run" / LATEST, step)


def test_a_checkpoint_that_does_not_fit_lists_every_leaf(whole_run, store_path):
    store = Store(store_path)
    program = Program(tiny_config("model.expert_size=4"), store.schema, store.transform)
    abstract = program.abstract_state.replicas.best
    step = checkpoints.sealed_steps(whole_run / BEST)[0]
    with pytest.raises(UserError, match="does not fit the model") as raised:
        checkpoints.load(whole_run / BEST, step, abstract)
    assert "['experts']['kernel_0']" in str(raised.value) and "['head_0']['value']['kernel']" in str(raised.value)


def one_error_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.train.batch_sise=8"], ["train.batch_sise", "train.batch_size"]),
        (["--config.train.max_epochs=many"], ["train.max_epochs", "int"]),
        (["--config.model.attention=global"], ["model.attention", "pairwise"]),
        (["--config.train.batch_size=100000"], ["fewer than one batch", "--config.train.batch_size=512"]),
        (["--config=no_such_config"], ["no_such_config", "mean"]),
        (["--confg=mean"], ["confg"]),
        (["--config.train.learning_rate=-1"], ["learning_rate", "positive"]),
        (["--config.mesh.data=3", "--config.train.batch_size=64"], ["--config.mesh: replica 1 x data 3", "4 devices"]),
        (["--config.train.batch_size=66"], ["--config.mesh.data=4: does not divide the 66 rows"]),
        (["--config.mesh.replica=4", "--config.train.batch_size=64"], ["--config.mesh.replica=4", "2 replicas"]),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(flags, parts, store_path, tmp_path, call):
    code, err = call(train_cli.main, f"--data={store_path}", f"--workdir={tmp_path / 'new/run'}", *flags)
    line = one_error_line(err)
    assert code == 2
    assert all(part in line for part in parts), line
    assert not list(tmp_path.iterdir())


def test_wrong_store_and_workdir(store_path, table_path, whole_run, tmp_path, call):
    code, err = call(train_cli.main, f"--data={tmp_path / 'nothing'}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "mean-jax-prepare" in one_error_line(err)
    code, err = call(train_cli.main, f"--data={table_path}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and f"{table_path} is a file, not a training store; make one" in one_error_line(err)
    assert f"mean-jax-prepare --input={table_path} --output=STORE" in one_error_line(err)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    code, err = call(train_cli.main, *FLAGS, f"--data={store_path}", f"--workdir={other}")
    assert code == 2 and "not a run folder" in one_error_line(err)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    code, err = call(train_cli.main, *FLAGS[:-1], f"--data={store_path}", f"--workdir={whole_run}")
    assert code == 2 and "train.steps_per_dispatch: saved 3, asked 16" in one_error_line(err)


def test_config_json_is_the_whole_configuration(whole_run):
    content = json.loads((whole_run / "config.json").read_text())
    assert content["train"]["batch_size"] == 64
    assert content["model"]["tau"] == 2.0


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.multi_task=True",),
        ("model.dam=False", "encoder.numeric=ple"),
        ("model.attention=pairwise", "labels.transform=log1p", "labels.num_buckets=2"),
    ],
)
def test_variants_train_evaluate_and_score(overrides, store_path, table, tmp_path):
    run = tmp_path / "run"
    assert train_tiny(store_path, run, "train.max_epochs=1", "train.num_seeds=2", *overrides)
    metrics = evaluate(str(run), str(store_path), "test", tmp_path / "evaluation", num_resamples=2)
    assert set(metrics["horizons"]) == {"30", "365"}
    scores = load(run).predict(table.slice(0, 10))
    assert ("cltv_30_buckets" in scores.column_names) == ("model.dam=False" not in overrides)
    assert np.isfinite(scores["cltv_30"].to_numpy()).all() and (scores["cltv_365"].to_numpy() >= 0).all()


@pytest.mark.parametrize(("num_steps", "is_traced"), [(3, True), (100, False)])
def test_a_profile_is_written_or_its_lack_is_said(num_steps, is_traced, store_path, tmp_path, caplog):
    config = tiny_config("train.max_epochs=1", f"train.steps_per_dispatch={num_steps}")
    with caplog.at_level("INFO"):
        assert loop.train(
            lambda store: Program(config, store.schema, store.transform), store_path, tmp_path / "run", profile=True
        )
    assert bool(list((tmp_path / "run").glob("profile/**/*.xplane.pb"))) == is_traced
    said = [message for message in caplog.messages if "trace" in message]
    assert len(said) == 1 and said[0].startswith("trace of dispatches 3 to " if is_traced else "--profile: no trace")


def test_a_trace_holds_all_of_its_last_dispatch(tmp_path, monkeypatch, caplog):
    """It ends after the loop has read what the dispatch gave: before, the devices may still be at work on it."""
    done = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: done.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: done.append("stop"))
    profile = Profile(tmp_path)
    with caplog.at_level("INFO"):
        for number in range(1, 12):
            with profile.dispatch():
                done += [f"run {number}", f"read {number - 1}"]
    profile.stop()
    assert done.index("start") + 1 == done.index("run 3") and done.index("stop") - 1 == done.index("read 8")
    assert done.count("stop") == 1
    assert [message.partition(":")[0] for message in caplog.messages] == ["trace of dispatches 3 to 8"]


def unseal(run, name):
    """Leaves the newest checkpoint as a process does that is killed before it is sealed."""
    step = checkpoints.sealed_steps(run / name)[0]
    (run / name).with_name(f"{(run / name).name}-{step}.json").unlink()


def spoil(run, name):
    """Flips a bit in the newest checkpoint."""
    step = checkpoints.sealed_steps(run / name)[0]
    target = max((run / name / str(step)).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)


@pytest.mark.parametrize("harm", [unseal, spoil])
@pytest.mark.parametrize("name", [LATEST, BEST])
def test_a_run_killed_around_a_checkpoint_goes_on(harm, name, whole_run, store_path, tmp_path):
    """The step of the harmed checkpoint is reached and saved again."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for file in ("run.json", "calibration.json"):
        (run / file).unlink()
    harm(run, name)
    assert train_tiny(store_path, run)
    assert load_run(run).identity == load_run(whole_run).identity


def test_a_run_killed_while_its_folder_was_made_begins_again(store_path, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.0123456789ab.tmp").write_text("{")
    assert train_tiny(store_path, run, "train.max_epochs=1")


def test_a_full_disk_is_one_error_line(store_path, tmp_path, monkeypatch, call):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: [OS error 28: No space left on device]")

    monkeypatch.setattr(checkpoints.ocp.training.Checkpointer, "save_async", full)
    code, err = call(train_cli.main, *FLAGS, f"--data={store_path}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "no space left" in one_error_line(err)


def test_a_prediction_that_is_not_finite_stops_the_run(store_path, tmp_path):
    """One step per epoch: its loss is of the parameters before the step and still finite."""
    with pytest.raises(UserError, match=r"(validation prediction|loss term \w+) of horizon \w+, seed 0 is not finite"):
        train_tiny(
            store_path, tmp_path / "run", "train.batch_size=512", "train.learning_rate=1e30", "train.max_epochs=2"
        )


def test_a_replica_that_diverges_after_it_was_stopped_harms_nobody(program, monkeypatch, store, tmp_path):
    trainer = loop.Trainer(program, store, tmp_path / "run", False, Profile(None))
    trainer._is_active_R = np.array([False, True])
    state = program.init_state()
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), state.replicas.variables)
    state = state._replace(replicas=state.replicas._replace(variables=broken))
    values, is_finite_R = trainer._validation(state, trainer._is_active_R)
    assert is_finite_R.tolist() == [False, True]
    assert values[0] == {} and np.isfinite(values[1]["validation/gini"])


def test_a_run_of_resident_rows_goes_on_with_rows_from_the_host(whole_run, store_path, tmp_path, monkeypatch):
    """A checkpoint in the middle of an epoch fits the dispatches of both placements."""
    run, every = tmp_path / "run", "train.checkpoint_every_steps=3"
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        assert not train_tiny(store_path, run, every, "data.placement=device")
    assert not (run / "run.json").exists()
    assert train_tiny(store_path, run, every)
    first, second = load_run(whole_run), load_run(run)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), first.variables, second.variables)
    assert len(read_metrics(run)) == len(read_metrics(whole_run))
