"""One step, a dispatch of steps, replicas and the end of an epoch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.config import SweepConfig
from mean_jax.data.pipeline import EpochPlan, padded_batches, train_dispatches
from mean_jax.models.encoder import InputEncoder
from mean_jax.run import Program
from mean_jax.training import step as step_lib
from mean_jax.training.state import ReplicaSpec, make_init, plan_replicas
from tests import mean_oracle
from tests.conftest import tiny_config
from tests.model_inputs import dispatch_of, one_device


@pytest.fixture(scope="module")
def words_SxBxW(store):
    return next(train_dispatches(store.split("train"), EpochPlan(64, 3, 3), 1, 0, 0))


def assert_trees_close(a, b, rtol=0.0, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_first_step_is_adam_on_the_gradient_of_the_printed_loss(program, words_SxBxW):
    """Golden one-step values: loss terms by the NumPy version, the update by Adam's formula."""
    state = program.init_state()
    before = jax.tree.map(np.asarray, state.replicas.variables.params)
    layout = program.schema.layout
    batch = layout.unpack(jnp.asarray(words_SxBxW[0]), jnp.ones(64, bool))
    known_T = (~np.isnan(batch.labels)).sum(axis=0)
    step_fn = jax.jit(functools.partial(step_lib.train_step, program.step_rule(layout)))
    after, metrics, is_finite = step_fn(state, batch, known_T)
    assert is_finite.all()
    for r, horizon in enumerate((0, 1)):
        params = jax.tree.map(lambda leaf, r=r: leaf[r], before)
        label = layout.labels_of(words_SxBxW[0])[:, horizon].astype(np.float64)
        is_known = ~np.isnan(label)
        rows = jax.tree.map(lambda leaf, keep=is_known: leaf[keep], batch)
        encoder = InputEncoder(program.config.encoder, program.transform.encoder_constants())
        x = encoder.apply({"params": params["encoder"]}, rows.numeric, rows.categorical)
        result = mean_oracle.forward(np.asarray(x, np.float64), params, 4, 3)
        constants = program.label_constants
        scaled = np.minimum(label[is_known] / constants.scale[horizon], 20.0)
        bucket = np.where(scaled > 0, 1 + (label[is_known][:, None] > constants.edges[horizon]).sum(axis=1), 0)
        expected = mean_oracle.loss_terms(result, scaled, bucket)
        for term, value in expected.items():
            assert float(metrics[term][r]) == pytest.approx(value, rel=1e-4), term
        assert float(metrics["total"][r]) == pytest.approx(sum(expected.values()), rel=1e-4)
    # Adam's first step moves every weight with a gradient by learning_rate * sign(gradient).
    moved = after.replicas.variables.params["head_0"]["value"]["bias"] - before["head_0"]["value"]["bias"]
    np.testing.assert_allclose(np.abs(moved), 1e-3, rtol=1e-3)
    assert int(after.step) == 1


def test_a_dispatch_of_three_steps_equals_three_steps(program, words_SxBxW):
    dispatched, means = dispatch_of(program)(program.init_state(), words_SxBxW)
    state = program.init_state()
    metrics = []
    one = dispatch_of(program)
    for words_BxW in words_SxBxW:
        state, terms = one(state, words_BxW[None])
        metrics.append(terms)
    assert_trees_close(dispatched, state, rtol=1e-4, atol=1e-6)
    for term in metrics[0].keys() - {"bad_step", "skipped"}:
        np.testing.assert_allclose(means[term], np.mean([item[term] for item in metrics], axis=0), rtol=1e-4)


def test_a_replica_equals_a_solo_run_with_its_seed_and_horizon(store, words_SxBxW):
    program = Program(tiny_config("train.num_seeds=2"), store.schema, store.transform)
    assert program.specs == (ReplicaSpec(0, (0,)), ReplicaSpec(0, (1,)), ReplicaSpec(1, (0,)), ReplicaSpec(1, (1,)))
    together, _ = dispatch_of(program)(program.init_state(), words_SxBxW)
    for r, spec in enumerate(program.specs):
        state = make_init(program.model, program.optimizer, (spec,), program.label_constants, program.schema.layout)()
        solo, _ = dispatch_of(program)(state, words_SxBxW)
        replica = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], together.replicas)
        assert_trees_close(replica, solo.replicas, rtol=1e-4, atol=1e-6)


def test_replicas_differ_by_seed_and_share_nothing(store, words_SxBxW):
    program = Program(tiny_config("train.num_seeds=2"), store.schema, store.transform)
    kernel = program.init_state().replicas.variables.params["bottom"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0], kernel[1])  # same seed, other horizon
    assert not np.allclose(kernel[0], kernel[2])


def test_rows_without_a_label_change_nothing_for_their_replica(program, words_SxBxW):
    words = words_SxBxW.copy()
    layout = program.schema.layout
    unknown = np.isnan(layout.labels_of(words)[..., 1])
    assert unknown.any()
    words[..., : layout.num_numeric][unknown] = 7.0
    clean, _ = dispatch_of(program)(program.init_state(), words_SxBxW)
    dirty, _ = dispatch_of(program)(program.init_state(), words)
    at = lambda state, r: jax.tree.map(lambda leaf: leaf[r], state.replicas.variables)  # noqa: E731
    assert_trees_close(at(clean, 1), at(dirty, 1), rtol=1e-4, atol=1e-6)
    assert not np.allclose(
        at(clean, 0).params["bottom"]["Dense_0"]["kernel"], at(dirty, 0).params["bottom"]["Dense_0"]["kernel"]
    )


def test_a_swept_value_trains_as_a_run_of_its_own(store, words_SxBxW):
    swept = Program(tiny_config("sweep.field=tau", "sweep.values=(1.0, 4.0)"), store.schema, store.transform)
    assert [spec.scalars for spec in swept.specs] == [(("tau", 1.0),)] * 2 + [(("tau", 4.0),)] * 2
    together, _ = dispatch_of(swept)(swept.init_state(), words_SxBxW)
    for index, tau in enumerate((1.0, 4.0)):
        alone = Program(tiny_config(f"model.tau={tau}"), store.schema, store.transform)
        solo, _ = dispatch_of(alone)(alone.init_state(), words_SxBxW)
        part = jax.tree.map(lambda leaf, i=index: leaf[2 * i : 2 * i + 2], together.replicas.variables)
        assert_trees_close(part, solo.replicas.variables, rtol=1e-4, atol=1e-6)
    first, second = (together.replicas.variables.params["head_0"]["dam"]["Dense_0"]["kernel"][r] for r in (0, 2))
    assert not np.allclose(first, second)


def test_plan_replicas_of_one_network_for_all_horizons():
    assert plan_replicas(3, 5, 2, True, SweepConfig()) == (ReplicaSpec(5, (0, 1, 2)), ReplicaSpec(6, (0, 1, 2)))


def end(state, metrics, epoch, patience=2):
    return step_lib.end_epoch(state, np.float32(metrics), np.int32(epoch), patience=patience)


def test_end_of_epoch_keeps_the_best_and_stops_per_replica(program):
    state = program.init_state()

    def with_params(state, value):
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state.replicas.variables.params)
        variables = state.replicas.variables._replace(params=params)
        return state._replace(replicas=state.replicas._replace(variables=variables))

    curves = [(0.5, np.nan), (0.6, 0.2), (0.6, 0.1), (0.4, 0.15), (0.9, 0.3)]
    for epoch, metric in enumerate(curves, start=1):
        state = end(with_params(state, float(epoch)), metric, epoch)
    replicas = state.replicas
    # Replica 0 is best at epoch 2 and stops after epochs 3 and 4, so epoch 5 comes too late; NaN is never better.
    assert replicas.best_epoch.tolist() == [2, 2]
    assert replicas.is_active.tolist() == [False, False]
    kernel = replicas.best.params["bottom"]["Dense_0"]["kernel"]
    assert kernel[0].max() == 2.0 and kernel[1].max() == 2.0
    np.testing.assert_allclose(replicas.best_metric, [0.6, 0.2])


def test_a_metric_that_is_always_undefined_keeps_the_first_epoch(program):
    state = end(end(program.init_state(), (np.nan, np.nan), 1), (np.nan, np.nan), 2)
    assert state.replicas.best_epoch.tolist() == [1, 1]


def test_validation_is_exact_whatever_the_padding(program, store):
    rows = store.split("validation")
    validate = step_lib.make_validate(program.step_rule(program.schema.layout), one_device())
    state = program.init_state()
    totals = {}
    for size in (16, 64, 256):
        results = [validate(state, *batch) for batch in padded_batches(rows, size)]
        count = sum(np.asarray(item[2]) for item in results)
        totals[size] = sum(np.asarray(item[1]["total"]) for item in results) / count
        scaled = np.concatenate([np.asarray(item[0]) for item in results], axis=1)[:, : len(rows)]
        totals[size] = np.append(totals[size], scaled.sum())
    np.testing.assert_allclose(totals[16], totals[256], rtol=1e-4)
    np.testing.assert_allclose(totals[64], totals[256], rtol=1e-4)


def test_predictions_do_not_depend_on_the_batch(program, store):
    rows = store.split("test")
    predict = step_lib.make_predict(program.model, program.schema.layout, one_device())
    variables = program.init_state().replicas.variables
    words = rows.gather(np.arange(32))
    together = predict(variables, words, np.ones(32, bool))
    alone = predict(variables, words[5:6], np.ones(1, bool))
    assert together["scaled"].shape == (2, 32, 1) and together["buckets"].shape == (2, 32, 1, 4)
    np.testing.assert_allclose(alone["scaled"][:, 0], together["scaled"][:, 5], rtol=1e-4, atol=1e-6)
