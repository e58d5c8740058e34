"""Inputs that the tests of the models share."""

import numpy as np

from mean_jax.types import EncoderConstants


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
