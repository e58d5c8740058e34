"""Parameters drawn together are those that Flax and JAX draw one by one."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.models import initial
from mean_jax.models.blocks import Dense, Experts
from mean_jax.models.initial import Normal, init_variables
from mean_jax.run import Program
from tests.test_models import CONFIGS, small_config

KEY = jax.random.PRNGKey(7)
X = np.ones((2, 3), np.float32)


def assert_drawn_alike(variables, expected):
    """The same structure, types and numbers, but for what another order of operations rounds."""
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("mean", 0), ("mean", 100)] + [(name, initial._MAX_DRAWN_TOGETHER) for name in CONFIGS if name != "mean_tuned"],
)
def test_every_model_begins_as_flax_begins_it(name, limit, store, monkeypatch):
    """Whether all parameters are large, and drawn alone, or some or none, and in any number of blocks."""
    monkeypatch.setattr(initial, "_MAX_DRAWN_TOGETHER", limit)
    monkeypatch.setattr(initial, "_BLOCK_NUMBERS", 70)
    draw, drawn = initial._draw, []
    monkeypatch.setattr(initial, "_draw", lambda group: drawn.append(values := draw(group)) or values)
    program = Program(small_config(name), store.schema, store.transform)
    layout = program.schema.layout
    batch = layout.unpack(jnp.zeros((2, layout.num_words)), jnp.ones(2, bool))
    labels = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.array(program.specs[0].horizons)], program.label_constants)
    inputs = (batch.numeric, batch.categorical, batch.mask, labels)
    expected = jax.jit(lambda key: program.model.init(key, *inputs, train=False))(KEY)
    variables = jax.jit(lambda key: init_variables(program.model, key, *inputs, train=False))(KEY)
    assert_drawn_alike(variables, expected)
    assert len(drawn) == (limit > 0)  # and it was not Flax that drew them


def test_a_module_of_blocks_and_of_foreign_initialisers():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x_BxF):
            own = nn.Dense(5, kernel_init=nn.initializers.orthogonal(), bias_init=nn.initializers.normal(0.1))(x_BxF)
            keys = self.param("split", lambda key: jax.random.uniform(jax.random.split(key, 3)[1], (4,)))
            return Dense(4)(own) + nn.Dense(4, bias_init=nn.initializers.ones)(own) + keys[None]

    expected = Mixed().init(KEY, X)
    assert_drawn_alike(init_variables(Mixed(), KEY, X), expected)
    assert len({np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(expected)}) == 7


def test_keys_that_are_split_and_folded_draw_numbers_of_their_own():
    class Folding(nn.Module):
        @nn.compact
        def __call__(self, x):
            def folded(key, number):
                return jax.random.normal(jax.random.fold_in(key, number), (1000,))

            for number in (0, 1, 2):
                self.param(f"fold_{number}", folded, number)
                self.param(f"split_{number}", lambda key, n: folded(jax.random.split(key)[0], n), number)
            self.param("split", lambda key: jax.random.normal(jax.random.split(key)[0], (1000,)))
            return self.param("plain", lambda key: jax.random.normal(key, (1000,)))

    expected, found = Folding().init(KEY, X)["params"], init_variables(Folding(), KEY, X)["params"]
    for name in ("plain", "split", "split_0", "split_1", "split_2"):
        np.testing.assert_array_equal(found[name], expected[name])
    leaves = jax.tree.leaves(found)
    assert np.abs(np.corrcoef(np.stack(leaves)) - np.eye(len(leaves))).max() < 0.15
    assert all(abs(np.std(leaf) - 1) < 0.1 for leaf in leaves)

    def one(key, init_fn):
        class Same(nn.Module):
            @nn.compact
            def __call__(self, x):
                return self.param("x", init_fn)

        return init_variables(Same(), key, X)["params"]["x"]

    def bits(key):
        return jax.random.bits(key, (4,))

    split = one(KEY, lambda key: bits(jax.random.split(key)[0]))
    assert not np.array_equal(split, one(KEY, lambda key: bits(jax.random.fold_in(jax.random.split(key)[0], 0))))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, x_BxF):
        dense = Dense(3)
        return dense(x_BxF) @ dense.variables["params"]["kernel"]


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x_BxF):
        return x_BxF @ self.param("kernel", lambda key, shape: 2.0 * Normal(0)(key, shape), (3, 3))


@pytest.mark.parametrize("module", [Tied(), Scaled(), nn.WeightNorm(Dense(4)), Dense(4, param_dtype=jnp.bfloat16)])
def test_a_module_that_needs_the_values_is_drawn_by_flax(module):
    if isinstance(module, nn.WeightNorm):

        class Module(nn.Module):
            @nn.compact
            def __call__(self, x_BxF):
                return nn.WeightNorm(Dense(4))(x_BxF)

        module = Module()
    assert_drawn_alike(init_variables(module, KEY, X), module.init(KEY, X))


@pytest.mark.parametrize("kind", ["rbg", "typed"])
def test_other_kinds_of_keys_are_left_to_flax(kind):
    key = jax.random.key_data(jax.random.key(7, impl="rbg")) if kind == "rbg" else jax.random.key(7)
    with jax.default_prng_impl("rbg" if kind == "rbg" else "threefry2x32"):
        assert_drawn_alike(init_variables(Dense(4), key, X), Dense(4).init(key, X))


def test_a_mistake_in_a_module_is_raised():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x_BxF):
            return Dense(4)(x_BxF) + jnp.ones((3, 3))

    with pytest.raises(TypeError, match="add got incompatible shapes"):
        init_variables(Wrong(), KEY, X)


def test_lifted_modules_are_drawn_by_flax():
    lifted = nn.vmap(Experts, variable_axes={"params": 1}, split_rngs={"params": True}, in_axes=(0, None, None))
    model, inputs = lifted(2, (3,), 1), (np.ones((4, 2, 3), np.float32), np.ones(2, bool), False)
    expected = model.init(KEY, *inputs)
    assert_drawn_alike(init_variables(model, KEY, *inputs), expected)


@pytest.mark.parametrize(("shape", "axis"), [((300, 40), 0), ((30, 4, 20), 0), ((4, 30, 20), 1), ((40, 300), 1)])
@pytest.mark.parametrize("is_truncated", [True, False])
def test_the_law(shape, axis, is_truncated):
    """Mean 0 and variance 1 / fan-in, cut at two deviations of what is cut, and another stream for each parameter."""

    class Both(nn.Module):
        @nn.compact
        def __call__(self):
            for name in ("first", "second"):
                self.param(name, Normal(axis, is_truncated), shape)

    first, second = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(init_variables(Both(), KEY)))
    deviation = 1 / np.sqrt(shape[axis])
    for values in (first, second):
        assert abs(values.mean()) < 4 * deviation / np.sqrt(values.size)
        np.testing.assert_allclose(values.std(), deviation, rtol=0.05)
        assert (np.abs(values).max() < 2.001 / 0.8796 * deviation) == is_truncated
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.06


def test_more_parameters_need_no_more_hash_functions():
    class Deep(nn.Module):
        depth: int

        @nn.compact
        def __call__(self, x_BxF):
            for index in range(self.depth):
                x_BxF = Dense(3 + index)(x_BxF)
            return x_BxF

    def count(depth, init_fn):
        text = jax.jit(lambda key: init_fn(Deep(depth), key)).lower(KEY).compile().as_text()
        return text.count(" while(")

    together = [count(depth, lambda model, key: init_variables(model, key, X)) for depth in (3, 12)]
    assert together[0] == together[1] > 0
    alone = [count(depth, lambda model, key: model.init(key, X)) for depth in (3, 12)]
    assert alone[1] > 2 * alone[0]
