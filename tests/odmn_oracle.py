"""ODMN written a second time in NumPy float64, tower by tower and row by row (BASELINES.md section 3).

Classes that no label can fall in are deleted here, where the model keeps them with probability 0.
"""

import numpy as np

from tests.mean_oracle import dense, mlp, relu, softmax

NAMES = ("class", "class_ordinal", "class_distillation", "bucket", "bucket_ordinal", "bucket_distillation", "bias")


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def array(value):
    return np.asarray(value, np.float64)


def edges_of(quantiles, num_positive, num_buckets):
    """Edges of all buckets of one horizon, ascending."""
    levels = np.linspace(0, 1, num_positive * num_buckets + 1)
    edges = np.interp(levels, np.linspace(0, 1, len(quantiles)), array(quantiles))
    edges[0] = 0.0
    return edges


def possible(edges, num_positive):
    """Which buckets [P, J] and sub-distributions [1 + P] a label can fall in."""
    buckets = (np.diff(edges) > 0).reshape(num_positive, -1)
    return buckets, np.append(True, buckets.any(axis=1))


def tower(h, layers, m, num_layers):
    """Tower m of a block of parallel towers."""
    x = relu(h @ array(layers["kernel_0"])[:, m] + array(layers["bias_0"])[m])
    for index in range(1, num_layers):
        x = relu(x @ array(layers[f"kernel_{index}"])[m] + array(layers[f"bias_{index}"])[m])
    return x


def output(x, layers, m):
    return x @ array(layers["kernel_0"])[m] + array(layers["bias_0"])[m]


def ordinal_output(x, layers, m, form):
    score = output(x, layers["score"], m)
    return score if form == "free" else score - np.cumsum(softplus(array(layers["steps"])[m]))


def mdme(h, head, config, num_positive):
    """Returns the five logits of one horizon, before the mono unit."""
    towers = [tower(h, head["towers"], m, 2) for m in range(2 + 3 * num_positive)]
    classes, exceedances, biases = (towers[2 + i * num_positive : 2 + (i + 1) * num_positive] for i in range(3))
    return {
        "class": dense(towers[0], head["dct"]),
        "class_ordinal": ordinal_output(towers[1], head["dot"], 0, config.ordinal),
        "bucket": np.stack([output(t, head["bct"], p) for p, t in enumerate(classes)], axis=1),
        "bucket_ordinal": np.stack(
            [ordinal_output(t, head["bot"], p, config.ordinal) for p, t in enumerate(exceedances)], axis=1
        ),
        "bias": np.stack([output(t, head["bbt"], p) for p, t in enumerate(biases)], axis=1),
    }


def mono(o, unit, form):
    """Returns what a mono unit adds to the class logits and, flat, to the bucket logits."""
    if form == "survival":
        o = np.stack([o[:, j:].sum(axis=1) for j in range(o.shape[1])], axis=1)
    z = relu(o @ softplus(array(unit["hidden"])) + array(unit["bias"]))
    return z @ softplus(array(unit["class"])), z @ softplus(array(unit["bucket"]))


def forward(x, params, all_edges, config, num_positive):
    """Returns the five logits of each horizon."""
    bottom = mlp(x, params["bottom"], 2)
    heads = []
    for k in range(len(all_edges)):
        h = bottom
        if config.backbone == "mmoe":
            size = config.num_experts
            gate = softmax(dense(bottom, params["gate"])[:, k * size : (k + 1) * size])
            h = sum(gate[:, m : m + 1] * tower(bottom, params["experts"], m, 1) for m in range(size))
        head = mdme(h, params[f"head_{k}"], config, num_positive)
        if heads and config.mono:
            to_class, to_bucket = mono(joint(heads[-1], all_edges[k - 1]), params[f"mono_{k}"], config.mono_input)
            head["class"] = head["class"] + to_class
            head["bucket"] = head["bucket"] + to_bucket.reshape(head["bucket"].shape)
        heads.append(head)
    return heads


def joint(head, edges):
    """Returns P(d) P(j | d) over zero and all buckets [B, 1 + P J]."""
    num_rows, num_positive, num_buckets = head["bucket"].shape
    buckets, classes = possible(edges, num_positive)
    p_class = np.zeros((num_rows, 1 + num_positive))
    p_class[:, classes] = softmax(head["class"][:, classes])
    p = np.zeros((num_rows, num_positive, num_buckets))
    for d in np.flatnonzero(classes[1:]):
        p[:, d, buckets[d]] = p_class[:, 1 + d, None] * softmax(head["bucket"][:, d][:, buckets[d]])
    return np.concatenate([p_class[:, :1], p.reshape(num_rows, -1)], axis=1)


def decode(heads, all_edges, how):
    """Returns [B, K]."""
    columns = []
    for head, edges in zip(heads, all_edges, strict=True):
        values = edges[:-1] + sigmoid(head["bias"]).reshape(len(head["bias"]), -1) * np.diff(edges)
        if how == "expected":
            columns.append((joint(head, edges)[:, 1:] * values).sum(axis=1))
            continue
        num_positive, num_buckets = head["bucket"].shape[1:]
        buckets, classes = possible(edges, num_positive)
        column = np.zeros(len(values))
        for row in range(len(values)):
            d = int(np.argmax(np.where(classes, head["class"][row], -np.inf))) - 1
            if d >= 0:
                j = int(np.argmax(np.where(buckets[d], head["bucket"][row, d], -np.inf)))
                column[row] = values[row, d * num_buckets + j]
        columns.append(column)
    return np.stack(columns, axis=1)


def ordinal_probabilities(q):
    steps = np.maximum(np.append(1.0, q) - np.append(q, 0.0), 0.0)
    return steps / steps.sum()


def classification(logits, exceedance_logits, label, is_possible):
    """Returns (cross entropy, ordinal loss, distillation) among the possible classes of one row."""
    kept = np.flatnonzero(is_possible)
    log_p = np.log(softmax(logits[kept]))
    q = sigmoid(exceedance_logits[kept[:-1]])
    place = list(kept).index(label)
    above = place > np.arange(len(q))
    return -log_p[place], -np.where(above, np.log(q), np.log1p(-q)).sum(), -(ordinal_probabilities(q) * log_p).sum()


def row_terms(head, row, value, edges):
    """Returns the seven terms of one label."""
    num_positive, num_buckets = head["bucket"].shape[1:]
    buckets, classes = possible(edges, num_positive)
    value = min(value, edges[-1])
    index = int((edges[:-1] < value * (1 - 1e-6)).sum()) - 1
    d, j = (1 + index // num_buckets, index % num_buckets) if value > 0 else (0, 0)
    result = dict.fromkeys(NAMES, 0.0)
    terms = classification(head["class"][row], head["class_ordinal"][row], d, classes)
    result |= dict(zip(NAMES[:3], terms, strict=True))
    if d > 0:
        terms = classification(head["bucket"][row, d - 1], head["bucket_ordinal"][row, d - 1], j, buckets[d - 1])
        result |= dict(zip(NAMES[3:6], terms, strict=True))
        bias = np.clip((value - edges[index]) / (edges[index + 1] - edges[index]), 0, 1)
        result["bias"] = (sigmoid(head["bias"][row, d - 1, j]) - bias) ** 2
    return result


def loss_terms(heads, y, known, all_edges, scale):
    """Returns the eight terms: means over known rows, summed over horizons or over neighbours."""
    totals = dict.fromkeys(NAMES, 0.0)
    for k, head in enumerate(heads):
        for row in np.flatnonzero(known[:, k]):
            for name, value in row_terms(head, row, float(y[row, k]), all_edges[k]).items():
                totals[name] += value / known[:, k].sum()
    if len(heads) > 1:
        currency = decode(heads, all_edges, "expected") * scale
        totals["calibration"] = 0.0
        for k in range(len(heads) - 1):
            excess = np.maximum(currency[:, k] - currency[:, k + 1], 0) / scale[k + 1]
            totals["calibration"] += excess[known[:, k] | known[:, k + 1]].mean()
    return totals
