"""The input encoder, shared by all models: raw columns and fitted constants -> features x_BxF."""

from collections.abc import Sequence
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mean_jax.config import EncoderConfig
from mean_jax.models.initial import Normal
from mean_jax.types import Array, EncoderConstants

# Standard deviations: no training value of a light-tailed or logged column comes near, but one absurd value at
# scoring, a price in the wrong unit, would otherwise own the total of all predictions.
MAX_STANDARDISED = 20.0
# Of an embedding table that is gathered together with others; a large one would be copied for it, or come together
# from the devices that it is divided over.
_MAX_JOINT_NUMBERS = 1 << 12


def standardise(values_BxC: Array, constants: EncoderConstants) -> jax.Array:
    """Returns (s(x) - mean) / std, s the signed log1p on heavy-tailed columns, within MAX_STANDARDISED of 0.

    A missing value gives 0.
    """
    is_missing_BxC = jnp.isnan(values_BxC)
    known_BxC = jnp.where(is_missing_BxC, 0.0, values_BxC)
    logged_BxC = jnp.sign(known_BxC) * jnp.log1p(jnp.abs(known_BxC))
    chosen_BxC = jnp.where(constants.is_log[None], logged_BxC, known_BxC)
    scaled_BxC = (chosen_BxC - constants.mean[None]) * (1.0 / constants.std[None])
    return jnp.where(is_missing_BxC, 0.0, jnp.clip(scaled_BxC, -MAX_STANDARDISED, MAX_STANDARDISED))


def ple_intervals(knots_CxQ: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the bins of all columns in one list: column, low edge, width, and whether it is the column's first.

    The num_bins + 1 equally spaced quantile levels are taken from the fitted knots; equal edges are merged, so a
    column with few distinct values has fewer bins. The last bin of a column is followed by the next column's first.
    """
    levels = np.round(np.linspace(0, knots_CxQ.shape[1] - 1, num_bins + 1)).astype(int)
    columns, lows, widths, is_first = [], [], [], []
    for column, knots in enumerate(knots_CxQ):
        edges = np.unique(knots[levels])
        if len(edges) == 1:  # wide enough to be told from zero in float32
            edges = np.append(edges, edges[0] + max(1.0, abs(edges[0])))
        for index, (low, high) in enumerate(itertools.pairwise(edges)):
            columns.append(column)
            lows.append(low)
            widths.append(high - low)
            is_first.append(index == 0)
    return np.array(columns), np.array(lows, np.float32), np.array(widths, np.float32), np.array(is_first)


def piecewise_linear(values_BxC: Array, knots_CxQ: np.ndarray, num_bins: int) -> jax.Array:
    """Returns the piecewise-linear encoding of all columns side by side (Gorishniy et al. 2022, section 3.2.1).

    Within a column bin t is (x - b_{t-1}) / (b_t - b_{t-1}) cut to [0, 1], except that the first bin is not cut below
    and the last not above, so that values outside the knots keep their order. A missing value gives zeros.
    """
    columns, lows, widths, is_first = ple_intervals(knots_CxQ, num_bins)
    is_last = np.append(is_first[1:], True) if len(is_first) else is_first
    values_BxE = jnp.take(values_BxC, columns, axis=1)
    is_missing_BxE = jnp.isnan(values_BxE)
    encoded_BxE = (jnp.where(is_missing_BxE, 0.0, values_BxE) - lows[None]) / widths[None]
    encoded_BxE = jnp.where(is_first[None], encoded_BxE, jnp.maximum(encoded_BxE, 0.0))
    encoded_BxE = jnp.where(is_last[None], encoded_BxE, jnp.minimum(encoded_BxE, 1.0))
    return jnp.where(is_missing_BxE, 0.0, encoded_BxE)


def embedding_width(vocabulary_size: int, config: EncoderConfig) -> int:
    """Returns the width of one embedding table: int(V ** 0.25) + 1 unless the config fixes it (BASELINES.md 0)."""
    return config.embedding_size or int(vocabulary_size**0.25) + 1


def trained_rows(table_VxE: Array, count_V: np.ndarray) -> jax.Array:
    """Returns the embedding table with the mean training row in place of the codes that training never saw.

    Without rare or missing values in the training split their codes get no gradient, and a random vector would be
    their score.
    """
    mean_1xE = jnp.asarray(count_V / count_V.sum(), jnp.float32)[None] @ table_VxE
    return jnp.where(count_V[:, None] > 0, table_VxE, mean_1xE)


def joint_rows(tables: Sequence[Array], counts: Sequence[np.ndarray], codes_BxD: Array) -> jax.Array:
    """Returns the rows of many `trained_rows` tables that the codes name, side by side.

    Tables of one width are one table and one gather: a few large kernels that compile once, where each column would
    need several small ones. A code that its table does not have gives NaN, as `jnp.take` does.

    Args:
      tables: [V, E] per column, each of its own size.
      counts: [V] per column, training rows with each code.
      codes_BxD: a code per column.
    """
    parts, columns = [], []
    for width in sorted({table.shape[1] for table in tables}):
        chosen = [d for d, table in enumerate(tables) if table.shape[1] == width]
        sizes_G = np.array([len(counts[d]) for d in chosen])
        first_G = np.cumsum(sizes_G) - sizes_G
        # The mean row of each table, by rows padded to those of the largest one.
        place_M = np.arange(sizes_G.max())
        row_GxM = first_G[:, None] + np.minimum(place_M, sizes_G[:, None] - 1)
        count_R = np.concatenate([counts[d] for d in chosen])
        share_GxM = np.where(place_M < sizes_G[:, None], count_R[row_GxM], 0)
        share_GxM = (share_GxM / share_GxM.sum(axis=1, keepdims=True)).astype(np.float32)
        table_RxE = jnp.concatenate([tables[d] for d in chosen])
        mean_GxE = (share_GxM[..., None] * table_RxE[row_GxM]).sum(axis=1)
        of_table_R = np.repeat(np.arange(len(chosen)), sizes_G)
        table_RxE = jnp.where(count_R[:, None] > 0, table_RxE, mean_GxE[of_table_R])
        code_BxG = jnp.take(codes_BxD, np.array(chosen), axis=1)
        is_known_BxG = (code_BxG >= 0) & (code_BxG < sizes_G.astype(np.int32)[None])
        row_BxG = jnp.where(is_known_BxG, code_BxG + first_G.astype(np.int32)[None], len(count_R))
        parts.append(jnp.take(table_RxE, row_BxG, axis=0).reshape(len(codes_BxD), -1))
        columns.append(np.repeat(chosen, width))
    order_F = np.argsort(np.concatenate(columns), kind="stable")
    return jnp.take(jnp.concatenate(parts, axis=1), order_F, axis=1) if len(parts) > 1 else parts[0]


class InputEncoder(nn.Module):
    """Concatenates encoded numeric columns, indicators of missing values and embedded categories."""

    config: EncoderConfig
    constants: EncoderConstants

    @nn.compact
    def __call__(self, numeric_BxC: Array, categorical_BxD: Array) -> jax.Array:
        """Returns x_BxF float32 from raw numeric values (NaN missing) and codes (0 unknown, 1 missing)."""
        parts = []
        if numeric_BxC.shape[1]:
            if self.config.numeric == "standard":
                parts.append(standardise(numeric_BxC, self.constants))
            else:
                parts.append(piecewise_linear(numeric_BxC, self.constants.knots, self.config.num_ple_bins))
            with_missing = np.flatnonzero(self.constants.has_missing)
            if len(with_missing):
                parts.append(jnp.isnan(jnp.take(numeric_BxC, with_missing, axis=1)).astype(jnp.float32))
        counts = self.constants.category_counts
        tables = []
        for column, count_V in enumerate(counts):
            shape = (len(count_V), embedding_width(len(count_V), self.config))
            tables.append(self.param(f"embedding_{column}", Normal(fan_in_axis=1, is_truncated=False), shape))
        for is_small, run in itertools.groupby(range(len(tables)), lambda d: tables[d].size <= _MAX_JOINT_NUMBERS):
            columns = list(run)
            if is_small:
                codes_BxD = categorical_BxD[:, columns[0] : columns[-1] + 1]
                parts.append(joint_rows([tables[d] for d in columns], [counts[d] for d in columns], codes_BxD))
            else:
                parts += [jnp.take(trained_rows(tables[d], counts[d]), categorical_BxD[:, d], axis=0) for d in columns]
        return jnp.concatenate(parts, axis=1)
