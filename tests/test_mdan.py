"""MDAN against the NumPy version, RankSim's golden values, the choice of anchors, masks, options and training."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.config import EncoderConfig
from mean_jax.errors import UserError
from mean_jax.labels import LabelConstants
from mean_jax.models import mdan
from mean_jax.models.mdan import Mdan, MdanConfig
from tests import mdan_oracle
from tests.model_inputs import plain_constants, take_rows, whole_targets

B, C, N = 24, 5, 4
RNG = np.random.default_rng(5)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
CONSTANTS = plain_constants(C)
# Half zeros, some other values twice, one of them the cap.
Y = np.where(RNG.random((B, 2)) < 0.5, 0.0, RNG.lognormal(0.5, 1.0, (B, 2))).astype(np.float32)
Y[:4] = [[3.0, 20.0], [3.0, 20.0], [20.0, 1.0], [20.0, 1.0]]
BUCKETS = np.where(Y > 0, 1 + (Y > 0.7) + (Y > 1.5), 0).astype(np.int32)
RATES = (0.3, 0.6)
SMALL = MdanConfig(bottom_sizes=(8, 6), channel_sizes=(7, 5), clc_sizes=(6, 4))
RANKSIM = dataclasses.replace(SMALL, distance="ranksim")


def label_constants(num_horizons):
    rates = np.float32(RATES[:num_horizons])
    quantiles = np.tile(np.linspace(0.1, 20.0, 11, dtype=np.float32), (num_horizons, 1))
    return LabelConstants(np.ones_like(rates), np.ones((num_horizons, N - 1), np.float32), quantiles, rates)


def targets(num_horizons=1, known=None):
    known = np.ones((B, num_horizons), bool) if known is None else known
    return whole_targets(Y[:, :num_horizons], known, BUCKETS[:, :num_horizons])


class Built(NamedTuple):
    """A model with parameters and its compiled functions."""

    model: Mdan
    params: Any
    apply: Any  # (params, x, key or None) -> outputs, in training mode with a key
    loss: Any  # (outputs, targets, label constants) -> total, terms
    gradients: Any  # (params, x, targets, label constants) -> total, gradients, in evaluation mode


@functools.cache
def build(config=SMALL, num_horizons=1):
    model = Mdan(config, EncoderConfig(), CONSTANTS, num_horizons, N)
    constants = label_constants(num_horizons)

    def apply(params, x, key):
        rngs = {} if key is None else {"sample": key}
        rows = (x, CODES[: len(x)], MASK[: len(x)], constants)
        return model.apply({"params": params}, *rows, train=key is not None, rngs=rngs)

    def loss(params, x, target, constants):
        return model.loss(apply(params, x, None), target, constants)[0]

    init = jax.jit(lambda key: model.init(key, X, CODES, MASK, constants, False)["params"])
    leaves, tree = jax.tree.flatten(init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    compiled = (jax.jit(apply), jax.jit(model.loss), jax.jit(jax.value_and_grad(loss)))
    return Built(model, tree.unflatten(moved), *compiled)


def test_ranks_and_their_gradient_have_the_golden_values():
    """BASELINES.md 4.4."""
    similarity, target = jnp.array([0.9, 0.1, 0.5, 0.3]), jnp.array([0.25, 0.5, 0.75, 1.0])
    valid = jnp.ones(4, bool)
    assert mdan.ranks(similarity, valid, 2.0).tolist() == [0.25, 1.0, 0.5, 0.75]
    gradient = jax.grad(lambda v: jnp.sum((mdan.ranks(v, valid, 2.0) - target) ** 2))(similarity)
    np.testing.assert_allclose(gradient, [0.125, -0.375, 0.125, 0.125], rtol=1e-6)


def test_ranks_of_valid_entries_are_those_of_the_subset_and_ties_go_by_position():
    values = np.float32(RNG.integers(0, 6, 20))
    valid = RNG.random(20) < 0.6
    incoming = np.float32(RNG.normal(size=20) * valid)
    rank, pull = jax.vjp(lambda v: mdan.ranks(v, jnp.asarray(valid), 2.0), jnp.asarray(values))
    np.testing.assert_allclose(np.asarray(rank)[valid], mdan_oracle.rank(values[valid]), rtol=1e-6)
    gradient = np.asarray(pull(jnp.asarray(incoming))[0])
    expected = mdan_oracle.rank_gradient(values[valid], incoming[valid], 2.0)
    np.testing.assert_allclose(gradient[valid], expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).max() > 0
    assert (np.asarray(rank)[~valid] == 0).all() and (gradient[~valid] == 0).all()


@pytest.mark.parametrize("limit", [2, 5, 100])
@pytest.mark.parametrize("share_known", [1.0, 0.6, 0.0])
def test_anchors_are_the_first_known_rows_with_distinct_labels(limit, share_known):
    known, priority = RNG.random(B) < share_known, RNG.random(B).astype(np.float32)
    index, valid = mdan.choose_anchors(jnp.asarray(Y[:, 0]), jnp.asarray(priority), jnp.asarray(known), limit)
    assert index.shape == valid.shape == (min(limit, B),)
    expected = mdan_oracle.anchors(Y[:, 0], priority, known, limit)
    assert np.asarray(index)[np.asarray(valid)].tolist() == expected


def test_the_survivor_of_a_label_is_random_in_training_and_the_first_row_without():
    built = build()
    zeros = np.flatnonzero(Y[:, 0] == 0)
    still = built.apply(built.params, X, None)["priority"]
    assert np.asarray(still)[:, 0].tolist() == list(range(B))

    @jax.jit
    @jax.vmap
    def survivor(key):
        priority = built.apply(built.params, X, key)["priority"][:, 0]
        index, valid = mdan.choose_anchors(jnp.asarray(Y[:, 0]), priority, jnp.asarray(MASK), B)
        return jnp.max(jnp.where(valid & (jnp.asarray(Y[:, 0])[index] == 0), index, -1))

    count = 600
    rows, counts = np.unique(survivor(jax.random.split(jax.random.key(2), count)), return_counts=True)
    assert rows.tolist() == zeros.tolist()
    expected = count / len(zeros)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def embeddings(rows=B, width=5):
    e = RNG.normal(size=(rows, width)).astype(np.float32)
    priority = RNG.random(rows).astype(np.float32)
    chosen = mdan_oracle.anchors(Y[:, 0], priority, MASK, 9)
    index, valid = mdan.choose_anchors(jnp.asarray(Y[:, 0]), jnp.asarray(priority), jnp.asarray(MASK), 9)
    return e, index, valid & (jnp.arange(9) < 7), chosen[:7]  # two of the anchors invalid


def test_pairwise_loss_equals_the_loop_over_pairs():
    e, index, valid, rows = embeddings()
    anchors = (jnp.asarray(e)[index], jnp.asarray(Y[:, 0])[index], valid)
    loss = jax.jit(mdan.pairwise_loss)(*anchors, jnp.float32(20.0))
    assert float(loss) == pytest.approx(mdan_oracle.pairwise(np.float64(e), Y[:, 0], rows, 20.0), rel=1e-5)


def test_a_zero_embedding_has_no_cosine_and_no_gradient():
    e = RNG.normal(size=(4, 3)).astype(np.float32)
    e[1] = 0.0
    weights = RNG.normal(size=(4, 4)).astype(np.float32)
    cosines, pull = jax.vjp(mdan.cosine_similarities, jnp.asarray(e))
    (gradient,) = pull(jnp.asarray(weights))
    assert (np.asarray(cosines)[1] == 0).all() and (np.asarray(cosines)[:, 1] == 0).all()
    assert float(cosines[0, 2]) == pytest.approx(mdan_oracle.cosine(e[0], e[2]), rel=1e-5)
    assert (np.asarray(gradient)[1] == 0).all() and np.abs(np.asarray(gradient)[[0, 2, 3]]).max() > 1e-3


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ranksim_loss_and_gradient_equal_the_loop_over_anchors(reduction):
    e, index, valid, rows = embeddings()

    def loss(values):
        return mdan.ranksim_loss(values[index], jnp.asarray(Y[:, 0])[index], valid, 2.0, reduction)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(e))
    divisor = len(rows) if reduction == "mean" else 1
    expected, by_similarity = mdan_oracle.ranksim(np.float64(e), Y[:, 0], rows)
    assert float(value) == pytest.approx(expected / divisor, rel=1e-5)
    assert np.abs(by_similarity).max() > 0

    def through_similarities(values):  # its derivative by e is the chain rule behind the gradient by S
        s = np.array([[mdan_oracle.cosine(values[i], values[j]) for j in rows] for i in rows])
        return np.sum(by_similarity * s) / divisor

    for row, column in ((rows[0], 0), (rows[1], 3), (rows[6], 2)):
        moved = [np.float64(e), np.float64(e)]
        moved[0][row, column] += 1e-6
        moved[1][row, column] -= 1e-6
        slope = (through_similarities(moved[0]) - through_similarities(moved[1])) / 2e-6
        assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert (np.asarray(gradient)[[row for row in range(B) if row not in rows]] == 0).all()


def test_class_weights():
    weights = mdan.class_weights(jnp.array([0.3, 0.05]), N)
    for k, rate in enumerate((0.3, 0.05)):
        np.testing.assert_allclose(weights[k], mdan_oracle.class_weights(rate, N), rtol=1e-5)
    # Buckets that no label falls in do not take the weight of the others.
    np.testing.assert_allclose(mdan.class_weights(jnp.array([0.0, 1.0]), 4), [[1, 0, 0, 0], [0, 1, 1, 1]])


def oracle_terms(config, params, num_horizons, known):
    """Sums over horizons of regression, cross entropy and distance, for priorities in the order of rows."""
    is_linear = config.channel_output == "linear"
    total = np.zeros(3)
    for k, head in enumerate(mdan_oracle.forward(np.float64(X), params, N, num_horizons, is_linear)):
        weights = mdan_oracle.class_weights(RATES[k], N)
        delta = config.huber_delta if config.regression == "huber" else None
        rows = mdan_oracle.anchors(Y[:, k], np.arange(B), known[:, k], config.num_anchors)
        if config.distance == "pairwise":
            distance = mdan_oracle.pairwise(head[0], Y[:, k], rows, 20.0)
        else:
            distance = mdan_oracle.ranksim(head[0], Y[:, k], rows)[0]
            distance /= len(rows) if config.anchor_reduction == "mean" else 1
        parts = mdan_oracle.regression_and_entropy(head, Y[:, k], BUCKETS[:, k], known[:, k], weights, delta)
        total += [*parts, distance]
    return total


VARIANTS = {
    "default": SMALL,
    "weights": dataclasses.replace(SMALL, classification_weight=0.3, distance_weight=2.0, num_anchors=6),
    "huber": dataclasses.replace(SMALL, regression="huber", huber_delta=0.7),
    "ranksim": RANKSIM,
    "ranksim_sum": dataclasses.replace(RANKSIM, anchor_reduction="sum", distance_weight=0.01),
    "linear": dataclasses.replace(SMALL, channel_output="linear"),
}


@pytest.mark.parametrize(("name", "num_horizons"), [*((name, 1) for name in VARIANTS), ("default", 2), ("ranksim", 2)])
def test_forward_and_loss_equal_the_numpy_version(name, num_horizons):
    config = dataclasses.replace(VARIANTS[name], multi_task=num_horizons > 1)
    built, constants = build(config, num_horizons), label_constants(num_horizons)
    outputs = built.apply(built.params, X, None)
    heads = mdan_oracle.forward(np.float64(X), built.params, N, num_horizons, config.channel_output == "linear")
    for k, (e, value, v) in enumerate(heads):
        np.testing.assert_allclose(outputs["embedding"][:, k], e, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(built.model.predict(outputs, constants)[:, k], value, rtol=1e-3, atol=1e-5)
        buckets = built.model.bucket_probabilities(outputs)[:, k]
        np.testing.assert_allclose(buckets, mdan_oracle.softmax(v), rtol=1e-3, atol=1e-6)
    known = RNG.random((B, num_horizons)) < 0.7
    total, terms = built.loss(outputs, targets(num_horizons, known), constants)
    expected = oracle_terms(config, built.params, num_horizons, known)
    parts = [terms.pop(name) for name in ("regression", "cross_entropy", "distance")]
    assert not terms
    np.testing.assert_allclose(parts, expected, rtol=1e-3)
    weights = (1.0, config.classification_weight, config.distance_weight)
    assert float(total) == pytest.approx(expected @ weights, rel=1e-3)


def test_gradients_equal_finite_differences_of_the_numpy_version():
    config = dataclasses.replace(SMALL, multi_task=True, distance_weight=3.0)
    built = build(config, 2)
    known = np.ones((B, 2), bool)
    _, gradients = built.gradients(built.params, X, targets(2), label_constants(2))
    for path in (
        ("bottom", "Dense_0", "kernel"),
        ("head_0", "channels", "kernel_0"),
        ("head_1", "channels", "bias_1"),
        ("head_1", "clc", "Dense_2", "kernel"),
        ("head_0", "value", "kernel"),
    ):
        gradient = gradients
        for name in path:
            gradient = gradient[name]
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), gradient.shape)
        values = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), built.params)
            leaf = moved
            for name in path:
                leaf = leaf[name]
            leaf[index] += step
            values.append(oracle_terms(config, moved, 2, known) @ (1.0, 1.0, 3.0))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-3), path


BOTH = pytest.mark.parametrize("config", [SMALL, RANKSIM], ids=["pairwise", "ranksim"])


@BOTH
def test_rows_without_a_label_change_nothing(config):
    built, constants = build(config), label_constants(1)
    known = np.arange(B)[:, None] < 15
    dirty = np.where(known, X, 1e3).astype(np.float32)
    value, gradients = built.gradients(built.params, dirty, targets(1, known), constants)
    clean, clean_gradients = built.gradients(built.params, X, targets(1, known), constants)
    assert float(value) == pytest.approx(float(clean), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, clean_gradients)
    subset = take_rows(built.apply(built.params, X, None), targets(), slice(15))
    assert float(built.loss(*subset, constants)[0]) == pytest.approx(float(value), rel=1e-5)
    none, gradients = built.gradients(built.params, X, targets(1, np.zeros((B, 1), bool)), constants)
    assert none == 0.0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


@BOTH
def test_the_loss_does_not_depend_on_the_order_of_rows(config):
    built, constants = build(config), label_constants(1)
    order = RNG.permutation(B)
    outputs = built.apply(built.params, X, jax.random.key(3))
    loss, _ = built.loss(outputs, targets(), constants)
    moved, _ = built.loss(*take_rows(outputs, targets(), order), constants)
    assert float(moved) == pytest.approx(float(loss), rel=1e-5)
    permuted = built.apply(built.params, X[order], None)["value"]
    np.testing.assert_allclose(permuted, np.asarray(outputs["value"])[order], rtol=1e-4, atol=1e-5)


@BOTH
def test_extremes_have_finite_losses_and_gradients(config):
    built, constants = build(config), label_constants(1)
    dead = jax.tree.map(jnp.zeros_like, built.params)  # every embedding is 0
    only_zeros = targets()._replace(scaled=jnp.zeros((B, 1)), bucket=jnp.zeros((B, 1), jnp.int32))
    no_range = constants._replace(quantiles=np.zeros((1, 11), np.float32), positive_rate=np.zeros(1, np.float32))
    for params, x in ((built.params, np.zeros_like(X)), (built.params, np.full_like(X, 1e4)), (dead, X)):
        for target, labels in ((targets(), constants), (only_zeros, no_range)):
            value, gradients = built.gradients(params, x, target, labels)
            assert np.isfinite(value)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@BOTH
def test_replicas_in_one_program_equal_each_alone(config):
    built = build(config)
    rest = (X, targets(), label_constants(1))
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), built.params)
    together = jax.vmap(lambda params: built.gradients(params, *rest))(both)
    for r in range(2):
        alone = built.gradients(jax.tree.map(lambda leaf, r=r: leaf[r], both), *rest)
        jax.tree.map(lambda a, b, r=r: np.testing.assert_allclose(a[r], b, rtol=1e-3, atol=1e-5), together, alone)


def test_the_fusion_weights_are_what_the_report_averages():
    built = build(dataclasses.replace(SMALL, compute_dtype="bfloat16"), 2)
    outputs = built.apply(built.params, X, None)
    attention = built.model.diagnostics(outputs)["attention"]
    assert attention.shape == (B, 2, N) and all(leaf.dtype == jnp.float32 for leaf in outputs.values())
    np.testing.assert_allclose(attention.sum(axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"), [("num_anchors", 1), ("channel_sizes", ()), ("interpolation", 0.0), ("distance_weight", -1.0)]
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"--config\.model\.{field}="):
        MdanConfig(**{field: value})
