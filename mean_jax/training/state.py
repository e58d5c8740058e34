"""The training state: arrays only, one stack of replicas along the leading axis R.

A replica is a model of its own with its own seed and horizons. All of them train in one program on the same batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mean_jax.config import SweepConfig
from mean_jax.labels import LabelConstants
from mean_jax.models.base import Model
from mean_jax.models.initial import init_variables
from mean_jax.types import Array, RowLayout


class ReplicaSpec(NamedTuple):
    """What tells one replica from another."""

    seed: int
    horizons: tuple[int, ...]  # K indices into the schema's labels
    scalars: tuple[tuple[str, float], ...] = ()  # fields of the model's config that a sweep sets for this replica


class Variables(NamedTuple):
    """What a model needs to predict."""

    params: Any
    batch_stats: Any
    labels: LabelConstants  # of the model's K horizons


class Replica(NamedTuple):
    """One model in training; in a TrainState every leaf has a leading axis R."""

    key: Array  # [2] uint32, root of the replica's random streams
    horizons: Array  # [K] int32
    scalars: dict[str, Array]  # [] float32 by field of the model's config; empty without a sweep
    variables: Variables
    opt_state: Any
    best: Variables  # at the epoch with the best validation metric
    best_metric: Array  # [] float32, higher is better
    best_epoch: Array  # [] int32, counted from 1; 0 before the first
    bad_epochs: Array  # [] int32, epochs since the best
    is_active: Array  # [] bool, False once stopped early


class TrainState(NamedTuple):
    """Everything that a checkpoint holds; the position in the data follows from the step."""

    step: Array  # [] int32
    replicas: Replica


def plan_replicas(
    num_horizons: int, seed: int, num_seeds: int, multi_task: bool, sweep: SweepConfig
) -> tuple[ReplicaSpec, ...]:
    """Returns one replica per seed, value of the sweep and horizon (or all horizons of a multi-task model)."""
    groups = [tuple(range(num_horizons))] if multi_task else [(horizon,) for horizon in range(num_horizons)]
    points = [((sweep.field, value),) for value in sweep.values] if sweep.field else [()]
    return tuple(
        ReplicaSpec(seed + index, group, point) for index in range(num_seeds) for point in points for group in groups
    )


def make_init(
    model: Model,
    optimizer: optax.GradientTransformation,
    specs: tuple[ReplicaSpec, ...],
    constants: LabelConstants,
    layout: RowLayout,
) -> Callable[[], TrainState]:
    """Returns the function of the state before the first step; replica r depends on its own spec alone.

    It is traced once, whether for its shapes or to be run.

    Args:
      model: the Flax module of one replica.
      optimizer: the Optax transformation.
      specs: R replicas with equally many horizons.
      constants: label constants of all T horizons.
      layout: of the rows that the model reads.
    """
    words_BxW = jnp.zeros((2, layout.num_words), jnp.float32)
    batch = layout.unpack(words_BxW, jnp.ones(2, bool))

    @jax.jit
    @jax.vmap
    def init_replicas(key: Array, horizons_K: Array, scalars: dict[str, Array]) -> Replica:
        labels = jax.tree.map(lambda leaf: jnp.asarray(leaf)[horizons_K], constants)
        init_key = jax.random.fold_in(key, 0)
        inputs = (batch.numeric, batch.categorical, batch.mask, labels)
        variables = init_variables(model, init_key, *inputs, train=False)
        start = Variables(variables["params"], variables.get("batch_stats", {}), labels)
        return Replica(
            key=key,
            horizons=horizons_K,
            scalars=scalars,
            variables=start,
            opt_state=optimizer.init(start.params),
            best=start,
            best_metric=jnp.float32(-jnp.inf),
            best_epoch=jnp.int32(0),
            bad_epochs=jnp.int32(0),
            is_active=jnp.bool_(True),
        )

    def init() -> TrainState:
        keys = jax.vmap(jax.random.PRNGKey)(jnp.array([spec.seed for spec in specs]))
        horizons = jnp.array([spec.horizons for spec in specs], jnp.int32)
        scalars = {
            name: jnp.array([dict(spec.scalars)[name] for spec in specs], jnp.float32) for name, _ in specs[0].scalars
        }
        return TrainState(jnp.int32(0), init_replicas(keys, horizons, scalars))

    return init
