"""Inputs that the tests of the models share."""

import jax
import jax.numpy as jnp
import numpy as np

from mean_jax.sharding import data_mesh, state_shardings
from mean_jax.training.step import make_dispatch
from mean_jax.types import EncoderConstants, Targets


def plain_constants(num_columns: int) -> EncoderConstants:
    """Returns constants under which the input encoder leaves numeric columns as they are."""
    return EncoderConstants(
        is_log=np.zeros(num_columns, bool),
        mean=np.zeros(num_columns, np.float32),
        std=np.ones(num_columns, np.float32),
        has_missing=np.zeros(num_columns, bool),
        knots=np.zeros((num_columns, 65)),
        category_counts=(),
    )


def whole_targets(scaled_BxK, mask_BxK, bucket_BxK=None) -> Targets:
    """Returns the targets of an undivided batch; without buckets, all in bucket 0."""
    bucket_BxK = np.zeros(np.shape(scaled_BxK), np.int32) if bucket_BxK is None else bucket_BxK
    mask_BxK = np.asarray(mask_BxK)
    return Targets(*map(jnp.asarray, (scaled_BxK, bucket_BxK, mask_BxK, mask_BxK.sum(axis=0))))


def one_device():
    """Returns the mesh of a single device."""
    return data_mesh(jax.devices()[:1])


def shardings_of(program, mesh, config=None):
    """Returns the shardings of the program's state on a mesh."""
    return state_shardings(mesh, program.abstract_state, config or program.config.mesh)


def dispatch_of(program, mesh=None):
    """Returns the dispatch of a program on rows of its schema's layout, on one device unless a mesh is given."""
    mesh = mesh or one_device()
    return make_dispatch(program.step_rule(program.schema.layout), mesh, shardings_of(program, mesh))


def take_rows(outputs, targets, rows):
    """Returns outputs and targets of some rows, in their order, as a batch of their own."""
    outputs = jax.tree.map(lambda leaf: leaf[rows], outputs)
    return outputs, whole_targets(targets.scaled[rows], targets.mask[rows], targets.bucket[rows])
