"""MEAN against the independent NumPy version, its identities, gradients and ablations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.config import EncoderConfig
from mean_jax.labels import LabelConstants
from mean_jax.models.mean import Mean, MeanConfig
from tests import mean_oracle
from tests.model_inputs import plain_constants, whole_targets

B, C, M, H, N = 32, 6, 3, 8, 4
TINY = MeanConfig(bottom_sizes=(12, 10), num_experts=M, expert_size=H, dam_sizes=(8,))
CONSTANTS = plain_constants(C)
RNG = np.random.default_rng(1)
X = RNG.normal(size=(B, C)).astype(np.float32)
CODES = np.zeros((B, 0), np.int32)
MASK = np.ones(B, bool)
LABELS = np.where(RNG.random(B) < 0.5, 0.0, RNG.lognormal(0, 1, B)).astype(np.float32)[:, None]
BUCKETS = np.where(LABELS > 0, 1 + (LABELS > 0.7) + (LABELS > 1.5), 0).astype(np.int32)
TARGETS = whole_targets(LABELS, np.ones((B, 1), bool), BUCKETS)


def label_constants(num_horizons):
    """MEAN does not read them."""
    arrays = (np.ones(num_horizons), np.ones((num_horizons, N - 1)), np.ones((num_horizons, 3)), np.ones(num_horizons))
    return LabelConstants(*(array.astype(np.float32) for array in arrays))


LABEL_CONSTANTS = label_constants(1)


def build(config=TINY, num_horizons=1):
    model = Mean(config, EncoderConfig(), CONSTANTS, num_horizons, N)
    variables = model.init(jax.random.key(0), X, CODES, MASK, label_constants(num_horizons), False)
    # Biases start at zero and norms at one; random values let every term show in the comparison.
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, {**variables, "params": tree.unflatten(moved)}


def apply(model, variables, x=X, mask=MASK, train=True):
    outputs, updated = model.apply(variables, x, CODES[: len(x)], mask, LABEL_CONSTANTS, train, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]


VARIANTS = {
    "defaults": TINY,
    "printed_gate": dataclasses.replace(TINY, gate="printed"),
    "pairwise": dataclasses.replace(TINY, attention="pairwise"),
    "own_bottom": dataclasses.replace(TINY, dam_bottom="own"),
    "log_theta": dataclasses.replace(TINY, log_theta=True, tau=3.0, huber_delta=0.5),
    "mvfe_alone": dataclasses.replace(TINY, dam=False),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_losses_equal_the_numpy_version(name, train):
    config = VARIANTS[name]
    model, variables = build(config)
    outputs, _ = apply(model, variables, train=train)
    stats = variables["batch_stats"]["experts"]["BatchNorm_0"]
    expected = mean_oracle.forward(
        X.astype(np.float64),
        variables["params"],
        N,
        M,
        pairwise=config.attention == "pairwise",
        own_bottom=config.dam_bottom == "own",
        printed=config.gate == "printed",
        running=None if train else (np.asarray(stats["mean"]), np.asarray(stats["var"])),
    )
    np.testing.assert_allclose(outputs["value"][:, 0], expected["value"], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(outputs["log_theta"][:, 0]), expected["theta"], rtol=2e-4, atol=1e-6)
    loss, terms = model.loss(outputs, TARGETS, LABEL_CONSTANTS)
    oracle = mean_oracle.loss_terms(
        expected, LABELS[:, 0], BUCKETS[:, 0], config.huber_delta, config.tau, config.log_theta
    )
    assert set(terms) == set(oracle)
    for term, value in oracle.items():
        assert float(terms[term]) == pytest.approx(value, rel=5e-4, abs=1e-6), term
    assert float(loss) == pytest.approx(sum(oracle.values()), rel=5e-4)
    if config.dam:
        np.testing.assert_allclose(model.bucket_probabilities(outputs)[:, 0], expected["b"], rtol=2e-4, atol=1e-6)
    else:
        assert model.bucket_probabilities(outputs) is None


def test_embedding_is_the_theta_weighted_sum_of_the_bucket_embeddings():
    """The identity behind the alignment: mean_t (A H)_t = theta^T H."""
    _, variables = build()
    result = mean_oracle.forward(X.astype(np.float64), variables["params"], N, M)
    np.testing.assert_allclose(result["e"], np.einsum("bn,bnh->bh", result["theta"], result["f"]), rtol=1e-12)
    np.testing.assert_allclose(result["a"].sum(axis=-1), 1.0)


def test_gates_attention_and_buckets_are_distributions():
    model, variables = build()
    outputs, _ = apply(model, variables)
    diagnostics = model.diagnostics(outputs)
    assert diagnostics["gate"].shape == (B, 1, N, M) and diagnostics["attention"].shape == (B, 1, N)
    for values in (diagnostics["gate"], diagnostics["attention"], model.bucket_probabilities(outputs)):
        np.testing.assert_allclose(values.sum(axis=-1), 1.0, rtol=1e-5)
        assert (np.asarray(values) >= 0).all()


def test_the_printed_second_softmax_is_close_to_uniform():
    """BASELINES.md section 6: for N = 5 and tau = 2 the sharpest teacher is (.292, .177, .177, .177, .177)."""
    teacher = mean_oracle.softmax(np.array([1.0, 0, 0, 0, 0]) / 2.0)
    np.testing.assert_allclose(teacher, [0.292, 0.177, 0.177, 0.177, 0.177], atol=5e-4)


def test_row_permutation_permutes_the_outputs():
    model, variables = build()
    order = np.random.default_rng(2).permutation(B)
    outputs, _ = apply(model, variables)
    permuted, _ = apply(model, variables, x=X[order])
    np.testing.assert_allclose(permuted["value"], np.asarray(outputs["value"])[order], rtol=1e-4, atol=1e-5)


def test_masked_rows_change_neither_statistics_nor_loss():
    model, variables = build()
    mask = np.arange(B) < 20
    dirty = np.where(mask[:, None], X, 1e3).astype(np.float32)
    outputs, stats = apply(model, variables, x=dirty, mask=mask)
    subset, subset_stats = apply(model, variables, x=X[:20], mask=np.ones(20, bool))
    np.testing.assert_allclose(np.asarray(outputs["value"])[:20], subset["value"], rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, subset_stats)
    loss, _ = model.loss(outputs, TARGETS._replace(mask=jnp.asarray(mask)[:, None]), LABEL_CONSTANTS)
    subset_loss, _ = model.loss(subset, jax.tree.map(lambda leaf: leaf[:20], TARGETS), LABEL_CONSTANTS)
    assert float(loss) == pytest.approx(float(subset_loss), rel=1e-5)


def test_a_batch_without_labels_has_zero_loss_and_finite_gradients():
    model, variables = build()
    none = TARGETS._replace(mask=jnp.zeros((B, 1), bool))

    def loss(params):
        outputs, stats = apply(model, {**variables, "params": params}, mask=np.zeros(B, bool))
        return model.loss(outputs, none, LABEL_CONSTANTS)[0], stats

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    assert value == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((stats, gradients)))


def gradients_of(config):
    model, variables = build(config)
    return jax.grad(
        lambda params: model.loss(apply(model, {**variables, "params": params})[0], TARGETS, LABEL_CONSTANTS)[0]
    )(variables["params"])


def test_gradients_equal_finite_differences_of_the_numpy_version():
    _, variables = build()
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def loss(params):
        result = mean_oracle.forward(X.astype(np.float64), params, N, M)
        return sum(mean_oracle.loss_terms(result, LABELS[:, 0], BUCKETS[:, 0]).values())

    gradients = gradients_of(TINY)
    for path in (
        ("bottom", "Dense_0", "kernel"),
        ("experts", "kernel_0"),
        ("experts", "BatchNorm_0", "scale"),
        ("head_0", "attention", "query"),
        ("head_0", "gate", "kernel"),
        ("head_0", "dam", "Dense_1", "bias"),
        ("head_0", "value", "kernel"),
    ):
        leaf, gradient = params, gradients
        for name in path:
            leaf, gradient = leaf[name], gradient[name]
        index = np.unravel_index(np.argmax(np.abs(np.asarray(gradient))), leaf.shape)
        values = []
        for step in (1e-6, -1e-6):
            moved = leaf.copy()
            moved[index] += step
            values.append(loss(_replaced(params, path, moved)))
        assert float(np.asarray(gradient)[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-3), path


def _replaced(tree, path, value):
    if not path:
        return value
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}


def norms(tree):
    return float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_ablations_cut_exactly_their_gradient():
    alone = dataclasses.replace(TINY, kl_weight=0.0, beta=0.0, gamma=0.0)
    assert norms(gradients_of(alone)["head_0"]["dam"]) == 0.0
    only_b = dataclasses.replace(alone, kl_weight=1.0, stop_gradient_kl="b")
    assert norms(gradients_of(only_b)["head_0"]["dam"]) == 0.0
    only_theta = dataclasses.replace(alone, gamma=1.0, stop_gradient_distillation="theta")
    assert norms(gradients_of(only_theta)["head_0"]["dam"]) > 0.0
    same = jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradients_of(only_theta)["head_0"]["attention"],
        gradients_of(alone)["head_0"]["attention"],
    )
    assert same is not None


def test_each_stop_gradient_cuts_its_side_alone():
    alone = dataclasses.replace(TINY, kl_weight=0.0, beta=0.0, gamma=0.0)
    huber = gradients_of(alone)["head_0"]["attention"]

    def trains_dam_and_theta(**changes):
        head = gradients_of(dataclasses.replace(alone, **changes))["head_0"]
        moved = jax.tree.map(lambda leaf, other: leaf - other, head["attention"], huber)
        return norms(head["dam"]) > 1e-6, norms(moved) > 1e-6

    assert trains_dam_and_theta(kl_weight=1.0) == (True, True)
    assert trains_dam_and_theta(kl_weight=1.0, stop_gradient_kl="b") == (False, True)
    assert trains_dam_and_theta(kl_weight=1.0, stop_gradient_kl="theta") == (True, False)
    assert trains_dam_and_theta(gamma=1.0) == (True, True)
    assert trains_dam_and_theta(gamma=1.0, stop_gradient_distillation="b") == (False, True)
    assert trains_dam_and_theta(gamma=1.0, stop_gradient_distillation="theta") == (True, False)


def test_extreme_inputs_have_finite_losses_and_gradients():
    model, variables = build()
    for x in (np.zeros_like(X), np.full_like(X, 1e4), -1e4 * np.ones_like(X)):

        def loss(params, x=x):
            outputs = model.apply({**variables, "params": params}, x, CODES, MASK, LABEL_CONSTANTS, False)
            return model.loss(outputs, TARGETS, LABEL_CONSTANTS)[0]

        value, gradients = jax.value_and_grad(loss)(variables["params"])
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_multi_task_sums_the_losses_of_its_horizons():
    model, variables = build(dataclasses.replace(TINY, multi_task=True), num_horizons=2)
    outputs, _ = apply(model, variables)
    assert outputs["value"].shape == (B, 2)
    both = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=-1), TARGETS)
    total, _ = model.loss(outputs, both, LABEL_CONSTANTS)
    single = Mean(TINY, EncoderConfig(), CONSTANTS, 1, N)
    parts = [
        single.loss(jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], outputs), TARGETS, LABEL_CONSTANTS)[0]
        for k in (0, 1)
    ]
    assert float(total) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_losses():
    model, variables = build(dataclasses.replace(TINY, compute_dtype="bfloat16"))
    outputs, _ = apply(model, variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["params"]))
    assert outputs["value"].dtype == outputs["log_theta"].dtype == jnp.float32
    exact, _ = apply(*build())
    np.testing.assert_allclose(outputs["value"], exact["value"], atol=0.1)
