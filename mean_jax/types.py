"""The data that passes between the parts of mean-jax, and the legend of array dimensions.

Arrays of rank >= 1 carry their dimensions in their names, e.g. ``gate_BxNxM``:

  B  rows of a batch             N  buckets (sub-distributions of the label; bucket 0 is zero)
  C  numeric columns             M  experts
  D  categorical columns         H  hidden width
  F  input features, encoded     T  horizons
  K  horizons of one replica     S  steps per dispatch
  R  replicas                    V  rows of a validation or test split

Fields of structs and keys of dicts do not carry them; their shapes stand in the comments here.
"""

from typing import NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Raw rows as the store holds them; `data` makes it, `models` and `training` read it."""

    numeric: Array  # [B, C] float32, raw values; NaN where missing
    categorical: Array  # [B, D] int32 codes; 0 unknown, 1 missing
    labels: Array  # [B, T] float32, currency; NaN where the horizon is not fully observed
    mask: Array  # [B] bool; False on padding rows


class Targets(NamedTuple):
    """The labels of one replica's K horizons on the training scale."""

    scaled: Array  # [B, K] float32 in [0, cap]
    bucket: Array  # [B, K] int32 in [0, N)
    mask: Array  # [B, K] bool; False where the label is unknown or the row is padding


class EncoderConstants(NamedTuple):
    """What the input encoder needs of the fitted transform; fitted on the training split only."""

    is_log: np.ndarray  # [C] bool; True where the signed log1p comes before the standardisation
    mean: np.ndarray  # [C] float32, of the (signed-log) values
    std: np.ndarray  # [C] float32, > 0
    has_missing: np.ndarray  # [C] bool; True where an indicator is added
    knots: np.ndarray  # [C, Q] float32, non-decreasing quantiles of the raw values
    category_counts: tuple[np.ndarray, ...]  # D arrays [V] int64, training rows per code


class RowLayout(NamedTuple):
    """How the four-byte words of one stored row divide: numeric values, category codes, labels."""

    num_numeric: int
    num_categorical: int
    num_labels: int

    @property
    def num_words(self) -> int:
        return sum(self)

    def labels_of(self, words_xW: np.ndarray) -> np.ndarray:
        """Returns the labels alone."""
        return words_xW[..., self.num_numeric + self.num_categorical :]

    def unpack(self, words_xW: Array, mask_x: Array) -> Batch:
        """Returns the parts of float32 words as a Batch; runs on device, where the slices cost nothing."""
        codes_end = self.num_numeric + self.num_categorical
        codes_xD = words_xW[..., self.num_numeric : codes_end]
        return Batch(
            numeric=words_xW[..., : self.num_numeric],
            categorical=jax.lax.bitcast_convert_type(codes_xD, np.int32),
            labels=words_xW[..., codes_end:],
            mask=mask_x,
        )
