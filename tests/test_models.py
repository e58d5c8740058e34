"""What every model must do, whatever it is: one interface in training, replicas, evaluation, scoring, checkpoints."""

from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from mean_jax.config import load_config, parse_config
from mean_jax.evaluation.evaluate import evaluate
from mean_jax.models import MODEL_CONFIGS, MODELS
from mean_jax.run import Program
from mean_jax.scoring.score import score
from mean_jax.training import step as step_lib
from mean_jax.training.loop import train
from mean_jax.training.state import make_init
from tests.conftest import LABELS
from tests.model_inputs import dispatch_of, one_device
from tests.test_step import assert_trees_close

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py"))
WITH_BUCKETS = ("mean", "odmn", "mdan")
TRAIN = ("train.batch_size=64", "train.max_epochs=2", "train.steps_per_dispatch=3", "train.num_seeds=2")


def small_config(name, *overrides):
    """Returns a shipped config with every layer of 8 units and 4 buckets."""
    sizes = [f"model.{field}=(8,)" for field in load_config(name).model if field.endswith("_sizes")]
    return parse_config(load_config(name, [*TRAIN, "labels.num_buckets=4", *sizes, *overrides]), MODEL_CONFIGS)


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name != "mean_tuned"])  # MEAN with other numbers
def program(request, store):
    return Program(small_config(request.param), store.schema, store.transform)


@pytest.fixture(scope="module")
def words_SxBxW(store):
    rows = store.split("train")
    return rows.gather(np.arange(3 * 64)).reshape(3, 64, -1)


def test_every_model_has_a_config():
    names = {load_config(name).model.name for name in CONFIGS}
    assert names == set(MODELS)


def test_what_may_be_swept_is_a_number_of_the_config(program):
    model = program.config.model
    for field in model.SCALARS:
        assert type(getattr(model, field)) is float


def test_replicas_are_solo_runs_and_other_rows_change_nothing(program, words_SxBxW):
    """Replica r of one program equals a run of its own, and rows without a label for it play no part."""
    layout = program.schema.layout
    dispatch = dispatch_of(program)
    together, terms = dispatch(program.init_state(), words_SxBxW)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((together.replicas.variables.params, terms)))
    last = len(program.specs) - 1
    solo = make_init(program.model, program.optimizer, program.specs[last:], program.label_constants, layout)()
    dirty = words_SxBxW.copy()
    unknown = np.isnan(layout.labels_of(dirty)[..., list(program.specs[last].horizons)]).all(axis=-1)
    dirty[..., : layout.num_numeric][unknown] = 7.0
    alone, alone_terms = dispatch(solo, dirty)
    replica = jax.tree.map(lambda leaf: leaf[last:], together.replicas.variables)
    assert_trees_close(replica.params, alone.replicas.variables.params, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(terms["total"][last], alone_terms["total"][0], rtol=1e-3)
    start, end = program.init_state().replicas.variables.params, together.replicas.variables.params
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, end)
    assert np.mean(jax.tree.leaves(moved)) > 0.8  # nearly every parameter has a gradient


def test_padding_changes_no_prediction(program, words_SxBxW):
    layout = program.schema.layout
    predict = step_lib.make_predict(program.model, layout, one_device())
    variables = program.init_state().replicas.variables
    words = words_SxBxW[0]
    full = predict(variables, words, np.ones(64, bool))
    padded = words.copy()
    padded[40:] = 0.0
    part = predict(variables, padded, np.arange(64) < 40)
    for name, value in full.items():
        np.testing.assert_allclose(np.asarray(part[name])[:, :40], np.asarray(value)[:, :40], rtol=1e-5, atol=1e-6)
    assert full["scaled"].shape == (len(program.specs), 64, len(program.specs[0].horizons))
    if "buckets" in full:
        assert full["buckets"].shape[-1] == program.config.labels.num_buckets
        np.testing.assert_allclose(np.asarray(full["buckets"]).sum(axis=-1), 1.0, rtol=1e-5)


def test_a_batch_of_unknown_labels_has_no_loss_and_no_gradient_that_is_nan(program, words_SxBxW):
    layout = program.schema.layout
    dispatch = dispatch_of(program)
    words = words_SxBxW[:1].copy()
    layout.labels_of(words)[...] = np.nan
    state, terms = dispatch(program.init_state(), words)
    assert all((np.asarray(value) == 0).all() for value in terms.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.replicas.variables.params))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("mean", "mtl_mean")])
def test_train_evaluate_score(name, store_path, table_path, table, tmp_path):
    """MEAN's own path is tested everywhere else."""
    config = small_config(name)
    run = tmp_path / "run"
    assert train(lambda store: Program(config, store.schema, store.transform), store_path, run)
    metrics = evaluate(str(run), str(store_path), "test", tmp_path / "evaluation", num_resamples=5)
    assert set(metrics["horizons"]) == {"30", "365"} and metrics["model"] == config.model.name
    assert all(spaces["currency"]["mae"]["value"] > 0 for spaces in metrics["horizons"].values())
    assert score(str(run), str(table_path), tmp_path / "scores.parquet") == len(table)
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert ("cltv_30_buckets" in scores.column_names) == (config.model.name in WITH_BUCKETS)
    assert scores.column("customer_id").equals(table.column("customer_id"))
    for label in LABELS:
        values = scores.column(label).to_numpy()
        assert np.isfinite(values).all() and (values > 0).all()
