"""OptDist against the NumPy version: candidates, selection, pseudo-labels, initial biases, masks and options."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mean_jax.config import EncoderConfig
from mean_jax.errors import UserError
from mean_jax.labels import LabelConstants
from mean_jax.models.optdist import OptDist, OptDistConfig
from tests import optdist_oracle
from tests.mean_oracle import softmax
from tests.model_inputs import plain_constants, take_rows, whole_targets

B, C, L = 24, 5, 3
RNG = np.random.default_rng(7)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
CONSTANTS = plain_constants(C)
Y = np.where(RNG.random((B, 2)) < 0.5, 0.0, RNG.lognormal(0.0, 1.0, (B, 2))).astype(np.float32)
RATES = (0.3, 0.6)
SMALL = OptDistConfig(bottom_sizes=(8, 6), expert_sizes=(7, 5), selector_sizes=(6, 4), num_experts=L)
KEY = jax.random.key(4)


def label_constants(num_horizons):
    rates = np.float32(RATES[:num_horizons])
    quantiles = np.stack([np.quantile(Y[Y[:, k] > 0, k], np.linspace(0, 1, 201)) for k in range(num_horizons)])
    edges = np.ones((num_horizons, 3), np.float32)
    return LabelConstants(np.ones_like(rates), edges, quantiles.astype(np.float32), rates)


def targets(num_horizons=1, known=None):
    known = np.ones((B, num_horizons), bool) if known is None else known
    return whole_targets(Y[:, :num_horizons], known)


class Built(NamedTuple):
    """A model with parameters and its compiled functions."""

    model: OptDist
    start: Any  # parameters as initialised
    params: Any  # moved from there, so that every parameter shows
    apply: Any  # (params, x, key or None) -> outputs, in training mode with a key
    loss: Any  # (outputs, targets) -> total, terms
    gradients: Any  # (params, x, targets) -> total, gradients, in evaluation mode


@functools.cache
def build(config=SMALL, num_horizons=1):
    model = OptDist(config, EncoderConfig(), CONSTANTS, num_horizons, 4)
    constants = label_constants(num_horizons)

    def apply(params, x, key):
        rngs = {} if key is None else {"sample": key}
        rows = (x, np.zeros((len(x), 0), np.int32), np.ones(len(x), bool), constants)
        return model.apply({"params": params}, *rows, train=key is not None, rngs=rngs)

    def loss(outputs, target):
        return model.loss(outputs, target, constants)

    init = jax.jit(lambda key, labels: model.init(key, X, CODES, MASK, labels, False)["params"])
    start = init(jax.random.key(0), constants)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    gradients = jax.value_and_grad(lambda params, x, target: loss(apply(params, x, None), target)[0])
    return Built(model, start, tree.unflatten(moved), jax.jit(apply), jax.jit(loss), jax.jit(gradients))


VARIANTS = {
    "default": SMALL,
    "weights": dataclasses.replace(SMALL, w_fce=0.3, w_kl=0.2, focal_gamma=0.5),
    "reverse": dataclasses.replace(SMALL, kl_direction="label", temperature=0.5, inference="soft"),
    "straight_through": dataclasses.replace(SMALL, selection="straight_through"),
    "random": dataclasses.replace(SMALL, init="random"),
}


def selection_of(config, v):
    soft = softmax(v / config.temperature)
    return np.eye(L)[soft.argmax(axis=1)] if config.selection == "straight_through" else soft


def oracle_loss(config, head, y, known, pseudo):
    terms = optdist_oracle.loss_terms(
        head, y, known, selection_of(config, head[1]), pseudo, config.focal_gamma, config.kl_direction == "label"
    )
    return np.array(terms)


@pytest.mark.parametrize(("name", "num_horizons"), [*((name, 1) for name in VARIANTS), ("default", 2), ("reverse", 2)])
def test_forward_and_loss_equal_the_numpy_version(name, num_horizons):
    config = dataclasses.replace(VARIANTS[name], multi_task=num_horizons > 1)
    built, constants = build(config, num_horizons), label_constants(num_horizons)
    outputs = built.apply(built.params, X, None)
    heads = optdist_oracle.forward(np.float64(X), built.params, L, num_horizons)
    known = RNG.random((B, num_horizons)) < 0.7
    expected, usage, entropy = np.zeros(3), np.zeros(L), 0.0
    for k, head in enumerate(heads):
        logits, v = head
        np.testing.assert_allclose(outputs["logits"][:, k], logits, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(outputs["selector"][:, k], v, rtol=1e-3, atol=1e-5)
        alpha, means, rows = softmax(v), optdist_oracle.means(logits), np.arange(B)
        value = means[rows, v.argmax(axis=1)] if config.inference == "hard" else (alpha * means).sum(axis=1)
        np.testing.assert_allclose(built.model.predict(outputs, constants)[:, k], value, rtol=1e-3)
        pseudo = optdist_oracle.pseudo_labels(logits, Y[:, k])
        expected += oracle_loss(config, head, Y[:, k], known[:, k], pseudo)
        usage += np.bincount(v.argmax(axis=1)[known[:, k]], minlength=L) / known[:, k].sum() / num_horizons
        entropy += special.entr(alpha).sum(axis=1)[known[:, k]].mean() / num_horizons
    total, terms = built.loss(outputs, targets(num_horizons, known))
    np.testing.assert_allclose([terms.pop(name) for name in ("nll", "focal", "kl")], expected, rtol=1e-3)
    np.testing.assert_allclose([terms.pop(f"usage_{i + 1}") for i in range(L)], usage, rtol=1e-5)
    assert float(terms.pop("selection_entropy")) == pytest.approx(entropy, rel=1e-3) and not terms
    assert float(total) == pytest.approx(expected @ (1.0, config.w_fce, config.w_kl), rel=1e-3)
    assert built.model.bucket_probabilities(outputs) is None and built.model.diagnostics(outputs) == {}


@pytest.mark.parametrize("name", ["default", "reverse"])
def test_gradients_equal_finite_differences_with_the_pseudo_labels_held_fixed(name):
    config = dataclasses.replace(VARIANTS[name], multi_task=True)
    built, known = build(config, 2), np.ones(B, bool)
    _, gradients = built.gradients(built.params, X, targets(2))
    fixed = [
        optdist_oracle.pseudo_labels(logits, Y[:, k])
        for k, (logits, _) in enumerate(optdist_oracle.forward(np.float64(X), built.params, L, 2))
    ]

    def loss(params):
        heads = optdist_oracle.forward(np.float64(X), params, L, 2)
        terms = [oracle_loss(config, head, Y[:, k], known, fixed[k]) for k, head in enumerate(heads)]
        return np.sum(terms)

    for path in (
        ("bottom", "Dense_0", "kernel"),
        ("experts_0", "kernel_1"),
        ("experts_1", "bias_2"),
        ("selector_1", "Dense_2", "kernel"),
    ):
        gradient = gradients
        for part in path:
            gradient = gradient[part]
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), gradient.shape)
        values = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), built.params)
            leaf = moved
            for part in path:
                leaf = leaf[part]
            leaf[index] += step
            values.append(loss(moved))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-3), path


def test_the_best_candidate_of_a_zero_is_the_one_with_the_least_purchase_probability():
    """The fact of BASELINES.md 5.2 that explains how hard inference behaves."""
    logits = np.float32(RNG.normal(size=(B, 1, L, 3)))
    outputs = {"logits": jnp.asarray(logits), "selector": jnp.zeros((B, 1, L)), "selection": jnp.ones((B, 1, L)) / L}
    zeros = targets()._replace(scaled=jnp.zeros((B, 1)))
    built = build(dataclasses.replace(SMALL, w_kl=0.0, focal_gamma=0.0))

    def focal(selector):
        return built.loss({**outputs, "selector": selector}, zeros)[1]["focal"]

    gradient = np.asarray(jax.grad(focal)(outputs["selector"]))[:, 0]
    assert gradient.argmin(axis=1).tolist() == logits[:, 0, :, 0].argmin(axis=1).tolist()


@pytest.mark.parametrize("name", ["default", "straight_through"])
def test_training_selects_by_gumbels_rule(name):
    """argmax(v + G) is candidate i with probability alpha_i; without noise the selection is that of v."""
    built = build(VARIANTS[name])
    count = 2000
    rows = np.repeat(X[:1], count, axis=0)
    outputs = built.apply(built.params, rows, KEY)
    selection = np.asarray(outputs["selection"])[:, 0]
    np.testing.assert_allclose(selection.sum(axis=1), 1.0, rtol=1e-5)
    alpha = softmax(np.asarray(outputs["selector"], np.float64)[0, 0])
    shares = np.bincount(selection.argmax(axis=1), minlength=L) / count
    assert np.abs(shares - alpha).max() < 5 * np.sqrt(0.25 / count)
    is_one_hot = np.isclose(selection.max(axis=1), 1.0, atol=1e-6)
    assert is_one_hot.all() if name == "straight_through" else not is_one_hot.any()
    if name == "default":  # log pi - v is the noise but for a constant by row
        noise = np.log(selection) - np.asarray(outputs["selector"], np.float64)[:, 0]
        assert (noise[:, 0] - noise[:, 1]).std() == pytest.approx(np.pi / np.sqrt(3), rel=0.1)  # a logistic variable's
    still = built.apply(built.params, X, None)
    expected = selection_of(VARIANTS[name], np.asarray(still["selector"], np.float64)[:, 0])
    np.testing.assert_allclose(still["selection"][:, 0], expected, rtol=1e-4, atol=1e-6)


def test_straight_through_has_the_gradient_of_the_soft_selection():
    def gradient(name):
        built = build(VARIANTS[name])
        picked = jax.grad(lambda params: jnp.sum(built.apply(params, X, KEY)["selection"][..., 0]))
        return picked(build().params)["selector_0"]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient("straight_through"),
        gradient("default"),
    )


def test_biases_start_at_the_training_labels():
    start = build(dataclasses.replace(SMALL, multi_task=True), 2).start
    for k in (0, 1):
        bias = np.asarray(start[f"experts_{k}"]["bias_2"])
        positives = np.log(Y[Y[:, k] > 0, k])
        np.testing.assert_allclose(bias[:, 0], special.logit(RATES[k]), rtol=1e-5)
        np.testing.assert_allclose(bias[:, 1], np.quantile(positives, (np.arange(L) + 0.5) / L), atol=0.02)
        assert (bias[:, 2] == 0).all() and (np.asarray(start[f"experts_{k}"]["bias_1"]) == 0).all()
    random = build(VARIANTS["random"]).start["experts_0"]
    assert (np.asarray(random["bias_2"]) == 0).all()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_biases_are_finite_where_all_labels_are_zero_or_none(rate):
    constants = LabelConstants(*(np.full_like(leaf, rate) for leaf in label_constants(1)))
    init = jax.jit(lambda labels: build().model.init(jax.random.key(0), X, CODES, MASK, labels, False))
    params = init(constants)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_rows_without_a_label_change_nothing():
    built = build()
    known = np.arange(B)[:, None] < 15
    dirty = np.where(known, X, 1e3).astype(np.float32)
    value, gradients = built.gradients(built.params, dirty, targets(1, known))
    clean, clean_gradients = built.gradients(built.params, X, targets(1, known))
    assert float(value) == pytest.approx(float(clean), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, clean_gradients)
    subset = take_rows(built.apply(built.params, X, None), targets(), slice(15))
    assert float(built.loss(*subset)[0]) == pytest.approx(float(value), rel=1e-5)
    none, gradients = built.gradients(built.params, X, targets(1, np.zeros((B, 1), bool)))
    assert none == 0.0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_row_permutation_permutes_the_outputs():
    built, order = build(), RNG.permutation(B)
    outputs, permuted = (built.apply(built.params, x, None) for x in (X, X[order]))
    for name, value in permuted.items():
        np.testing.assert_allclose(value, np.asarray(outputs[name])[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "reverse"])
def test_extremes_have_finite_losses_gradients_and_predictions(name):
    built = build(VARIANTS[name])
    logits = jnp.array([[0.0, 0.0, -200.0], [50.0, 40.0, 100.0], [-200.0, -90.0, 3.0]])[None, None]
    selector = jnp.array([[[300.0, 0.0, -300.0]]])
    for y in (0.0, 1e-6, 20.0):
        target = whole_targets(np.full((1, 1), y), np.ones((1, 1), bool))

        @jax.value_and_grad
        def loss(values, target=target):
            outputs = {"logits": values[0], "selector": values[1], "selection": jax.nn.softmax(values[1])}
            return built.loss(outputs, target)[0]

        value, gradients = loss((logits, selector))
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in gradients)
    prediction = built.model.predict({"logits": logits, "selector": -selector}, label_constants(1))
    assert np.isfinite(prediction).all()
    for x in (np.zeros_like(X), np.full_like(X, 1e4), np.full_like(X, -1e4)):
        value, gradients = built.gradients(built.params, x, targets())
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_predictions_can_be_bounded_by_the_largest_training_label():
    model = build(dataclasses.replace(SMALL, cap_at_largest=True)).model
    constants = label_constants(1)
    logits = jnp.array([[[[3.0, 8.0, 1.0]] * L], [[[0.0, -1.0, 0.0]] * L]])
    values = np.asarray(model.predict({"logits": logits, "selector": jnp.zeros((2, 1, L))}, constants))[:, 0]
    free = optdist_oracle.means(np.float64(logits))[:, 0, 0]
    assert free[0] > values[0] == constants.quantiles[0, -1] and values[1] == pytest.approx(free[1], rel=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs():
    built = build(dataclasses.replace(SMALL, compute_dtype="bfloat16"))
    outputs = built.apply(built.params, X, KEY)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((built.params, outputs)))


@pytest.mark.parametrize(("field", "value"), [("num_experts", 0), ("temperature", 0.0), ("w_kl", -1.0)])
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"--config\.model\.{field}="):
        OptDistConfig(**{field: value})
