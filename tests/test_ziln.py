"""ZILN: the loss against SciPy and the golden values, the models against a NumPy version, guards and options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from mean_jax import losses
from mean_jax.config import EncoderConfig
from mean_jax.labels import LabelConstants
from mean_jax.models.ziln import Ziln, ZilnConfig
from tests.mean_oracle import dense, mlp, relu, softmax
from tests.model_inputs import plain_constants, whole_targets

B, C, N = 24, 5, 5
RNG = np.random.default_rng(3)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
CONSTANTS = plain_constants(C)
Y = np.where(RNG.random((B, 2)) < 0.5, 0.0, RNG.lognormal(0.0, 1.0, (B, 2))).astype(np.float32)
SMALL = ZilnConfig(bottom_sizes=(8, 6), tower_sizes=(7, 4), expert_sizes=(6, 5), num_experts=3)


def label_constants(num_horizons):
    quantiles = np.quantile(Y[Y > 0], np.linspace(0, 1, 101)).astype(np.float32)
    shape = (num_horizons, 1)
    ones = np.ones(num_horizons, np.float32)
    return LabelConstants(ones, np.ones((num_horizons, N - 1), np.float32), np.tile(quantiles, shape), 0.5 * ones)


def targets(num_horizons=1, mask=None):
    known = np.ones((B, num_horizons), bool) if mask is None else mask
    return whole_targets(Y[:, :num_horizons], known)


def build(config=SMALL, num_horizons=1):
    model = Ziln(config, EncoderConfig(), CONSTANTS, num_horizons, N)
    variables = model.init(jax.random.key(0), X, CODES, MASK, label_constants(num_horizons), False)
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, tree.unflatten(moved)


def apply(model, params, x=X):
    return model.apply(
        {"params": params}, x, CODES[: len(x)], MASK[: len(x)], label_constants(model.num_horizons), True
    )


@pytest.mark.parametrize(
    ("logits", "y", "loss", "mean"),
    [
        ((0.1, 0.2, 0.3), 0.0, 0.74439666, 0.92363785),
        ((0.4, 0.5, 0.6), 1.5, 1.87837259, 1.69075533),
        ((-2.0, 3.0, -1.0), 20.0, 4.88097524, 2.51466208),
    ],
)
def test_golden_values(logits, y, loss, mean):
    """BASELINES.md 1.5; the first two are the inputs of the reference implementation's own test."""
    assert float(losses.ziln(jnp.array(logits), jnp.float32(y))) == pytest.approx(loss, rel=1e-5)
    assert float(losses.ziln_mean(jnp.array(logits))) == pytest.approx(mean, rel=1e-5)


def test_the_loss_is_the_likelihood_of_scipys_mixture():
    logits = RNG.normal(size=(200, 3))
    y = np.where(RNG.random(200) < 0.4, 0.0, RNG.lognormal(size=200))
    p, mu, sigma = special.expit(logits[:, 0]), logits[:, 1], np.log1p(np.exp(logits[:, 2]))
    density = stats.lognorm.logpdf(np.where(y > 0, y, 1.0), s=sigma, scale=np.exp(mu))
    expected = -np.where(y > 0, np.log(p) + density, np.log1p(-p))
    np.testing.assert_allclose(losses.ziln(jnp.float32(logits), jnp.float32(y)), expected, rtol=2e-4, atol=1e-5)
    parts = losses.purchase_nll(jnp.float32(logits), jnp.float32(y)) + losses.log_normal_nll(
        jnp.float32(logits), jnp.float32(y), 5.0
    )
    np.testing.assert_allclose(parts, expected, rtol=2e-4, atol=1e-5)


def test_the_mean_is_that_of_the_mixture():
    logits = RNG.normal(size=(50, 3))
    sigma = np.log1p(np.exp(logits[:, 2]))
    expected = special.expit(logits[:, 0]) * stats.lognorm.mean(s=sigma, scale=np.exp(logits[:, 1]))
    np.testing.assert_allclose(losses.ziln_mean(jnp.float32(logits)), expected, rtol=1e-4)


@pytest.mark.parametrize("logits", [(0.0, 0.0, -200.0), (50.0, 40.0, 100.0), (-200.0, -90.0, 3.0), (200.0, 0.0, 0.0)])
@pytest.mark.parametrize("y", [0.0, 1e-6, 1.0, 20.0])
def test_extremes_have_finite_values_and_gradients(logits, y):
    for function in (lambda x: losses.ziln(x, jnp.float32(y)), losses.ziln_mean):
        value, gradient = jax.value_and_grad(function)(jnp.array(logits))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert float(losses.ziln_mean(jnp.array(logits))) <= np.exp(20.0) * (1 + 1e-6)


def oracle_logits(config, params, num_horizons):
    bottom = mlp(X.astype(np.float64), params["bottom"], 2)
    heads = []
    for k in range(num_horizons):
        body = bottom
        if config.bottom != "none":
            experts = []
            for j in range(config.num_experts if config.bottom == "mmoe" else 1):
                layers = params["experts"]
                first = np.asarray(layers["kernel_0"], np.float64)[:, j]
                hidden = relu(bottom @ first + np.asarray(layers["bias_0"], np.float64)[j])
                second = np.asarray(layers["kernel_1"], np.float64)[j]
                experts.append(relu(hidden @ second + np.asarray(layers["bias_1"], np.float64)[j]))
            body = experts[0]
            if config.bottom == "mmoe":
                size = config.num_experts
                gate = softmax(dense(bottom, params["gate"])[:, k * size : (k + 1) * size])
                body = sum(gate[:, j : j + 1] * expert for j, expert in enumerate(experts))
        heads.append(mlp(body, params[f"head_{k}"], 2))
    return np.stack(heads, axis=1)


def oracle_loss(logits, y, known):
    """Sum over horizons of the mean over known rows."""
    total = 0.0
    for k in range(y.shape[1]):
        p, mu, sigma = special.expit(logits[:, k, 0]), logits[:, k, 1], np.log1p(np.exp(logits[:, k, 2]))
        density = stats.lognorm.logpdf(np.where(y[:, k] > 0, y[:, k], 1.0), s=sigma, scale=np.exp(mu))
        nll = -np.where(y[:, k] > 0, np.log(p) + density, np.log1p(-p))
        total += nll[known[:, k]].mean()
    return total


@pytest.mark.parametrize("bottom", ["none", "shared", "mmoe"])
@pytest.mark.parametrize("num_horizons", [1, 2])
def test_forward_and_loss_equal_the_numpy_version(bottom, num_horizons):
    config = dataclasses.replace(SMALL, bottom=bottom, multi_task=num_horizons > 1)
    model, params = build(config, num_horizons)
    outputs = apply(model, params)
    expected = oracle_logits(config, params, num_horizons)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-3, atol=1e-5)
    known = RNG.random((B, num_horizons)) < 0.7
    loss, terms = model.loss(outputs, targets(num_horizons, known), label_constants(num_horizons))
    assert float(loss) == pytest.approx(oracle_loss(expected, Y[:, :num_horizons], known), rel=1e-3)
    assert float(loss) == pytest.approx(float(terms["purchase"] + terms["log_normal"]), rel=1e-6)
    assert model.bucket_probabilities(outputs) is None and model.diagnostics(outputs) == {}


def test_gradients_equal_finite_differences_of_the_numpy_version():
    config = dataclasses.replace(SMALL, bottom="mmoe", multi_task=True)
    model, params = build(config, 2)
    known = np.ones((B, 2), bool)
    gradients = jax.grad(lambda p: model.loss(apply(model, p), targets(2), label_constants(2))[0])(params)
    for path in (("gate", "kernel"), ("experts", "kernel_1"), ("experts", "bias_0"), ("head_1", "Dense_2", "kernel")):
        gradient = gradients
        for name in path:
            gradient = gradient[name]
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), gradient.shape)
        values = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), params)
            leaf = moved
            for name in path:
                leaf = leaf[name]
            leaf[index] += step
            values.append(oracle_loss(oracle_logits(config, moved, 2), Y, known))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-3), path


def test_rows_without_a_label_change_nothing():
    model, params = build()
    known = np.arange(B)[:, None] < 15
    dirty = np.where(known, X, 1e3).astype(np.float32)
    loss, _ = model.loss(apply(model, params, dirty), targets(1, known), label_constants(1))
    expected = oracle_loss(oracle_logits(SMALL, params, 1), Y[:, :1], known)
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    none, gradients = jax.value_and_grad(
        lambda p: model.loss(apply(model, p), targets(1, np.zeros((B, 1), bool)), label_constants(1))[0]
    )(params)
    assert none == 0.0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


def test_options_of_the_loss():
    model, params = build()
    outputs, constants = apply(model, params), label_constants(1)
    _, terms = model.loss(outputs, targets(), constants)
    positives = dataclasses.replace(SMALL, normalise_by="positives")
    _, other = Ziln(positives, EncoderConfig(), CONSTANTS, 1, N).loss(outputs, targets(), constants)
    rate = float((Y[:, 0] > 0).mean())
    assert float(other["log_normal"]) == pytest.approx(float(terms["log_normal"]) / rate, rel=1e-5)
    penalised = dataclasses.replace(SMALL, mu_penalty=0.01, sigma_penalty=0.02)
    total, terms = Ziln(penalised, EncoderConfig(), CONSTANTS, 1, N).loss(outputs, targets(), constants)
    mu, r = np.asarray(outputs["logits"], np.float64)[:, 0, 1:].T
    likelihood = float(terms["purchase"] + terms["log_normal"])
    assert float(total) == pytest.approx(likelihood + 0.01 * (mu**2).mean() + 0.02 * (r**2).mean(), rel=1e-5)


def test_predictions_can_be_bounded_by_the_largest_training_label():
    model, _ = build(dataclasses.replace(SMALL, cap_at_largest=True))
    constants = label_constants(1)
    outputs = {"logits": jnp.array([[[3.0, 8.0, 1.0]], [[0.0, -1.0, 0.0]]])}
    values = np.asarray(model.predict(outputs, constants))[:, 0]
    free = np.asarray(losses.ziln_mean(outputs["logits"]))[:, 0]
    assert free[0] > values[0] == constants.quantiles[0, -1] and values[1] == free[1]


def test_focal_cross_entropy():
    log_q = jax.nn.log_softmax(jnp.float32(RNG.normal(size=(10, 4))))
    label = jnp.asarray(RNG.integers(0, 4, 10))
    q = np.exp(np.asarray(log_q, np.float64))[np.arange(10), label]
    np.testing.assert_allclose(losses.focal_cross_entropy(log_q, label, 2.0), -((1 - q) ** 2) * np.log(q), rtol=1e-4)
    plain = losses.focal_cross_entropy(log_q, label, 0.0)
    np.testing.assert_allclose(plain, losses.cross_entropy(log_q, label), rtol=1e-6)
    sure = jax.nn.log_softmax(jnp.array([200.0, 0.0]))
    value, gradient = jax.value_and_grad(lambda x: losses.focal_cross_entropy(x, jnp.int32(0), 0.5))(sure)
    assert float(value) == pytest.approx(0.0, abs=1e-6) and np.isfinite(gradient).all()
