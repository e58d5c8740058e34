"""The numbers that the paper prints, to stand beside ours; its data is private, so only their orders compare."""

from collections.abc import Mapping

HORIZONS = ("30", "90", "180", "365")
METRICS = ("percentile_mape", "gini", "spearman", "auc")

# Table 1: system -> per horizon (percentile MAPE, GINI, Spearman, AUC).
TABLE_1 = {
    "DNN-ZILN": (
        (0.7552, 0.4861, 0.3933, 0.7295),
        (0.5755, 0.5056, 0.4206, 0.7361),
        (0.5262, 0.5081, 0.4231, 0.7300),
        (0.3821, 0.4968, 0.4272, 0.7249),
    ),
    "MTL-ZILN": (
        (0.7239, 0.4960, 0.4075, 0.7397),
        (0.5269, 0.5044, 0.4233, 0.7393),
        (0.4551, 0.5085, 0.4292, 0.7359),
        (0.2890, 0.5069, 0.4376, 0.7313),
    ),
    "ODMN": (
        (0.6503, 0.4449, 0.4050, 0.7395),
        (0.4855, 0.4771, 0.4215, 0.7388),
        (0.3591, 0.5068, 0.4382, 0.7417),
        (0.1779, 0.4988, 0.4257, 0.7247),
    ),
    "MDAN": (
        (0.1658, 0.5080, 0.4309, 0.7428),
        (0.1332, 0.5177, 0.4566, 0.7501),
        (0.1034, 0.5239, 0.4846, 0.7487),
        (0.1206, 0.5232, 0.4829, 0.7587),
    ),
    "OptDist": (
        (0.3925, 0.4918, 0.4098, 0.7418),
        (0.1918, 0.5098, 0.4322, 0.7450),
        (0.1222, 0.5118, 0.4562, 0.7469),
        (0.1063, 0.5072, 0.4804, 0.7529),
    ),
    "MTL-MEAN": (
        (0.1630, 0.5112, 0.4298, 0.7518),
        (0.1033, 0.5192, 0.4596, 0.7536),
        (0.1129, 0.5244, 0.4669, 0.7588),
        (0.0972, 0.5194, 0.4920, 0.7597),
    ),
    "MEAN": (
        (0.1258, 0.5127, 0.4358, 0.7549),
        (0.0753, 0.5275, 0.4687, 0.7571),
        (0.0927, 0.5298, 0.4805, 0.7615),
        (0.0871, 0.5292, 0.4987, 0.7649),
    ),
}

# Tables 2 and 3: variant -> per horizon (percentile MAPE, AUC).
TABLES_2_3 = {
    "MEAN": ((0.1258, 0.7549), (0.0753, 0.7571), (0.0927, 0.7615), (0.0871, 0.7649)),
    "without KL": ((0.1918, 0.7514), (0.1706, 0.7532), (0.1162, 0.7521), (0.0953, 0.7588)),
    "without soft distillation": ((0.1727, 0.7523), (0.1001, 0.7516), (0.1228, 0.7500), (0.1121, 0.7558)),
    "MVFE": ((0.2317, 0.7539), (0.1571, 0.7531), (0.1129, 0.7508), (0.1279, 0.7551)),
}

# Table 4: group and days -> improvement of activation rate, loan rate and average daily loan amounts.
TABLE_4 = {
    "not activated, 7": ("1.51%", "0.08%", "2.20%"),
    "not activated, 14": ("2.47%", "0.11%", "4.31%"),
    "not activated, 30": ("4.24%", "0.18%", "7.01%"),
    "activated, 7": (None, "0.03%", "1.98%"),
    "activated, 14": (None, "0.06%", "2.77%"),
    "activated, 30": (None, "0.11%", "5.56%"),
}

_Numbers = Mapping[str, tuple[tuple[float, ...], ...]]
_TABLES: dict[str, tuple[_Numbers, tuple[str, ...]]] = {
    "table1": (TABLE_1, METRICS),
    "table2_3": (TABLES_2_3, ("percentile_mape", "auc")),
}


def paper_value(table: str, system: str, horizon: str, metric: str) -> float | None:
    """Returns the number that the paper prints, or None where it prints none."""
    if table not in _TABLES or horizon not in HORIZONS:
        return None
    values, metrics = _TABLES[table]
    if system not in values or metric not in metrics:
        return None
    return values[system][HORIZONS.index(horizon)][metrics.index(metric)]
