"""Initial values: each module says from which law a parameter is drawn, and all parameters are drawn together.

Drawn each by itself, as Flax does it, every parameter adds two hash functions and a law to the program, and compiling
that takes longer than compiling the train step. Here one of each serves all, for the same numbers but for rounding.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any, Literal

from flax import linen as nn
from flax import struct
import jax
from jax.extend import random as jex_random
import jax.numpy as jnp
import numpy as np

_MAX_DRAWN_TOGETHER = 2**18  # numbers of a parameter; a larger one, which devices may divide, is drawn alone
_BLOCK_NUMBERS = 2**18  # drawn at a time
_THREEFRY = jex_random.threefry_prng_impl
_CUT = 2.0  # a truncated standard normal variable lies between -2 and 2
_CUT_DEVIATION = 0.87962566103423978  # its standard deviation


class _Drawn(struct.PyTreeNode, nn.meta.AxisMetadata[jax.Array]):
    """Stands for a parameter that is still to be drawn; the module that owns it sees NaN meanwhile."""

    label: jax.Array  # [4] uint32, see `_LABELS`
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    law: "Normal" = struct.field(pytree_node=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def unbox(self) -> jax.Array:
        return jnp.full(self.shape, jnp.nan)

    def replace_boxed(self, val: Any) -> Any:
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "_Drawn":
        raise NotImplementedError("a lifted module's parameters are stacks of draws")

    remove_axis = add_axis


def _key_of(label_4: jax.Array) -> jax.Array:
    """Returns the Threefry key [2] that a label stands for."""
    return jnp.where(label_4[3] == 0, label_4[:2], _THREEFRY.fold_in(label_4[:2], label_4[2]))


def _label_of(keys: jax.Array) -> jax.Array:
    """Returns the labels [..., 4] of keys [..., 2]."""
    return jnp.concatenate([keys, jnp.zeros_like(keys)], axis=-1)


def _fold_in(label_4: jax.Array, number: Any) -> jax.Array:
    # The root of a label that was folded before is mixed with what was folded in; Threefry would cost a loop each time.
    mixed_2 = label_4[3] * (label_4[2] * np.array([0x9E3779B1, 0x85EBCA77], np.uint32) + np.uint32(0xC2B2AE3D))
    return jnp.append(label_4[:2] + mixed_2, jnp.stack([jnp.asarray(number, jnp.uint32), jnp.uint32(1)]))


# Keys that remember instead of computing: (key, n, 1) stands for fold_in(key, n), and (key, 0, 0) for the key itself.
# Flax folds one number into its root for each parameter, so that all can be folded in together. Whoever draws with such
# a key all the same, as the initialisers of other libraries do, gets the numbers of the key that it stands for; after
# a second fold, which nn.jit makes, others that are as good.
_LABELS = jex_random.define_prng_impl(
    key_shape=(4,),
    seed=lambda seed: _label_of(_THREEFRY.seed(seed)),
    split=lambda label_4, shape: _label_of(_THREEFRY.split(_key_of(label_4), shape)),
    random_bits=lambda label_4, width, shape: _THREEFRY.random_bits(_key_of(label_4), width, shape),
    fold_in=_fold_in,
    name="labels",
    tag="labels",
)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initialiser of a normal law around 0 with variance 1 / fan-in: JAX's `variance_scaling`, to be drawn later."""

    fan_in_axis: int  # whose length is the fan-in
    is_truncated: bool = True  # at two standard deviations, and scaled so that the variance stays

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        """Returns the parameter, or what stands for it if the key is one of `init_variables` and the type float32."""
        is_label = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and jax.random.key_impl(key) == _LABELS
        if is_label and dtype == jnp.float32:
            return _Drawn(jax.random.key_data(key), tuple(shape), self)
        law: Literal["truncated_normal", "normal"] = "truncated_normal" if self.is_truncated else "normal"
        outputs = [axis for axis in range(len(shape)) if axis != self.fan_in_axis]
        init = nn.initializers.variance_scaling(1.0, "fan_in", law, self.fan_in_axis, outputs)
        return init(key, tuple(shape), dtype)


def _draw(drawn: Sequence[_Drawn]) -> list[jax.Array]:
    """Returns the values of L parameters, from one hash of all their P numbers."""
    key_Lx2 = jax.vmap(_key_of)(jnp.stack([d.label for d in drawn]))
    is_truncated_L = np.array([d.law.is_truncated for d in drawn])
    deviation_L = jnp.sqrt(jnp.array([1.0 / d.shape[d.law.fan_in_axis] for d in drawn], jnp.float32))
    deviation_L = jnp.where(is_truncated_L, deviation_L / np.float32(_CUT_DEVIATION), deviation_L)
    ends_L = np.cumsum([d.size for d in drawn])
    first_L = np.append(0, ends_L[:-1])
    root = np.float32(math.sqrt(2.0))
    # Uniform between the values of the error function at the ends of the law.
    low, high = (jax.lax.erf(np.float32(end) / root) for end in (-_CUT, _CUT))

    def numbers(place_P: jax.Array) -> jax.Array:
        # Which parameter each number belongs to: searched for, since a piece of program per parameter compiles longer.
        owner_P = jnp.searchsorted(jnp.asarray(ends_L[:-1], jnp.uint32), place_P, side="right")
        key_Px2, is_truncated_P = key_Lx2[owner_P], jnp.asarray(is_truncated_L)[owner_P]
        count_P = place_P - jnp.asarray(first_L, jnp.uint32)[owner_P]
        hashed_2P = jex_random.threefry_2x32(
            (key_Px2[:, 0], key_Px2[:, 1]), jnp.append(jnp.zeros_like(count_P), count_P)
        )
        bits_P = hashed_2P[: len(count_P)] ^ hashed_2P[len(count_P) :]
        # The highest 23 bits are the mantissa of a number in [1, 2).
        unit_P = jax.lax.bitcast_convert_type((bits_P >> 9) | np.float32(1.0).view(np.uint32), jnp.float32) - 1.0
        low_P = jnp.where(is_truncated_P, low, np.nextafter(np.float32(-1.0), np.float32(0.0)))
        high_P = jnp.where(is_truncated_P, high, np.float32(1.0))
        uniform_P = jnp.maximum(low_P, unit_P * (high_P - low_P) + low_P)
        end_P = jnp.where(is_truncated_P, np.nextafter(np.float32(_CUT), np.float32(0.0)), np.float32(np.inf))
        return jnp.clip(root * jax.lax.erf_inv(uniform_P), -end_P, end_P) * deviation_L[owner_P]

    # At least two blocks: fused into each parameter's piece, the law would be compiled as often as there are pieces.
    num_blocks = max(2, -(-int(ends_L[-1]) // _BLOCK_NUMBERS))
    block_size = -(-int(ends_L[-1]) // num_blocks)
    place_NxP = jnp.arange(num_blocks * block_size, dtype=jnp.uint32).reshape(num_blocks, block_size)
    parts = jnp.split(jax.lax.map(numbers, place_NxP).reshape(-1)[: ends_L[-1]], ends_L[:-1])
    return [part.reshape(d.shape) for part, d in zip(parts, drawn, strict=True)]


def init_variables(model: nn.Module, key: jax.Array, *inputs: Any, **options: Any) -> Any:
    """Returns `model.init(key, *inputs, **options)`, faster to compile.

    Args:
      model: a Flax module; no variable may be computed from the values of `Normal` parameters (it would be NaN). What
        other initialisers draw, they draw themselves.
      key: [2] uint32, a raw Threefry key; with another kind of key Flax draws everything.
      inputs: of the module's call.
      options: of the module's call.
    """
    if key.dtype != jnp.uint32 or key.shape != (2,):
        return model.init(key, *inputs, **options)
    try:
        variables = model.init(jax.random.wrap_key_data(_label_of(key), impl=_LABELS), *inputs, **options)
        leaves, tree = jax.tree.flatten(variables, is_leaf=lambda leaf: isinstance(leaf, _Drawn))
        small = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, _Drawn) and leaf.size <= _MAX_DRAWN_TOGETHER:
                small.append(place)
            elif isinstance(leaf, _Drawn):
                leaves[place] = leaf.law(_key_of(leaf.label), leaf.shape)
        values = _draw([leaves[place] for place in small]) if small else []
    except Exception:  # a module that does more with its parameters than to own them; its own mistakes are raised here
        return model.init(key, *inputs, **options)
    for place, value in zip(small, values, strict=True):
        leaves[place] = value
    return jax.tree.unflatten(tree, leaves)
