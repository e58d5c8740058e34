"""The program of configs/mean.py on made-up constants, and rows for it, for benchmarks that need no store."""

from collections.abc import Sequence

import numpy as np

from mean_jax.config import load_config, parse_config
from mean_jax.data.schema import Schema
from mean_jax.data.transform import KNOT_LEVELS, LABEL_LEVELS, Transform
from mean_jax.models import MODEL_CONFIGS
from mean_jax.run import Program
from mean_jax.types import RowLayout


def make_program(
    num_features: int, num_horizons: int, overrides: Sequence[str] = (), num_categories: Sequence[int] = ()
) -> Program:
    """Returns the program for numeric features, of which half take the signed log, and categorical ones.

    Args:
      num_features: F.
      num_horizons: T, a replica each.
      overrides: `section.field=value` of the configuration.
      num_categories: values of each categorical feature.
    """
    schema = Schema(
        id_name="id",
        id_type="int64",
        labels=tuple(f"cltv_{index}" for index in range(num_horizons)),
        numeric=tuple(f"x_{index}" for index in range(num_features)),
        categorical=tuple(f"c_{index}" for index in range(len(num_categories))),
        split=(1.0, 0.0, 0.0),
        split_seed=0,
        split_column=None,
    )
    transform = Transform(
        is_log=np.arange(num_features) % 2 == 0,
        mean=np.zeros(num_features, np.float32),
        std=np.ones(num_features, np.float32),
        missing_rate=np.zeros(num_features, np.float32),
        knots=np.zeros((num_features, len(KNOT_LEVELS)), np.float32),
        vocabularies=tuple(tuple(map(str, range(count))) for count in num_categories),
        category_counts=tuple((0, *[1] * (1 + count)) for count in num_categories),
        positive_quantiles=np.tile(np.exp(5.0 * LABEL_LEVELS), (num_horizons, 1)),
        positive_rate=np.full(num_horizons, 0.3),
        label_mean=np.full(num_horizons, 10.0),
    )
    return Program(parse_config(load_config("mean", overrides), MODEL_CONFIGS), schema, transform)


def normal_words(layout: RowLayout, num_rows: int) -> np.ndarray:
    """Returns words_BxW of normal features and zero-inflated lognormal labels."""
    rng = np.random.default_rng(0)
    words_BxW = rng.standard_normal((num_rows, layout.num_words), np.float32)
    labels_BxT = layout.labels_of(words_BxW)
    labels_BxT[:] = np.where(rng.random(labels_BxT.shape) < 0.3, np.exp(3.0 + labels_BxT), 0.0)
    return words_BxW
