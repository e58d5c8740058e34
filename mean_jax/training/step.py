"""The pure functions of training: one step, a dispatch of S steps, the end of an epoch, predictions."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

from mean_jax.batch_axis import BatchAxis
from mean_jax.config import LabelConfig
from mean_jax.labels import make_targets
from mean_jax.models.base import Model, with_scalars
from mean_jax.sharding import batch_axis
from mean_jax.training.state import Replica, TrainState, Variables
from mean_jax.types import Array, Batch, RowLayout, Targets

Metrics = dict[str, jax.Array]
PredictFn = Callable[[Variables, Array, Array], dict[str, jax.Array]]


def _targets(batch: Batch, replica: Replica, config: LabelConfig) -> Targets:
    return make_targets(batch.labels[:, replica.horizons], replica.variables.labels, batch.mask, config)


def _apply(model: Model, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Returns the model's outputs in evaluation mode."""
    collections = {"params": variables.params, "batch_stats": variables.batch_stats}
    rows = (batch.numeric, batch.categorical, batch.mask)
    outputs: Any = model.apply(collections, *rows, variables.labels, train=False)
    return outputs


@dataclasses.dataclass(frozen=True)
class StepRule:
    """What a train step follows besides its state and batch."""

    model: Model
    optimizer: optax.GradientTransformation
    label_config: LabelConfig
    layout: RowLayout  # of the words that it gets
    skip_nonfinite: bool = False  # leave out a batch whose loss or gradient is not finite
    divided: frozenset[int] = frozenset()  # leaves of the parameters that lie in parts along `model`


def _added_up(axis: BatchAxis, metrics: Metrics, gradients: Any, divided: frozenset[int]) -> tuple[Metrics, Any]:
    """Returns the sums over the devices of all leaves, in one all-reduce and one more for each divided gradient."""
    if axis.name is None:
        return metrics, gradients
    leaves, structure = jax.tree.flatten(gradients)
    whole = [leaf for i, leaf in enumerate(leaves) if i not in divided]
    flat, unravel = jax.flatten_util.ravel_pytree((metrics, whole))
    metrics, whole = unravel(axis.sum(flat))
    rest = iter(whole)
    summed = [axis.sum(leaf) if i in divided else next(rest) for i, leaf in enumerate(leaves)]
    return metrics, jax.tree.unflatten(structure, summed)


def replica_step(
    rule: StepRule, step: Array, replica: Replica, batch: Batch, count_T: Array
) -> tuple[Replica, Metrics, jax.Array]:
    """Returns the replica after one optimiser step, the loss terms (scalars) with their total, and whether all is well.

    Args:
      rule: the model and what belongs to it; the model's `batch_axis` says how the rows are divided.
      step: number of steps before this one.
      replica: one model.
      batch: this device's rows.
      count_T: known labels per horizon in the whole batch.

    Returns:
      The last is False if the loss or the gradient is not finite; a rule that skips such a batch then returns the
      replica as it was.
    """
    model = with_scalars(rule.model, replica.scalars)
    labels = replica.variables.labels
    targets = _targets(batch, replica, rule.label_config)._replace(num_known=jnp.asarray(count_T)[replica.horizons])
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
    metrics, gradients = _added_up(model.batch_axis, {"total": loss, **terms}, gradients, rule.divided)
    # A sum is finite only if all its addends are.
    is_finite = jnp.isfinite(metrics["total"] + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients)))
    updates, opt_state = rule.optimizer.update(gradients, replica.opt_state, replica.variables.params)
    params = optax.apply_updates(replica.variables.params, updates)
    new = (Variables(params, batch_stats, labels), opt_state)
    if rule.skip_nonfinite:
        old = (replica.variables, replica.opt_state)
        new = jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, old)
    return replica._replace(variables=new[0], opt_state=new[1]), metrics, is_finite


def train_step(
    rule: StepRule, state: TrainState, batch: Batch, count_T: Array
) -> tuple[TrainState, Metrics, jax.Array]:
    """Returns the state after one step of all replicas on the same batch, each loss term [R] and is_finite [R].

    A state of one replica may come without the axis R; state, loss terms and is_finite are returned without it then.
    """
    step_fn = functools.partial(replica_step, rule, state.step)
    if state.replicas.is_active.ndim:
        step_fn = jax.vmap(step_fn, in_axes=(0, None, None))
    replicas, metrics, is_finite = step_fn(state.replicas, batch, count_T)
    return TrainState(state.step + 1, replicas), metrics, is_finite


def _mean_metrics(rule: StepRule, first_step: Array, metrics_S: Metrics, is_finite_SxR: Array) -> Metrics:
    """Returns the means over the steps of a dispatch, and which of them failed.

    `bad_step` is the number, counted from 1, of the first step that was not finite, 0 if all were; `skipped` how many
    batches were left out. Means are over the others then. Without skipping, the terms are those of the bad step: after
    it none is finite, at it the one at fault alone.
    """
    is_bad_SxR = ~is_finite_SxR
    is_bad, first_bad = is_bad_SxR.any(axis=0), jnp.argmax(is_bad_SxR, axis=0)
    bad_step = jnp.where(is_bad, first_step + 1 + first_bad, 0)
    if not rule.skip_nonfinite:

        def mean_or_bad(value_SxR: jax.Array) -> jax.Array:
            bad_value = jnp.take_along_axis(value_SxR, first_bad[None], axis=0)[0]
            return jnp.where(is_bad, bad_value, value_SxR.mean(axis=0))

        means = jax.tree.map(mean_or_bad, metrics_S)
        return {**means, "bad_step": bad_step, "skipped": jnp.zeros_like(bad_step)}
    count = jnp.maximum(is_finite_SxR.sum(axis=0), 1)
    means = {
        name: jnp.where(is_finite_SxR, value_SxR, 0.0).sum(axis=0) / count for name, value_SxR in metrics_S.items()
    }
    return {**means, "bad_step": bad_step, "skipped": is_bad_SxR.sum(axis=0)}


def _run_steps(
    rule: StepRule, state: TrainState, rows_Sx: Any, words_fn: Callable[[Any], jax.Array], count_SxT: Array
) -> tuple[TrainState, Metrics]:
    """Scans the steps; `words_fn` gives the words_BxW of one step's entry of `rows_Sx`."""
    # An axis R of length 1 costs a tenth of the step on a CPU, by slower reductions and copies of the state: it is
    # taken off around the scan.
    is_single = len(state.replicas.is_active) == 1
    if is_single:
        state = state._replace(replicas=jax.tree.map(lambda leaf_R: leaf_R[0], state.replicas))

    def step_fn(state: TrainState, step_input: tuple[Any, Any]) -> tuple[TrainState, tuple[Metrics, jax.Array]]:
        words_BxW = words_fn(step_input[0])
        batch = rule.layout.unpack(words_BxW, jnp.ones(words_BxW.shape[0], bool))
        state, metrics, is_finite = train_step(rule, state, batch, step_input[1])
        return state, (metrics, is_finite)

    first_step = state.step
    state, (metrics_S, is_finite_S) = jax.lax.scan(step_fn, state, (rows_Sx, count_SxT))
    metrics = _mean_metrics(rule, first_step, metrics_S, is_finite_S)
    if is_single:
        replicas, metrics = jax.tree.map(lambda leaf: leaf[None], (state.replicas, metrics))
        state = state._replace(replicas=replicas)
    return state, metrics


def _rule_on(mesh: Mesh, shardings: Any, rule: StepRule) -> StepRule:
    """Returns the rule for devices that see the batch and the state as the mesh and the shardings divide them."""
    params = jax.tree.leaves(shardings.replicas.variables.params)
    divided = frozenset(i for i, sharding in enumerate(params) if "model" in sharding.spec)
    return dataclasses.replace(rule, model=rule.model.clone(batch_axis=batch_axis(mesh)), divided=divided)


def _jit_on(mesh: Mesh, shardings: Any, dispatch_fn: Callable[..., Any], *row_specs: P) -> Callable[..., Any]:
    """Returns the jitted dispatch on the mesh: rows divided over `data`, replicas over `replica`; the state is donated.

    The axis `model` is left to the compiler, which keeps the state as `shardings` say. Metrics stay where their
    replicas are. In a job of several processes all get them, as the loop could not gather them without waiting for the
    dispatch under way.
    """
    if mesh.size == 1:
        return jax.jit(dispatch_fn, donate_argnums=0)
    state_spec: Any = TrainState(P(), P("replica"))  # type: ignore[arg-type]  # specs in place of arrays
    return jax.jit(
        jax.shard_map(
            dispatch_fn,
            mesh=mesh,
            in_specs=(state_spec, *row_specs),
            out_specs=(state_spec, P("replica")),
            axis_names={name for name in mesh.axis_names if name != "model" or mesh.shape["model"] == 1},
            check_vma=False,  # gradients are added up by hand, all in one sum
        ),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P() if mesh.is_multi_process else P("replica"))),
    )


def make_dispatch(
    rule: StepRule, mesh: Mesh, shardings: Any
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted (state, words_SxBxW) -> (state, metrics [R]), see `_mean_metrics`; the state is donated.

    Metrics are the means over S of each loss term, and `bad_step` and `skipped`. `shardings` are those of the state.
    """
    axis = batch_axis(mesh)
    rule = _rule_on(mesh, shardings, rule)

    def dispatch(state: TrainState, words_SxBxW: Any) -> tuple[TrainState, Metrics]:
        # One small sum for the whole dispatch, so that no step has to ask how many labels its batch has.
        count_SxT = axis.sum((~jnp.isnan(rule.layout.labels_of(words_SxBxW))).sum(axis=1))
        return _run_steps(rule, state, words_SxBxW, lambda words_BxW: words_BxW, count_SxT)

    return _jit_on(mesh, shardings, dispatch, P(None, "data"))


def make_resident_dispatch(
    rule: StepRule, mesh: Mesh, shardings: Any
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted (state, words_NxW, index_SxB) -> (state, metrics [R]) for rows that stay on the devices.

    The words of all training rows are divided over `data`; a batch is the rows at its indices, which no process has to
    read or send again. The result is that of `make_dispatch` on the same rows.
    """
    axis = batch_axis(mesh)
    rule = _rule_on(mesh, shardings, rule)

    def dispatch(state: TrainState, words_NxW: Any, index_SxB: Any) -> tuple[TrainState, Metrics]:
        num_rows = len(words_NxW)

        def place(index_x: Any) -> tuple[jax.Array, jax.Array]:
            """Returns where a row stands on this device, and whether it does."""
            first = 0 if axis.name is None else jax.lax.axis_index(axis.name) * num_rows
            is_here_x = (index_x >= first) & (index_x < first + num_rows)
            return jnp.where(is_here_x, index_x - first, 0), is_here_x

        def words_of(index_B: Any) -> jax.Array:
            if axis.name is None:
                return words_NxW[index_B]
            place_B, is_here_B = place(index_B)
            # Each row stands on one device: a sum of integers brings its bits, NaN and all, to where it is needed.
            bits_BxW = jax.lax.bitcast_convert_type(words_NxW[place_B], jnp.uint32)
            bits_BxW = jnp.where(is_here_B[:, None], bits_BxW, 0)
            own_bits_BxW = jax.lax.psum_scatter(bits_BxW, axis.name, scatter_dimension=0, tiled=True)
            return jax.lax.bitcast_convert_type(own_bits_BxW, jnp.float32)

        is_known_NxT = ~jnp.isnan(rule.layout.labels_of(words_NxW))
        place_SxB, is_here_SxB = place(index_SxB)
        count_SxT = axis.sum((is_known_NxT[place_SxB] & is_here_SxB[..., None]).sum(axis=1))
        return _run_steps(rule, state, index_SxB, words_of, count_SxT)

    return _jit_on(mesh, shardings, dispatch, P("data"), P())


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


def make_predict(model: Model, layout: RowLayout, mesh: Mesh, with_diagnostics: bool = False) -> PredictFn:
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

    return jax.jit(predict, out_shardings=NamedSharding(mesh, P()))


def make_validate(
    rule: StepRule, mesh: Mesh
) -> Callable[[TrainState, Array, Array], tuple[jax.Array, Metrics, jax.Array]]:
    """Returns the jitted (state, words_BxW, mask_B) -> (scaled_RxBxK, sums of each loss term [R], label counts [R]).

    Sums divided by counts over all batches give the exact mean of terms that are means over rows, for K = 1 and for
    horizons known on the same rows. A term that compares rows, such as MDAN's distance, is the mean over batches.
    """

    def validate_replica(replica: Replica, batch: Batch) -> tuple[jax.Array, Metrics, jax.Array]:
        labels = replica.variables.labels
        outputs = _apply(rule.model, replica.variables, batch)
        targets = _targets(batch, replica, rule.label_config)
        loss, terms = with_scalars(rule.model, replica.scalars).loss(outputs, targets, labels)
        count = targets.mask.any(axis=1).sum()
        return (
            rule.model.predict(outputs, labels),
            {name: value * count for name, value in {"total": loss, **terms}.items()},
            count,
        )

    def validate(state: TrainState, words_BxW: Array, mask_B: Array) -> tuple[jax.Array, Metrics, jax.Array]:
        batch = rule.layout.unpack(words_BxW, mask_B)
        return jax.vmap(validate_replica, in_axes=(0, None))(state.replicas, batch)

    return jax.jit(validate, out_shardings=NamedSharding(mesh, P()))
