"""The pure functions of training: one step, a dispatch of S steps, the end of an epoch, predictions."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mean_jax.config import LabelConfig
from mean_jax.labels import make_targets
from mean_jax.models.base import Model, with_scalars
from mean_jax.training.state import Replica, TrainState, Variables
from mean_jax.types import Array, Batch, RowLayout, Targets

Metrics = dict[str, jax.Array]


def _targets(batch: Batch, replica: Replica, config: LabelConfig) -> Targets:
    return make_targets(batch.labels[:, replica.horizons], replica.variables.labels, batch.mask, config)


def _apply(model: Model, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns the model's outputs in evaluation mode."""
    collections = {"params": variables.params, "batch_stats": variables.batch_stats}
    rows = (batch.numeric, batch.categorical, batch.mask)
    outputs: Any = model.apply(collections, *rows, variables.labels, train=False)
    return outputs


def replica_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    label_config: LabelConfig,
    step: Array,
    replica: Replica,
    batch: Batch,
) -> tuple[Replica, Metrics]:
    """Returns the replica after one optimiser step on the batch, and the loss terms (scalars) with their total."""
    model = with_scalars(model, replica.scalars)
    targets, labels = _targets(batch, replica, label_config), replica.variables.labels
    has_label_B = targets.mask.any(axis=1)
    sample_key = jax.random.fold_in(jax.random.fold_in(replica.key, 1), step)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
        outputs, updated = model.apply(
            {"params": params, "batch_stats": replica.variables.batch_stats},
            *(batch.numeric, batch.categorical, has_label_B, labels),
            train=True,
            mutable=["batch_stats"],
            rngs={"sample": sample_key},
        )
        loss, terms = model.loss(outputs, targets, labels)
        return loss, (terms, updated.get("batch_stats", {}))

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (terms, batch_stats)), gradients = gradient_fn(replica.variables.params)
    updates, opt_state = optimizer.update(gradients, replica.opt_state, replica.variables.params)
    params = optax.apply_updates(replica.variables.params, updates)
    replica = replica._replace(variables=Variables(params, batch_stats, labels), opt_state=opt_state)
    return replica, {"total": loss, **terms}


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    label_config: LabelConfig,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one step of all replicas on the same batch, and each loss term [R].

    A state of one replica may come without the axis R; state and loss terms are returned without it then.
    """
    step_fn = functools.partial(replica_step, model, optimizer, label_config, state.step)
    if state.replicas.is_active.ndim:
        step_fn = jax.vmap(step_fn, in_axes=(0, None))
    replicas, metrics = step_fn(state.replicas, batch)
    return TrainState(state.step + 1, replicas), metrics


def make_dispatch(
    model: Model,
    optimizer: optax.GradientTransformation,
    label_config: LabelConfig,
    layout: RowLayout,
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted (state, words_SxBxW) -> (state, means over S of each loss term [R]); the state is donated."""

    def step_fn(state: TrainState, words_BxW: Any) -> tuple[TrainState, Metrics]:
        batch = layout.unpack(words_BxW, jnp.ones(words_BxW.shape[0], bool))
        return train_step(model, optimizer, label_config, state, batch)

    def dispatch(state: TrainState, words_SxBxW: Array) -> tuple[TrainState, Metrics]:
        # An axis R of length 1 costs a tenth of the step on a CPU, by slower reductions and copies of the state:
        # it is taken off around the scan.
        is_single = len(state.replicas.is_active) == 1
        if is_single:
            state = state._replace(replicas=jax.tree.map(lambda leaf_R: leaf_R[0], state.replicas))
        state, metrics = jax.lax.scan(step_fn, state, words_SxBxW)
        metrics = jax.tree.map(lambda values_SxR: values_SxR.mean(axis=0), metrics)
        if is_single:
            replicas, metrics = jax.tree.map(lambda leaf: leaf[None], (state.replicas, metrics))
            state = state._replace(replicas=replicas)
        return state, metrics

    return jax.jit(dispatch, donate_argnums=0)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="patience")
def end_epoch(state: TrainState, metric_R: Array, epoch: Array, patience: int) -> TrainState:
    """Keeps the best variables per replica and stops those without improvement for `patience` epochs.

    Args:
      state: after the last step of the epoch.
      metric_R: validation metric, higher is better; NaN never improves on anything.
      epoch: its number, counted from 1.
      patience: epochs.
    """

    def update(replica: Replica, metric: Array) -> Replica:
        is_first = replica.best_epoch == 0
        is_better = replica.is_active & ((metric > replica.best_metric) | is_first)
        best = jax.tree.map(lambda new, old: jnp.where(is_better, new, old), replica.variables, replica.best)
        bad_epochs = jnp.where(is_better, 0, replica.bad_epochs + 1)
        metric = jnp.where(jnp.isnan(metric), -jnp.inf, metric)
        return replica._replace(
            best=best,
            best_metric=jnp.where(is_better, metric, replica.best_metric),
            best_epoch=jnp.where(is_better, epoch, replica.best_epoch),
            bad_epochs=bad_epochs,
            is_active=replica.is_active & (bad_epochs < patience),
        )

    return state._replace(replicas=jax.vmap(update)(state.replicas, metric_R))


def make_predict(
    model: Model, layout: RowLayout, with_diagnostics: bool = False
) -> Callable[[Variables, Array, Array], dict[str, jax.Array]]:
    """Returns the jitted (variables of R replicas, words_BxW, mask_B) -> predictions.

    Keys: `scaled` [R, B, K] on the training scale; `buckets` [R, B, K, N] for models that have them; with
    diagnostics, what the model's `diagnostics` gives, [R, B, K, ...].
    """

    def predict_replica(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        outputs = _apply(model, variables, batch)
        result = {"scaled": model.predict(outputs, variables.labels)}
        buckets = model.bucket_probabilities(outputs)
        if buckets is not None:
            result["buckets"] = buckets
        return result | (model.diagnostics(outputs) if with_diagnostics else {})

    def predict(variables_R: Variables, words_BxW: Array, mask_B: Array) -> dict[str, jax.Array]:
        batch = layout.unpack(words_BxW, mask_B)
        return jax.vmap(predict_replica, in_axes=(0, None))(variables_R, batch)

    return jax.jit(predict)


def make_validate(
    model: Model, label_config: LabelConfig, layout: RowLayout
) -> Callable[[TrainState, Array, Array], tuple[jax.Array, Metrics, jax.Array]]:
    """Returns the jitted (state, words_BxW, mask_B) -> (scaled_RxBxK, sums of each loss term [R], label counts [R]).

    Sums divided by counts over all batches give the exact mean of terms that are means over rows, for K = 1 and for
    horizons known on the same rows. A term that compares rows, such as MDAN's distance, is the mean over batches.
    """

    def validate_replica(replica: Replica, batch: Batch) -> tuple[jax.Array, Metrics, jax.Array]:
        labels = replica.variables.labels
        outputs = _apply(model, replica.variables, batch)
        targets = _targets(batch, replica, label_config)
        loss, terms = with_scalars(model, replica.scalars).loss(outputs, targets, labels)
        count = targets.mask.any(axis=1).sum()
        return (
            model.predict(outputs, labels),
            {name: value * count for name, value in {"total": loss, **terms}.items()},
            count,
        )

    def validate(state: TrainState, words_BxW: Array, mask_B: Array) -> tuple[jax.Array, Metrics, jax.Array]:
        batch = layout.unpack(words_BxW, mask_B)
        return jax.vmap(validate_replica, in_axes=(0, None))(state.replicas, batch)

    return jax.jit(validate)
