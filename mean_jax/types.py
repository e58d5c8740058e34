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

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import jax

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_FLOAT16_NAN = 0x7E00

# A name alone: JAX takes most of a second to import, which the workers of prepare can do without.
Array: TypeAlias = Union["jax.Array", np.ndarray]


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
    num_known: Array  # [K] int32, true rows of the mask in the whole batch, also where these rows are a part of it


class EncoderConstants(NamedTuple):
    """What the input encoder needs of the fitted transform; fitted on the training split only."""

    is_log: np.ndarray  # [C] bool; True where the signed log1p comes before the standardisation
    mean: np.ndarray  # [C] float32, of the (signed-log) values
    std: np.ndarray  # [C] float32, > 0
    has_missing: np.ndarray  # [C] bool; True where an indicator is added
    knots: np.ndarray  # [C, Q] float32, non-decreasing quantiles of the raw values
    category_counts: tuple[np.ndarray, ...]  # D arrays [V] int64, training rows per code


def _float16_bits(numeric_BxC: np.ndarray, exponents: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values divided by 2 ** exponent, limited to the range of float16, as its bits in uint32.

    Rounds to the nearest, ties to even, as NumPy's cast does at three times the cost. Below float16's smallest normal
    number float32 has rounded once before: about one such value in 16,000 goes to the other neighbour. Needs subnormal
    numbers, which the threads of XLA take for zero: not for its callbacks.
    """
    # Multiplied by 2 ** -112 the fields of a float32 are those of a float16 with 13 more digits, subnormal or not.
    shift_C = -112 - np.array(exponents, np.int32)
    half_C = shift_C // 2  # two factors: one could be beyond float32 where the product is not
    with np.errstate(over="ignore"):  # what overflows is far beyond the largest number
        scaled_BxC = numeric_BxC * np.ldexp(np.float32(1), half_C)
        scaled_BxC *= np.ldexp(np.float32(1), shift_C - half_C)
    limit = np.ldexp(np.float32(_MAX_FLOAT16), -112)
    np.clip(scaled_BxC, -limit, limit, out=scaled_BxC)
    bits_BxC = scaled_BxC.view(np.uint32)
    sign_BxC = bits_BxC >> 16
    sign_BxC &= 0x8000
    bits_BxC &= 0x7FFFFFFF
    np.minimum(bits_BxC, _FLOAT16_NAN << 13, out=bits_BxC)  # NaN alone is larger; its exponent has no place
    odd_BxC = bits_BxC >> 13
    odd_BxC &= 1
    bits_BxC += odd_BxC
    bits_BxC += 0xFFF
    bits_BxC >>= 13
    bits_BxC |= sign_BxC
    return bits_BxC


class RowLayout(NamedTuple):
    """How the four-byte words of one stored row divide: numeric values, category codes, labels.

    Numeric values of two bytes stand in pairs. float16 has few exponents, so each column brings a power of two of its
    own by which its values are divided; what exceeds the range even so becomes the largest number.
    """

    num_numeric: int
    num_categorical: int
    num_labels: int
    numeric_type: str = "float32"  # or float16, bfloat16
    exponents: tuple[int, ...] = ()  # [C] of float16: stored = value / 2 ** exponent

    @property
    def num_numeric_words(self) -> int:
        """Words of the numeric values."""
        return self.num_numeric if self.numeric_type == "float32" else -(-self.num_numeric // 2)

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self.numeric_type == "bfloat16" else self.numeric_type)

    @property
    def num_words(self) -> int:
        """Words of a row: W."""
        return self.num_numeric_words + self.num_categorical + self.num_labels

    @property
    def _scale_C(self) -> np.ndarray:
        """By what float16 values are multiplied."""
        scale_C: np.ndarray = np.ldexp(np.float32(1), np.array(self.exponents, np.int32))
        return scale_C

    @property
    def as_float32(self) -> "RowLayout":
        """The layout of the same columns with numeric values in float32."""
        return self._replace(numeric_type="float32", exponents=())

    def pack(self, numeric_BxC: np.ndarray, codes_BxD: np.ndarray, labels_BxT: np.ndarray) -> np.ndarray:
        """Returns words_BxW float32 of float32 values with NaN for missing, int32 codes and labels."""
        if self.numeric_type != "float32":
            pairs_BxC = np.zeros((len(numeric_BxC), 2 * self.num_numeric_words), self._dtype)
            if self.numeric_type == "float16":
                pairs_BxC.view(np.uint16)[:, : self.num_numeric] = _float16_bits(numeric_BxC, self.exponents)
            else:
                pairs_BxC[:, : self.num_numeric] = numeric_BxC
            numeric_BxC = pairs_BxC.view(np.float32)
        parts = (numeric_BxC, codes_BxD.astype(np.int32).view(np.float32), labels_BxT.astype(np.float32))
        return np.concatenate(parts, axis=1)

    def labels_of(self, words_xW: np.ndarray) -> np.ndarray:
        """Returns the labels alone."""
        return words_xW[..., self.num_words - self.num_labels :]

    def widen(self, words_BxW: np.ndarray) -> np.ndarray:
        """Returns the rows in the layout `as_float32`, on the host."""
        if self.numeric_type == "float32":
            return words_BxW
        stored_BxC = words_BxW[:, : self.num_numeric_words].view(self._dtype)[:, : self.num_numeric]
        wide_BxW = np.empty((len(words_BxW), self.as_float32.num_words), np.float32)
        wide_BxW[:, self.num_numeric :] = words_BxW[:, self.num_numeric_words :]
        numeric_BxC = wide_BxW[:, : self.num_numeric]
        numeric_BxC[:] = stored_BxC
        if self.exponents:
            numeric_BxC *= self._scale_C
        return wide_BxW

    def convert(self, words_BxW: np.ndarray, target: "RowLayout") -> np.ndarray:
        """Returns the rows in another layout of the same columns, on the host."""
        if self == target:
            return words_BxW
        wide_BxW = self.widen(words_BxW)
        numeric_BxC, rest_BxW = wide_BxW[:, : self.num_numeric], wide_BxW[:, self.num_numeric :]
        codes_BxD = rest_BxW[:, : self.num_categorical].view(np.int32)
        return target.pack(numeric_BxC, codes_BxD, rest_BxW[:, self.num_categorical :])

    def unpack(self, words_xW: Array, mask_x: Array) -> Batch:
        """Returns the parts of float32 words as a Batch; runs on device, where the slices cost nothing."""
        import jax
        import jax.numpy as jnp

        numeric_end, labels_start = self.num_numeric_words, self.num_words - self.num_labels
        numeric = jnp.asarray(words_xW)[..., :numeric_end]
        if self.numeric_type != "float32":
            pairs = jax.lax.bitcast_convert_type(numeric, self._dtype)
            numeric = pairs.reshape(*numeric.shape[:-1], 2 * numeric_end)[..., : self.num_numeric].astype(jnp.float32)
        if self.exponents:
            numeric = numeric * self._scale_C.reshape((1,) * (numeric.ndim - 1) + (-1,))
        return Batch(
            numeric=numeric,
            categorical=jax.lax.bitcast_convert_type(words_xW[..., numeric_end:labels_start], np.int32),
            labels=words_xW[..., labels_start:],
            mask=mask_x,
        )
