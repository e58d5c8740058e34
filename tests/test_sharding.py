"""One program on any mesh: the same numbers however replicas, rows and tables are divided."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from mean_jax.batch_axis import BatchAxis
from mean_jax.config import DataConfig, MeshConfig
from mean_jax.data.pipeline import EpochPlan, train_dispatches
from mean_jax.errors import UserError
from mean_jax.models import encoder as encoder_lib
from mean_jax.models import initial
from mean_jax.models.blocks import BatchNorm
from mean_jax.run import Program
from mean_jax.sharding import batch_axis, data_mesh, make_mesh, on_mesh, own_rows, state_shardings, to_host
from mean_jax.training import step as step_lib
from mean_jax.training.feed import Order, make_feed
from mean_jax.training.loop import first_state
from tests.conftest import tiny_config
from tests.model_inputs import dispatch_of, one_device, shardings_of
from tests.test_models import CONFIGS, small_config
from tests.test_step import assert_trees_close

MESHES = {
    "data 4": MeshConfig(),
    "replica 2, data 2": MeshConfig(replica=2),
    "replica 4": MeshConfig(replica=4),
    "data 2, model 2": MeshConfig(model=2, min_table_rows=2),
}


@pytest.fixture(scope="module")
def words_SxBxW(store):
    return next(train_dispatches(store.split("train"), EpochPlan(64, 3, 3), 1, 0, 0))


def on(mesh, config, program, words_SxBxW):
    """Returns the first state, and state and metrics after a dispatch, on the mesh."""
    shardings = shardings_of(program, mesh, config)
    state = first_state(program, shardings)
    first = to_host(state)
    words = on_mesh(mesh, P(None, "data"), words_SxBxW.shape, words_SxBxW.__getitem__)
    dispatch = step_lib.make_dispatch(program.step_rule(program.schema.layout), mesh, shardings)
    state, metrics = dispatch(state, words)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return first, to_host(state), to_host(metrics)


def assert_same_training(program, words_SxBxW, configs, rtol=2e-3, atol=2e-5):
    expected_first, expected, expected_metrics = on(one_device(), MeshConfig(), program, words_SxBxW)
    for config in configs:
        mesh = make_mesh(config, len(program.specs), 64)
        assert mesh.size == 4
        first, state, metrics = on(mesh, config, program, words_SxBxW)
        assert_trees_close(first, expected_first, rtol=1e-6, atol=1e-9)
        variables, best = state.replicas.variables, expected.replicas.variables
        assert_trees_close(variables.params, best.params, rtol=rtol, atol=atol)
        assert_trees_close(variables.batch_stats, best.batch_stats, rtol=1e-4, atol=1e-6)
        assert_trees_close(metrics, expected_metrics, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mean_tuned"])
def test_every_model_trains_alike_on_a_mesh(name, store, words_SxBxW):
    """Batch statistics, losses and random draws are those of the whole batch for each model."""
    program = Program(small_config(name), store.schema, store.transform)
    assert_same_training(program, words_SxBxW, [MeshConfig(replica=2)])


@pytest.mark.parametrize("overrides", [("model.distance=ranksim",), ("model.distance=pairwise",)])
def test_mdan_compares_the_rows_of_the_whole_batch(overrides, store, words_SxBxW):
    program = Program(small_config("mdan", *overrides), store.schema, store.transform)
    assert_same_training(program, words_SxBxW, [MeshConfig()])


def test_meshes(store, words_SxBxW):
    program = Program(tiny_config("train.num_seeds=2"), store.schema, store.transform)
    assert_same_training(program, words_SxBxW, MESHES.values(), rtol=1e-3, atol=1e-5)


def test_a_mesh_whose_devices_divide_each_table(store, words_SxBxW, monkeypatch):
    """Tables are neither drawn nor read together with others."""
    monkeypatch.setattr(encoder_lib, "_MAX_JOINT_NUMBERS", 0)
    monkeypatch.setattr(initial, "_MAX_DRAWN_TOGETHER", 0)
    program = Program(tiny_config(), store.schema, store.transform)
    assert_same_training(program, words_SxBxW, [MeshConfig(model=2, min_table_rows=2)], rtol=1e-3, atol=1e-5)


def test_large_tables_are_divided_and_small_ones_are_not(program):
    abstract = program.abstract_state
    sizes = [len(counts) for counts in program.transform.category_counts]
    config = MeshConfig(model=2, min_table_rows=min(sizes) + 1)
    mesh = make_mesh(config, len(program.specs), 64)
    encoder = state_shardings(mesh, abstract, config).replicas.variables.params["encoder"]
    divided = {name: sharding.spec == P("replica", "model") for name, sharding in encoder.items()}
    assert divided == {f"embedding_{i}": size > min(sizes) and size % 2 == 0 for i, size in enumerate(sizes)}


def test_a_table_that_cannot_be_divided_is_named(program, caplog):
    sizes = [len(counts) for counts in program.transform.category_counts]
    config = MeshConfig(model=4, min_table_rows=1)
    with caplog.at_level("WARNING"):
        state_shardings(make_mesh(config, len(program.specs), 64), program.abstract_state, config)
    odd = {i: size for i, size in enumerate(sizes) if size % 4}
    assert odd and sorted(caplog.messages) == [
        f"--config.mesh.model=4 does not divide the {size} rows of embedding_{i}: every device has them all"
        for i, size in odd.items()
    ]


def test_batch_statistics_are_those_of_the_whole_batch():
    """Also where the devices have unequally many rows under the mask, and where no row is."""
    rng = np.random.default_rng(0)
    x_BxE = rng.normal(3.0, 2.0, (16, 5)).astype(np.float32)
    mask_B = np.array([True] * 4 + [False] * 7 + [True] * 5)
    mesh = data_mesh(jax.devices()[:4])
    norm = BatchNorm(0.9, batch_axis(mesh))
    start = BatchNorm(0.9).init(jax.random.key(0), x_BxE, mask_B, train=False)

    def apply(x_BxE, mask_B):
        y_BxE, updated = norm.apply(start, x_BxE, mask_B, train=True, mutable=["batch_stats"])
        return y_BxE, updated["batch_stats"]

    divided = jax.shard_map(
        apply, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=(P("data"), P()), check_vma=False
    )
    y_BxE, stats = jax.jit(divided)(x_BxE, mask_B)
    known = x_BxE[mask_B].astype(np.float64)
    expected = (x_BxE - known.mean(axis=0)) / np.sqrt(known.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y_BxE, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.1 * known.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * known.var(axis=0), rtol=1e-4)
    _, untouched = jax.jit(divided)(x_BxE, np.zeros(16, bool))
    assert_trees_close(untouched, start["batch_stats"])


def test_rows_drawn_for_a_divided_batch_are_those_of_the_whole():
    mesh = data_mesh(jax.devices()[:4])
    axis = batch_axis(mesh)
    assert axis == BatchAxis("data", 4) and batch_axis(one_device()) == BatchAxis()
    whole_Bx1 = jnp.arange(8.0)[:, None]
    own = jax.shard_map(axis.own_rows, mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False)(whole_Bx1)
    np.testing.assert_array_equal(own, whole_Bx1)


@pytest.mark.parametrize("numeric_type", ["stored", "bfloat16"])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_rows_that_stay_on_the_devices_give_the_batches_of_the_host(numeric_type, num_devices, store):
    """Both placements see the same rows bit for bit, and go on in the middle of an epoch alike."""
    program = Program(tiny_config(), store.schema, store.transform)
    rows, mesh = store.split("train"), data_mesh(jax.devices()[:num_devices])
    order = Order(EpochPlan(64, 3, 3), 2, 5)
    states = {}
    for placement in ("host", "device"):
        config = DataConfig(placement=placement, numeric_type=numeric_type)
        layout = rows.layout if numeric_type == "stored" else rows.layout._replace(numeric_type=numeric_type)
        shardings = shardings_of(program, mesh)
        feed = make_feed(program.step_rule(layout), mesh, shardings, rows, order, config)
        state = first_state(program, shardings)
        sizes = []
        for dispatch in feed(3):
            sizes.append(dispatch.num_steps)
            state, metrics = dispatch.run(state)
        assert sizes == ([3] * 5 if placement == "host" else [6, 9])
        assert int(state.step) == 15 and (to_host(metrics)["bad_step"] == 0).all()
        states[placement] = to_host(state)
    assert_trees_close(states["host"], states["device"], rtol=1e-5, atol=1e-7)


def test_a_long_epoch_is_several_dispatches_of_resident_rows(store):
    program, mesh = Program(tiny_config(), store.schema, store.transform), one_device()
    order = Order(EpochPlan(64, 3, 3), 2, 5, max_resident_steps=4)
    config = DataConfig(placement="device")
    rule, shardings = program.step_rule(store.layout), shardings_of(program, mesh)
    feed = make_feed(rule, mesh, shardings, store.split("train"), order, config)
    assert [dispatch.num_steps for dispatch in feed(0)] == [4, 4, 1, 4, 4, 1]
    assert [dispatch.num_steps for dispatch in feed(7)] == [2, 4, 4, 1]


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_words_of_a_batch_are_the_same_bits_on_any_mesh(placement, store):
    """NaN payloads and category codes survive being divided, gathered and summed."""
    program = Program(tiny_config(), store.schema, store.transform)
    rows, seen = store.split("train"), {}

    class Spy:
        """Stands for the layout of the step: notes the words that it is given."""

        def __init__(self, layout):
            self.layout = layout

        def labels_of(self, words):
            return self.layout.labels_of(words)

        def unpack(self, words_BxW, mask_B):
            jax.debug.callback(lambda first, words: blocks.append((int(first), np.asarray(words))), 0, words_BxW)
            return self.layout.unpack(words_BxW, mask_B)

    for num_devices in (1, 4):
        blocks = []
        rule = dataclasses.replace(program.step_rule(rows.layout), layout=Spy(rows.layout))
        mesh = data_mesh(jax.devices()[:num_devices])
        shardings, order = shardings_of(program, mesh), Order(EpochPlan(64, 1, 1), 1, 0)
        feed = make_feed(rule, mesh, shardings, rows, order, DataConfig(placement=placement))
        state = first_state(program, shardings)
        for dispatch in feed(0):
            state, _ = dispatch.run(state)
        jax.block_until_ready(state)
        jax.effects_barrier()
        words = np.concatenate([words for _, words in blocks])
        seen[num_devices] = words[np.lexsort(words.view(np.int32).T)]
    assert len(seen[1]) == 64
    np.testing.assert_array_equal(seen[1].view(np.int32), seen[4].view(np.int32))


@pytest.mark.parametrize(
    ("config", "num_replicas", "batch_size", "message"),
    [
        (MeshConfig(replica=3), 6, 64, "does not make the 4 devices"),
        (MeshConfig(data=2), 4, 64, "does not make the 4 devices"),
        (MeshConfig(replica=8), 8, 64, "does not make the 4 devices"),
        (MeshConfig(replica=2), 3, 64, r"--config.mesh.replica=2: does not divide the 3 replicas"),
        (MeshConfig(), 4, 62, r"--config.mesh.data=4: does not divide the 62 rows of a batch"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_clear_error(config, num_replicas, batch_size, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config, num_replicas, batch_size)


def test_a_process_alone_owns_all_rows():
    assert own_rows(data_mesh(jax.devices()), 64) == slice(0, 64)  # several: tests/test_processes.py


def test_a_batch_that_is_not_finite_can_be_skipped(store, words_SxBxW):
    """The state is that of the other batches alone, and the metrics count what was left out."""
    program = Program(tiny_config("train.on_nonfinite=skip"), store.schema, store.transform)
    broken = words_SxBxW.copy()
    program.schema.layout.labels_of(broken)[1, 0, 0] = -np.inf  # of the first horizon alone
    dispatch = dispatch_of(program)
    state, metrics = dispatch(program.init_state(), broken)
    assert np.asarray(metrics["skipped"]).tolist() == [1, 0] and np.asarray(metrics["bad_step"]).tolist() == [2, 0]
    assert all(np.isfinite(value).all() for value in metrics.values())
    expected, _ = dispatch(program.init_state(), words_SxBxW[:1])
    expected = expected._replace(step=expected.step + 1)  # the noise of a step is that of its number
    expected, _ = dispatch(expected, words_SxBxW[2:])
    first, first_expected = (jax.tree.map(lambda leaf: leaf[0], item.replicas.variables) for item in (state, expected))
    assert_trees_close(first, first_expected, rtol=1e-4, atol=1e-6)
    stopping = Program(tiny_config(), store.schema, store.transform)
    _, metrics = dispatch_of(stopping)(stopping.init_state(), broken)
    assert np.asarray(metrics["bad_step"]).tolist() == [2, 0] and not np.isfinite(metrics["total"][0])
