"""What is known of the synthetic customers when they activate: the feature columns, as many as one likes.

Features repeat a block of 24, which has every kind and every group that the paper names. A relevant feature sees one
or two latent variables, covered by a factor that its group shares and by noise of its own, fainter from block to block;
from some block on none is relevant. Type, activity and level of spend hang on products of traits, so that combinations
of features tell more than each of them.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math

import numpy as np
import pyarrow as pa

from mean_jax.data.synthetic_laws import CHANNELS, MONTHS, TRAITS, Customers

GROUPS = ("profile", "channel", "transactions", "periodic", "seasonal", "social")

# (group, kind, latent variables that it sees, source that may not know the customer).
_BLOCK: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("channel", "category", (), ""),  # in the first block: the channel itself
    ("seasonal", "category", (), ""),  # in the first block: the month of the activation
    ("profile", "score", ("income",), "bureau"),
    ("profile", "amount", ("income", "thrift"), "bureau"),
    ("profile", "category", ("novelty",), "survey"),
    ("profile", "count", (), "import"),
    ("channel", "score", ("novelty",), ""),
    ("channel", "share", (), "device"),
    ("transactions", "spend", ("rate",), ""),
    ("transactions", "amount", ("level",), ""),
    ("transactions", "count", ("tempo",), ""),
    ("transactions", "spend", ("income", "tempo"), ""),
    ("transactions", "share", ("thrift",), ""),
    ("transactions", "spend", (), ""),
    ("transactions", "amount", (), "import"),
    ("periodic", "share", ("tempo",), ""),
    ("periodic", "count", ("thrift",), ""),
    ("periodic", "score", (), "device"),
    ("seasonal", "spend", ("calendar",), ""),
    ("seasonal", "score", ("calendar",), ""),
    ("social", "count", ("contact",), "survey"),
    ("social", "score", ("contact", "novelty"), "survey"),
    ("social", "category", ("contact",), ""),
    ("social", "spend", (), "device"),
)
MIN_FEATURES = len(_BLOCK)
_GIVEN = ("channel", "month")  # kinds of the first two features
_RELEVANT_BLOCKS = 10
# Weight of what a feature of the first block sees in a sum of variance 1, and its decay from block to block.
_TRAIT_WEIGHT, _OUTCOME_WEIGHT, _DECAY = 0.55, 0.41, 0.85
_GROUP_WEIGHT = 0.4
_DESIGN_SEED = 720  # the design belongs to the population: it is the same for every seed of the customers
_CATEGORY_SIZES = (2, 3, 5, 8, 12, 20, 30)
_RATE_MEAN, _RATE_STD = 0.63, 1.85  # of log_rate and log_level in the population, rounded
_LEVEL_MEAN, _LEVEL_STD = 3.7, 1.15


@dataclasses.dataclass(frozen=True)
class Source:
    """Where features come from that miss together: P(unknown) = 1 / (1 + exp(-(log_odds + weight * trait)))."""

    log_odds: float
    trait: str = "income"
    weight: float = 0.0  # other than 0: that a value is missing tells something


_SOURCES = {
    "bureau": Source(-2.0, "income", -0.6),
    "survey": Source(-0.6, "contact", -0.5),
    "device": Source(-1.2),
    "import": Source(-3.0),
}
_TELLS_NOTHING = {"bureau": "import", "survey": "device"}  # stand-ins for features that are to tell nothing


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column: a sum of latent variables and noise, of variance 1, then bent as its kind says.

    Attributes:
      name: of the column: group, kind and number.
      kind: score (bell-shaped), amount (log-normal), spend (zero or heavy-tailed), count (integers, heavy-tailed),
        share (within 0 and 1), category; channel and month are categories that show what they name.
      weights: of traits, rate or level, and of the group's factor.
      noise: standard deviation of the feature's own noise.
      slope: steepness of the bend.
      shift: of the sum before it.
      scale: of the values after it.
      categories: texts by code; empty for numbers.
      source: key of the source whose gaps the feature has, or "".
    """

    name: str
    kind: str
    weights: Mapping[str, float]
    noise: float
    slope: float
    shift: float
    scale: float
    categories: tuple[str, ...]
    source: str

    @property
    def is_relevant(self) -> bool:
        """Whether the column tells anything about the labels."""
        return self.kind in _GIVEN or any(name not in GROUPS for name in self.weights)


@functools.cache
def design_features(num_features: int) -> tuple[Feature, ...]:
    """Returns the features by group; those of a smaller number are all among those of a larger one."""
    features = [_design(index) for index in range(num_features)]
    return tuple(sorted(features, key=lambda feature: GROUPS.index(feature.name.split("_")[0])))


def _design(index: int) -> Feature:
    rng = np.random.default_rng((_DESIGN_SEED, index))
    block, slot = divmod(index, len(_BLOCK))
    group, kind, seen, source = _BLOCK[slot]
    if block >= _RELEVANT_BLOCKS:
        seen = ()
    weights = {group: _GROUP_WEIGHT}
    for latent in seen:
        weight = _TRAIT_WEIGHT if latent in TRAITS else _OUTCOME_WEIGHT
        weights[latent] = float(rng.choice((-1, 1))) * weight * _DECAY**block / math.sqrt(len(seen))
    name = f"{group}_{kind}_{index:03d}"
    categories: tuple[str, ...] = ()
    if kind == "category":  # in a random order, so that texts do not tell which codes are neighbours
        categories = tuple(f"{group}_{number:02d}" for number in rng.permutation(rng.choice(_CATEGORY_SIZES)))
    if index < len(_GIVEN):
        kind, name = _GIVEN[index], ("channel_name", "seasonal_month")[index]
        categories = (CHANNELS, MONTHS)[index]
    return Feature(
        name=name,
        kind=kind,
        weights=weights,
        noise=math.sqrt(1 - sum(weight**2 for weight in weights.values())),
        slope=rng.uniform(0.7, 1.3),
        shift=rng.uniform(-1.2, -0.3),
        scale=math.exp(rng.normal()),
        categories=categories,
        source=source if seen else _TELLS_NOTHING.get(source, source),
    )


def make_columns(
    rng: np.random.Generator, features: tuple[Feature, ...], customers: Customers, num_rows: int
) -> list[pa.Array]:
    """Returns the columns of the first `num_rows` customers: float32, or dictionaries of text; null where missing.

    Everything is drawn for all customers, so that the first rows do not depend on how many are asked for.
    """
    size = len(customers.type)
    latents = dict(zip(TRAITS, customers.traits.astype(np.float32), strict=True))
    latents["rate"] = ((customers.log_rate - _RATE_MEAN) / _RATE_STD).astype(np.float32)
    latents["level"] = ((customers.log_level - _LEVEL_MEAN) / _LEVEL_STD).astype(np.float32)
    latents |= {group: rng.standard_normal(size, np.float32) for group in GROUPS}
    given = {"channel": customers.channel, "month": customers.month}
    bitmaps: dict[str, pa.Buffer | None] = {"": None}
    for name, source in _SOURCES.items():
        odds_B = np.exp(source.log_odds + source.weight * latents[source.trait])
        is_known_B = rng.random(size, np.float32) * (1 + odds_B) >= odds_B
        bitmaps[name] = pa.py_buffer(np.packbits(is_known_B, bitorder="little"))
    columns = []
    for feature in features:
        if feature.kind in given:
            values_B = given[feature.kind].astype(np.int8)
        else:
            values_B = _bend(feature, _sum(rng, feature, latents))
        kind = pa.int8() if feature.categories else pa.float32()
        column = pa.Array.from_buffers(kind, num_rows, [bitmaps[feature.source], pa.py_buffer(values_B)])
        if feature.categories:
            column = pa.DictionaryArray.from_arrays(column, pa.array(feature.categories))
        columns.append(column)
    return columns


def _sum(rng: np.random.Generator, feature: Feature, latents: Mapping[str, np.ndarray]) -> np.ndarray:
    # A few scaled additions within the cache cost a tenth of the noise; a matrix product of all features would be
    # no faster, and its last bits would depend on the number of threads.
    sum_B = rng.standard_normal(len(latents["rate"]), np.float32)
    sum_B *= feature.noise
    for name, weight in feature.weights.items():
        sum_B += latents[name] * weight
    return sum_B


def _bend(feature: Feature, sum_B: np.ndarray) -> np.ndarray:
    """Returns the values [B] of the feature, float32 or int8 codes of its categories; overwrites `sum_B`."""
    if feature.kind == "score":
        sum_B += feature.shift
        sum_B *= feature.scale
        return sum_B
    if feature.kind in ("share", "category"):
        # A logistic curve of slope 1.7 is nearly the normal distribution function, which would give uniform values.
        sum_B *= -1.7 * feature.slope
        np.exp(sum_B, out=sum_B)
        sum_B += 1.0
        np.reciprocal(sum_B, out=sum_B)
        return _codes(sum_B, len(feature.categories)) if feature.categories else sum_B
    sum_B += feature.shift
    sum_B *= 1.5 * feature.slope
    np.exp(sum_B, out=sum_B)
    if feature.kind == "count":
        return np.floor(sum_B, out=sum_B)
    if feature.kind == "spend":
        sum_B -= 1.0
        np.maximum(sum_B, 0.0, out=sum_B)
    sum_B *= 20 * feature.scale
    return sum_B


def _codes(unit_B: np.ndarray, num_categories: int) -> np.ndarray:
    unit_B *= unit_B  # makes some categories much more common than others
    unit_B *= num_categories
    return np.minimum(unit_B.astype(np.int8), num_categories - 1)
