"""ODMN and MDME against a NumPy version, golden values, labels on and beyond edges, empty buckets, every option."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.config import EncoderConfig, LabelConfig
from mean_jax.errors import UserError
from mean_jax.labels import LabelConstants, fit_label_constants, make_targets
from mean_jax.models import mdme
from mean_jax.models.odmn import Odmn, OdmnConfig, calibration_loss
from tests import odmn_oracle as oracle
from tests.model_inputs import plain_constants, take_rows, whole_targets

B, C, N, J = 40, 5, 4, 3
P = N - 1
RNG = np.random.default_rng(5)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
CONSTANTS = plain_constants(C)
SPREAD = np.where(RNG.random((B, 2)) < 0.4, 0.0, RNG.lognormal(0.0, 1.0, (B, 2))).astype(np.float32)
# Three prices of which one is most customers': of the 3 x 3 buckets only 4 are not empty, and one sub-distribution is.
PRICES = np.where(SPREAD > 0, RNG.choice([0.3, 2.0, 5.0], (B, 2), p=[0.05, 0.75, 0.2]), 0.0).astype(np.float32)
TIED = np.concatenate([PRICES[:, :1], SPREAD[:, 1:]], axis=1)
SCALE = np.array([1.5, 0.8], np.float32)
SMALL = OdmnConfig(
    bottom_sizes=(8, 6), tower_sizes=(7, 5), num_sub_buckets=J, mono_size=6, expert_sizes=(6,), num_experts=2
)


def label_constants(y):
    quantiles = [np.quantile(column[column > 0], np.linspace(0, 1, 101)) for column in y.T]
    rates = np.full(y.shape[1], 0.6, np.float32)
    edges = np.ones((y.shape[1], P), np.float32)
    return LabelConstants(SCALE[: y.shape[1]], edges, np.array(quantiles, np.float32), rates)


def targets(y, known=None):
    known = np.ones(y.shape, bool) if known is None else known
    return whole_targets(y, known)


class Built(NamedTuple):
    """A model with parameters and its compiled functions."""

    model: Odmn
    constants: LabelConstants
    edges: list[np.ndarray]  # of each horizon, for the NumPy version
    params: Any  # moved from where they start, so that every parameter shows
    apply: Any  # (params, x) -> outputs
    loss: Any  # (outputs, targets) -> total, terms
    predict: Any  # (outputs, decode, running_maximum) -> predictions
    gradients: Any  # (params, x, targets) -> total, gradients


@functools.cache
def build(config=SMALL, num_horizons=2, is_tied=False):
    y = (TIED if is_tied else SPREAD)[:, :num_horizons]
    constants = label_constants(y)
    model = Odmn(config, EncoderConfig(), CONSTANTS, num_horizons, N)

    def apply(params, x):
        rows = (x, np.zeros((len(x), 0), np.int32), np.ones(len(x), bool), constants)
        return model.apply({"params": params}, *rows, train=True)

    def loss(outputs, target):
        return model.loss(outputs, target, constants)

    def predict(outputs, decode, running_maximum=False):
        changed = dataclasses.replace(config, decode=decode, running_maximum=running_maximum)
        return model.clone(config=changed).predict(outputs, constants)

    init = jax.jit(lambda key: model.init(key, X, CODES, MASK, constants, False)["params"])
    leaves, tree = jax.tree.flatten(init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    gradients = jax.value_and_grad(lambda params, x, target: loss(apply(params, x), target)[0])
    edges = [oracle.edges_of(quantiles, P, J) for quantiles in constants.quantiles]
    predict = jax.jit(predict, static_argnums=(1, 2))
    functions = (jax.jit(apply), jax.jit(loss), predict, jax.jit(gradients))
    return Built(model, constants, edges, tree.unflatten(moved), *functions)


VARIANTS = {
    "defaults": (SMALL, False),
    "tied": (SMALL, True),
    "coral, survival": (dataclasses.replace(SMALL, ordinal="coral", mono_input="survival"), True),
    "mmoe, no mono": (dataclasses.replace(SMALL, backbone="mmoe", mono=False), False),
    "weights": (
        dataclasses.replace(
            SMALL, ordinal_weight=0.3, distillation_weight=0.5, bias_weight=2.0, calibration_weight=0.7
        ),
        True,
    ),
}


@pytest.mark.parametrize(("name", "num_horizons"), [*((name, 2) for name in VARIANTS), ("defaults", 1), ("tied", 1)])
def test_forward_losses_and_decodings_equal_the_numpy_version(name, num_horizons):
    """Where labels tie, the NumPy version has deleted what is empty: probability 0 is the same as merging."""
    config, is_tied = VARIANTS[name]
    built = build(config, num_horizons, is_tied)
    y = (TIED if is_tied else SPREAD)[:, :num_horizons]
    outputs = built.apply(built.params, X)
    heads = oracle.forward(X.astype(np.float64), built.params, built.edges, config, P)
    for k, head in enumerate(heads):
        buckets, classes = oracle.possible(built.edges[k], P)
        expected = head | {
            "class": np.where(classes, head["class"], mdme.EMPTY_LOGIT),
            "bucket": np.where(buckets, head["bucket"], mdme.EMPTY_LOGIT),
        }
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key][:, k], value, rtol=1e-3, atol=1e-4, err_msg=key)
    known = RNG.random(y.shape) < 0.8
    total, terms = built.loss(outputs, targets(y, known))
    wanted = oracle.loss_terms(heads, y, known, built.edges, SCALE)
    assert set(terms) == set(wanted)
    for term, value in wanted.items():
        assert float(terms[term]) == pytest.approx(value, rel=2e-3, abs=1e-5), term
    weight = {"ordinal": config.ordinal_weight, "distillation": config.distillation_weight, "bias": config.bias_weight}
    weight["calibration"] = config.calibration_weight
    weighted = [value * weight.get(term.split("_")[-1], 1.0) for term, value in wanted.items()]
    assert float(total) == pytest.approx(sum(weighted), rel=2e-3)
    for how in ("hard", "expected"):
        expected = oracle.decode(heads, built.edges, how)
        np.testing.assert_allclose(built.predict(outputs, how), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(built.model.bucket_probabilities(outputs).sum(axis=-1), 1.0, rtol=1e-5)


def test_the_tied_labels_leave_buckets_and_a_sub_distribution_empty():
    buckets, classes = oracle.possible(build(SMALL, 2, True).edges[0], P)
    assert 2 <= buckets.sum() < P * J and not classes.all()


def test_ordinal_probabilities_have_the_golden_values():
    """BASELINES.md 3.2: q = (.9, .6, .7, .1) gives s = (.0909, .2727, 0, .5455, .0909)."""
    q = np.array([0.9, 0.6, 0.7, 0.1])
    logits = jnp.asarray(np.log(q / (1 - q)), jnp.float32)
    expected = [0.0909, 0.2727, 0.0, 0.5455, 0.0909]
    np.testing.assert_allclose(mdme.ordinal_probabilities(logits, jnp.ones(5, bool)), expected, atol=5e-5)
    merged = {  # what is left of q when the other classes are gone
        (True, True, True, False, True): [0.1, 0.3, 0.0, 0.0, 0.7],
        (False, True, True, True, True): [0.0, 0.4, 0.0, 0.6, 0.1],
        (True, True, True, True, False): [0.1, 0.3, 0.0, 0.7, 0.0],
        (False, True, False, False, False): [0.0, 1.0, 0.0, 0.0, 0.0],
        (False,) * 5: [0.0] * 5,
    }
    for is_possible, steps in merged.items():
        result = mdme.ordinal_probabilities(logits, jnp.array(is_possible))
        np.testing.assert_allclose(result, np.array(steps) / max(sum(steps), 1.0), atol=1e-6, err_msg=str(is_possible))


def test_ordinal_loss_is_the_sum_of_binary_cross_entropies():
    logits, label = RNG.normal(size=(6, 3)), np.array([0, 1, 2, 3, 0, 3])
    p = 1 / (1 + np.exp(-logits))
    entropy = -np.where(label[:, None] > np.arange(3), np.log(p), np.log(1 - p))
    for is_possible, counted in {
        (1, 1, 1, 1): [0, 1, 2],
        (1, 0, 1, 1): [0, 2],
        (0, 1, 1, 0): [1],
        (0, 1, 0, 0): [],
    }.items():
        result = mdme.ordinal_loss(jnp.float32(logits), jnp.asarray(label), jnp.array(is_possible, bool)[None])
        np.testing.assert_allclose(result, entropy[:, counted].sum(axis=1), rtol=1e-5)


def test_every_label_lies_in_its_bucket_and_its_bias_gives_it_back():
    largest = SPREAD[:, 0].max()
    grid = jax.tree.map(lambda leaf: leaf[0], mdme.make_grid(label_constants(SPREAD), P, J))
    labels = np.append(SPREAD[:, 0], [0.0, 1e-9, largest, 1e3]).astype(np.float32)
    where = mdme.locate(grid, jnp.asarray(labels))
    is_positive = labels > 0
    np.testing.assert_array_equal(np.asarray(where.sub_distribution) > 0, is_positive)
    assert not np.asarray(where.bias)[~is_positive].any() and not np.asarray(where.bucket)[~is_positive].any()
    p, j = np.asarray(where.sub_distribution)[is_positive] - 1, np.asarray(where.bucket)[is_positive]
    low, width = np.asarray(grid.low)[p, j], np.asarray(grid.width)[p, j]
    bounded = np.minimum(labels[is_positive], largest)
    np.testing.assert_allclose(low + np.asarray(where.bias)[is_positive] * width, bounded, rtol=1e-5)
    assert (bounded <= (low + width) * (1 + 2e-6)).all() and (bounded > low).all()
    counts = np.bincount(p[:-3] * J + j[:-3], minlength=P * J)
    assert counts.max() - counts.min() <= 1  # equal shares of the positive training labels


@pytest.mark.parametrize("transform", ["linear", "log1p"])
@pytest.mark.parametrize("scale", ["auto", 7.3])
def test_a_price_is_in_the_sub_distribution_of_its_bucket_and_never_in_an_empty_one(transform, scale):
    """A price that many pay is an edge, computed in float64 on one way and in float32 on the other."""
    config = LabelConfig(num_buckets=5, transform=transform, scale=scale)
    prices = RNG.uniform(0.5, 90.0, (30, 4)).round(2).astype(np.float32)
    shares = RNG.dirichlet(np.ones(4), 30)
    rows = [RNG.choice(row, 400, p=share) for row, share in zip(prices, shares, strict=True)]
    quantiles = np.stack([np.quantile(row.astype(np.float64), np.linspace(0, 1, 1001)) for row in rows])
    constants = fit_label_constants(quantiles, np.full(30, 0.5), config)
    raw_BxK = np.stack(rows, axis=1)
    target = make_targets(raw_BxK, constants, np.ones(400, bool), config)
    grid = mdme.make_grid(constants, 4, 4)
    locate = jax.jit(jax.vmap(mdme.locate, in_axes=(0, 1), out_axes=1))
    where = locate(grid, target.scaled)
    np.testing.assert_array_equal(where.sub_distribution, target.bucket)
    p, j = np.asarray(where.sub_distribution) - 1, np.asarray(where.bucket)
    assert np.asarray(grid.has_bucket)[np.arange(30)[None], p, j].all()
    beyond = locate(grid, jnp.full((400, 30), 1e6))
    p, j = np.asarray(beyond.sub_distribution) - 1, np.asarray(beyond.bucket)
    assert np.asarray(grid.has_bucket)[np.arange(30)[None], p, j].all() and (np.asarray(beyond.bias) == 1.0).all()


def test_calibration_compares_currency_in_the_unit_of_the_later_horizon():
    value = jnp.array([[2.0, 1.0, 4.0], [1.0, 3.0, 0.0], [9.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    known = jnp.array([[True] * 3, [False, False, True], [False] * 3, [True, False, False]])
    # Currency 20, 5, 40 | 10, 15, 0 | - | 10, 5, 10; neighbours 1-2 count rows 0 and 3, neighbours 2-3 rows 0 and 1.
    expected = (15 / 5 + 5 / 5) / 2 + (0 + 15 / 10) / 2
    assert float(calibration_loss(value, known, np.float32([10.0, 5.0, 10.0]))) == pytest.approx(expected)


@pytest.mark.parametrize("is_tied", [False, True])
def test_gradients_equal_finite_differences_of_the_numpy_version(is_tied):
    config = dataclasses.replace(SMALL, stop_teacher=False)  # a stopped gradient is not a difference
    built, y, known = build(config, 2, is_tied), TIED if is_tied else SPREAD, np.ones((B, 2), bool)
    _, gradients = built.gradients(built.params, X, targets(y))

    def loss(params):
        heads = oracle.forward(X.astype(np.float64), params, built.edges, config, P)
        return sum(oracle.loss_terms(heads, y, known, built.edges, SCALE).values())

    for path in (
        ("head_1", "towers", "kernel_0"),
        ("head_1", "dct", "kernel"),
        ("head_0", "bbt", "bias_0"),
        ("head_1", "bot", "score", "kernel_0"),
        ("mono_1", "bucket"),
    ):
        gradient = functools.reduce(lambda tree, name: tree[name], path, gradients)
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), built.params)
            functools.reduce(lambda tree, name: tree[name], path, moved)[index] += step
            values.append(loss(moved))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=5e-3), path


def gradient_size(tree):
    return float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_gradients_stop_at_teachers_and_between_horizons():
    def sizes(name, known, config=SMALL):
        built = build(config)
        known = np.broadcast_to(known, (B, 2))

        def term(params):
            return built.loss(built.apply(params, X), targets(SPREAD, known))[1][name]

        gradients = jax.jit(jax.grad(term))(built.params)
        return {
            (part, tower): gradient_size(tree)
            for part in ("head_0", "head_1")
            for tower, tree in gradients[part].items()
        } | {("mono_1", ""): gradient_size(gradients["mono_1"])}

    for kind, teacher, student in (("class", "dot", "dct"), ("bucket", "bot", "bct")):
        distillation = sizes(f"{kind}_distillation", True)
        assert distillation["head_0", teacher] == 0.0 and distillation["head_0", student] > 0.0
        flowing = sizes(f"{kind}_distillation", True, dataclasses.replace(SMALL, stop_teacher=False))
        assert flowing["head_0", teacher] > 0.0
    later = sizes("class", [False, True])
    assert later["mono_1", ""] > 0.0 and later["head_1", "dct"] > 0.0
    # Through the mono unit nothing reaches the shorter horizon.
    assert all(size == 0.0 for (part, _), size in later.items() if part == "head_0")
    # The expected value has gradients to all three towers that make it, though the decoding is hard.
    calibration = sizes("calibration", True)
    assert all(calibration[part, tower] > 0.0 for part in ("head_0", "head_1") for tower in ("dct", "bct", "bbt"))


def test_bucket_terms_train_the_towers_of_the_true_sub_distribution_alone():
    built = build()
    outputs = built.apply(built.params, X)
    own = oracle.edges_of(built.constants.quantiles[0], P, J)[::J]
    truth = np.searchsorted(own, SPREAD[:, 0] * (1 - 1e-6), side="left")  # 0 for zeros, else 1 + p

    def bucket_terms(outputs):
        terms = built.loss(outputs, targets(SPREAD, np.tile([True, False], (B, 1))))[1]
        return terms["bucket"] + terms["bucket_ordinal"] + terms["bias"]

    gradients = jax.jit(jax.grad(bucket_terms))(outputs)
    assert not np.asarray(gradients["class"]).any() and not np.asarray(gradients["class_ordinal"]).any()
    for name in ("bucket", "bucket_ordinal", "bias"):
        is_trained = np.asarray(gradients[name][:, 0]).any(axis=-1)
        np.testing.assert_array_equal(is_trained, truth[:, None] == np.arange(1, N)[None])


def test_mono_units_raise_every_logit_with_every_probability():
    built = build()
    opened = built.apply(built.params, X)
    closed_params = built.params | {
        "mono_1": built.params["mono_1"] | {"class": built.params["mono_1"]["class"] - 50.0}
    }
    closed = built.apply(closed_params, X)
    assert (np.asarray(opened["class"][:, 1]) > np.asarray(closed["class"][:, 1])).all()
    np.testing.assert_array_equal(opened["class"][:, 0], closed["class"][:, 0])
    np.testing.assert_allclose(opened["bucket"], closed["bucket"], rtol=1e-6)


def test_coral_exceedances_are_in_order():
    built = build(VARIANTS["coral, survival"][0], 2, True)
    outputs = built.apply(built.params, X)
    for name in ("class_ordinal", "bucket_ordinal"):
        assert (np.diff(np.asarray(outputs[name]), axis=-1) < 0).all()


def test_the_running_maximum_keeps_the_order_in_currency():
    built = build()
    outputs = jax.tree.map(lambda leaf: leaf[:, ::-1], built.apply(built.params, X))  # which are in order by chance
    plain, ordered = (np.asarray(built.predict(outputs, "hard", is_on)) * SCALE for is_on in (False, True))
    np.testing.assert_allclose(ordered, np.maximum.accumulate(plain, axis=1), rtol=1e-6)
    assert (np.diff(plain, axis=1) < 0).any()


@pytest.mark.parametrize("is_tied", [False, True])
def test_rows_without_a_label_change_nothing(is_tied):
    built, y = build(SMALL, 2, is_tied), TIED if is_tied else SPREAD
    known = np.tile(np.arange(B)[:, None] < 25, (1, 2))
    dirty = np.where(known[:, :1], X, 1e3).astype(np.float32)
    value, gradients = built.gradients(built.params, dirty, targets(y, known))
    clean, clean_gradients = built.gradients(built.params, X, targets(y, known))
    assert float(value) == pytest.approx(float(clean), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, clean_gradients)
    subset = take_rows(built.apply(built.params, X), targets(y), slice(25))
    assert float(built.loss(*subset)[0]) == pytest.approx(float(value), rel=1e-5)
    none, gradients = built.gradients(built.params, X, targets(y, np.zeros((B, 2), bool)))
    assert none == 0.0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_row_permutation_permutes_the_outputs():
    built, order = build(), RNG.permutation(B)
    outputs, permuted = (built.apply(built.params, x) for x in (X, X[order]))
    for name, value in permuted.items():
        np.testing.assert_allclose(value, np.asarray(outputs[name])[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("stop_teacher", [False, True])
def test_extremes_have_finite_losses_gradients_and_predictions(is_tied, stop_teacher):
    built = build(dataclasses.replace(SMALL, stop_teacher=stop_teacher), 2, is_tied)
    start = built.apply(built.params, X)
    value_and_grad = jax.jit(jax.value_and_grad(lambda outputs, target: built.loss(outputs, target)[0]))
    is_empty = jax.tree.map(lambda leaf: leaf <= mdme.EMPTY_LOGIT, start)
    for size in (0.0, 300.0):
        signs = {name: jnp.asarray(RNG.choice([-size, size], leaf.shape), jnp.float32) for name, leaf in start.items()}
        outputs = {name: jnp.where(is_empty[name], mdme.EMPTY_LOGIT, signs[name]) for name in start}
        for y in (np.zeros((B, 2)), TIED if is_tied else SPREAD, np.full((B, 2), 1e-6), np.full((B, 2), 1e4)):
            value, gradients = value_and_grad(outputs, targets(np.float32(y)))
            assert 0 <= value < 1e6 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        for how in ("hard", "expected"):
            prediction = np.asarray(built.predict(outputs, how))
            assert (prediction >= 0).all() and (prediction <= built.constants.quantiles[:, -1] * (1 + 1e-5)).all()
    for x in (np.zeros_like(X), np.full_like(X, 1e4), np.full_like(X, -1e4)):
        value, gradients = built.gradients(built.params, x, targets(TIED if is_tied else SPREAD))
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_one_horizon_has_no_mono_unit():
    assert not [name for name in build(SMALL, 1).params if name.startswith("mono")]
    assert [name for name in build(SMALL, 2).params if name.startswith("mono")] == ["mono_1"]


def test_bfloat16_compute_keeps_float32_parameters_and_outputs():
    built = build(dataclasses.replace(SMALL, compute_dtype="bfloat16"))
    outputs = built.apply(built.params, X)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((built.params, outputs)))
    for name, value in build().apply(built.params, X).items():
        np.testing.assert_allclose(outputs[name], value, rtol=0.1, atol=0.2, err_msg=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_sub_buckets", 1),
        ("mono_size", 0),
        ("calibration_weight", -1.0),
        ("tower_sizes", (8, 0)),
        ("tower_sizes", ()),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"--config\.model\.{field}="):
        OdmnConfig(**{field: value})
