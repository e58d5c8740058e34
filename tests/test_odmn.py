"""ODMN and MDME against a NumPy version, the golden value of the ordinal towers, degenerate grids and every option."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.config import EncoderConfig
from mean_jax.labels import LabelConstants
from mean_jax.models import mdme
from mean_jax.models.odmn import Odmn, OdmnConfig
from mean_jax.types import EncoderConstants, Targets
from tests import odmn_oracle as oracle

B, C, N, J = 40, 5, 4, 3
P = N - 1
RNG = np.random.default_rng(5)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
CONSTANTS = EncoderConstants(
    np.zeros(C, bool), np.zeros(C, np.float32), np.ones(C, np.float32), np.zeros(C, bool), np.zeros((C, 65)), ()
)
Y = np.where(RNG.random((B, 2)) < 0.4, 0.0, RNG.lognormal(0.0, 1.0, (B, 2))).astype(np.float32)
SMALL = OdmnConfig(
    bottom_sizes=(8, 6), tower_sizes=(7, 5), num_sub_buckets=J, mono_size=6, expert_sizes=(6,), num_experts=2
)


def label_constants(num_horizons=2):
    quantiles = [np.quantile(Y[Y[:, k] > 0, k], np.linspace(0, 1, 101)) for k in range(num_horizons)]
    ones = np.ones(num_horizons, np.float32)
    return LabelConstants(ones, np.ones((num_horizons, P), np.float32), np.array(quantiles, np.float32), 0.6 * ones)


def targets(num_horizons=2, mask=None):
    known = np.ones((B, num_horizons), bool) if mask is None else mask
    return Targets(jnp.asarray(Y[:, :num_horizons]), jnp.zeros((B, num_horizons), jnp.int32), jnp.asarray(known))


def build(config=SMALL, num_horizons=2):
    model = Odmn(config, EncoderConfig(), CONSTANTS, num_horizons, N)
    variables = jax.jit(model.init, static_argnums=5)(
        jax.random.key(0), X, CODES, MASK, label_constants(num_horizons), False
    )
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, tree.unflatten(moved)


def apply(model, params, x=X):
    constants = label_constants(model.num_horizons)
    return jax.jit(lambda params: model.apply({"params": params}, x, CODES, MASK, constants, True))(params)


VARIANTS = {
    "defaults": SMALL,
    "coral": dataclasses.replace(SMALL, ordinal="coral"),
    "survival": dataclasses.replace(SMALL, mono_input="survival"),
    "no_mono": dataclasses.replace(SMALL, mono=False),
    "mmoe": dataclasses.replace(SMALL, backbone="mmoe"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_losses_and_decodings_equal_the_numpy_version(name):
    config = VARIANTS[name]
    model, params = build(config)
    outputs = apply(model, params)
    constants = label_constants()
    expected = oracle.forward(X.astype(np.float64), params, constants.quantiles, config, P)
    for k, head in enumerate(expected):
        for key, value in head.items():
            np.testing.assert_allclose(outputs[key][:, k], value, rtol=1e-3, atol=1e-4, err_msg=key)
    known = RNG.random((B, 2)) < 0.8
    loss, terms = model.loss(outputs, targets(2, known), constants)
    wanted = oracle.loss_terms(expected, Y, known, constants.quantiles, P, J)
    assert set(terms) == set(wanted)
    for term, value in wanted.items():
        assert float(terms[term]) == pytest.approx(value, rel=2e-3, abs=1e-5), term
    assert float(loss) == pytest.approx(sum(wanted.values()), rel=2e-3)
    hard = model.predict(outputs, constants)
    np.testing.assert_allclose(hard, oracle.decode(expected, constants.quantiles, P, J, "hard"), rtol=1e-3, atol=1e-5)
    soft = Odmn(dataclasses.replace(config, decode="expected"), EncoderConfig(), CONSTANTS, 2, N)
    np.testing.assert_allclose(
        soft.predict(outputs, constants), oracle.decode(expected, constants.quantiles, P, J, "expected"), rtol=1e-3
    )
    np.testing.assert_allclose(model.bucket_probabilities(outputs).sum(axis=-1), 1.0, rtol=1e-5)


def test_ordinal_probabilities_have_the_golden_values():
    """BASELINES.md 3.2: q = (.9, .6, .7, .1) gives s = (.0909, .2727, 0, .5455, .0909)."""
    q = np.array([0.9, 0.6, 0.7, 0.1])
    logits = jnp.asarray(np.log(q / (1 - q)), jnp.float32)
    expected = [0.0909, 0.2727, 0.0, 0.5455, 0.0909]
    np.testing.assert_allclose(mdme.ordinal_probabilities(logits, jnp.ones(5, bool)), expected, atol=5e-5)
    without = mdme.ordinal_probabilities(logits, jnp.array([True, True, True, False, True]))
    np.testing.assert_allclose(without, np.array([0.1, 0.3, 0.0, 0.0, 0.1]) / 0.5, atol=1e-5)


def test_ordinal_loss_is_the_sum_of_binary_cross_entropies():
    logits, label = RNG.normal(size=(6, 3)), np.array([0, 1, 2, 3, 0, 3])
    p = 1 / (1 + np.exp(-logits))
    above = label[:, None] > np.arange(3)
    expected = -(above * np.log(p) + ~above * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(mdme.ordinal_loss(jnp.float32(logits), jnp.asarray(label)), expected, rtol=1e-5)


def test_every_label_lies_in_its_bucket_and_its_bias_gives_it_back():
    constants = label_constants()
    grid = jax.tree.map(lambda leaf: leaf[0], mdme.make_grid(constants, P, J))
    labels = np.append(Y[:, 0], [0.0, 1e-9, constants.quantiles[0, -1], 1e3]).astype(np.float32)
    where = mdme.locate(grid, jnp.asarray(labels))
    assert (np.asarray(where.sub_distribution)[labels == 0] == 0).all()
    positive = labels > 0
    p, j = np.asarray(where.sub_distribution)[positive] - 1, np.asarray(where.bucket)[positive]
    low, width = np.asarray(grid.low)[p, j], np.asarray(grid.width)[p, j]
    back = low + np.asarray(where.bias)[positive] * width
    np.testing.assert_allclose(back[:-1], labels[positive][:-1], rtol=1e-5)
    assert back[-1] == pytest.approx(constants.quantiles[0, -1], rel=1e-6)  # beyond the last edge
    assert (labels[positive][:-1] <= (low + width)[:-1] * (1 + 1e-6)).all() and (labels[positive] > low).all()
    counts = np.bincount(np.asarray(where.sub_distribution)[:B], minlength=N)[1:]
    assert counts.max() - counts.min() <= 2  # equal shares of the positive training labels


def test_coinciding_quantiles_are_buckets_without_probability():
    """A price that most customers pay: edges coincide, the empty buckets get no mass and take nothing from others."""
    quantiles = np.full((1, 101), 2.0, np.float32)
    quantiles[0, 90:] = np.linspace(2.0, 5.0, 11)
    constants = label_constants(1)._replace(quantiles=quantiles)
    grid = mdme.make_grid(constants, P, J)
    assert np.asarray(grid.has_bucket[0]).sum() == 2 and np.asarray(grid.has_class[0]).tolist() == [
        True,
        True,
        False,
        True,
    ]
    model = Odmn(SMALL, EncoderConfig(), CONSTANTS, 1, N)
    params = model.init(jax.random.key(0), X, CODES, MASK, constants, False)["params"]
    y = np.where(np.arange(B) % 2 == 0, 2.0, np.where(np.arange(B) % 3 == 0, 0.0, 4.0)).astype(np.float32)[:, None]
    where = mdme.locate(jax.tree.map(lambda leaf: leaf[0], grid), jnp.asarray(y[:, 0]))
    assert set(np.asarray(where.sub_distribution).tolist()) == {0, 1, 3}

    def loss(params):
        outputs = model.apply({"params": params}, X, CODES, MASK, constants, True)
        known = Targets(jnp.asarray(y), jnp.zeros((B, 1), jnp.int32), jnp.ones((B, 1), bool))
        return model.loss(outputs, known, constants)[0], outputs

    (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    joint = np.asarray(mdme.joint_probabilities(jax.tree.map(lambda leaf: leaf[:, 0], outputs)))
    np.testing.assert_allclose(joint.sum(axis=1), 1.0, rtol=1e-5)
    empty = ~np.asarray(grid.has_bucket[0]).reshape(-1)
    assert (joint[:, 1:][:, empty] == 0.0).all()


def test_gradients_equal_finite_differences_of_the_numpy_version():
    config = dataclasses.replace(SMALL, stop_teacher=False)  # a stopped gradient is not a difference
    model, params = build(config)
    constants, known = label_constants(), np.ones((B, 2), bool)
    gradients = jax.grad(lambda p: model.loss(apply(model, p), targets(), constants)[0])(params)

    def loss(params):
        heads = oracle.forward(X.astype(np.float64), params, constants.quantiles, config, P)
        return sum(oracle.loss_terms(heads, Y, known, constants.quantiles, P, J).values())

    for path in (
        ("head_1", "towers", "kernel_0"),
        ("head_1", "dct", "kernel"),
        ("head_1", "bbt", "bias_0"),
        ("head_1", "bot", "score", "kernel_0"),
        ("mono_1", "bucket"),
    ):
        gradient = gradients
        for name in path:
            gradient = gradient[name]
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), params)
            leaf = moved
            for name in path:
                leaf = leaf[name]
            leaf[index] += step
            values.append(loss(moved))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=5e-3), path


def gradient_size(tree):
    return float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_gradients_stop_at_teachers_and_between_horizons():
    model, params = build()
    constants = label_constants()

    def term(name, horizon=None):
        def value(params):
            known = None if horizon is None else np.tile(np.arange(2) == horizon, (B, 1))
            return model.loss(apply(model, params), targets(2, known), constants)[1][name]

        return jax.grad(value)(params)

    distillation = term("class_distillation")
    assert gradient_size(distillation["head_0"]["dot"]) == 0.0 and gradient_size(distillation["head_0"]["dct"]) > 0.0
    later = term("class", 1)
    assert gradient_size(later["mono_1"]) > 0.0
    assert gradient_size(later["head_0"]) == 0.0  # through the mono unit nothing reaches the shorter horizon
    calibration = term("calibration")
    assert gradient_size(calibration["head_0"]["dct"]) > 0.0 and gradient_size(calibration["head_1"]["bct"]) > 0.0


def test_mono_weights_are_never_negative_and_raise_every_logit():
    model, params = build()
    params = jax.tree.map(lambda leaf: leaf, params)
    params["mono_1"]["hidden"] = params["mono_1"]["hidden"] - 50.0
    closed = apply(model, params)
    opened = apply(model, build()[1])
    assert (np.asarray(opened["class"][:, 1] - closed["class"][:, 1]) >= -1e-6).all()
    np.testing.assert_array_equal(opened["class"][:, 0], closed["class"][:, 0])


def test_coral_exceedances_are_in_order():
    model, params = build(dataclasses.replace(SMALL, ordinal="coral"))
    outputs = apply(model, params)
    for name in ("class_ordinal", "bucket_ordinal"):
        assert (np.diff(np.asarray(outputs[name]), axis=-1) < 0).all()


def test_one_horizon_is_mdme_alone_and_the_running_maximum_keeps_order():
    model, params = build(num_horizons=1)
    outputs = apply(model, params)
    _, terms = model.loss(outputs, targets(1), label_constants(1))
    assert float(terms["calibration"]) == 0.0 and "mono_1" not in params
    ordered = Odmn(dataclasses.replace(SMALL, running_maximum=True), EncoderConfig(), CONSTANTS, 2, N)
    model, params = build()
    outputs = {name: value[:, ::-1] for name, value in apply(model, params).items()}
    values = np.asarray(ordered.predict(outputs, label_constants()))
    plain = np.asarray(model.predict(outputs, label_constants()))
    np.testing.assert_array_equal(values, np.maximum.accumulate(plain, axis=1))
    assert (np.diff(plain, axis=1) < 0).any()


def test_unknown_rows_change_nothing_and_extremes_are_finite():
    model, params = build()
    constants, known = label_constants(), np.tile(np.arange(B)[:, None] < 25, (1, 2))
    dirty = np.where(known[:, :1], X, 1e3).astype(np.float32)
    clean_loss = model.loss(apply(model, params), targets(2, known), constants)[0]
    assert float(model.loss(apply(model, params, dirty), targets(2, known), constants)[0]) == pytest.approx(
        float(clean_loss), rel=1e-5
    )
    for x in (np.zeros_like(X), np.full_like(X, 1e4), np.full_like(X, -1e4)):
        value, gradients = jax.value_and_grad(lambda p, x=x: model.loss(apply(model, p, x), targets(), constants)[0])(
            params
        )
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
