"""ODMN written a second time in NumPy float64, tower by tower and bucket by bucket (BASELINES.md section 3)."""

import numpy as np

from tests.mean_oracle import dense, mlp, relu, softmax


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def edges_of(quantiles, num_positive, num_buckets):
    """Edges of all buckets of one horizon, ascending."""
    levels = np.linspace(0, 1, num_positive * num_buckets + 1)
    edges = np.interp(levels, np.linspace(0, 1, len(quantiles)), np.asarray(quantiles, np.float64))
    edges[0] = 0.0
    return edges


def array(value):
    return np.asarray(value, np.float64)


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
    if form == "free":
        return score
    return score - np.cumsum(np.log1p(np.exp(array(layers["steps"])[m])))


def forward(x, params, quantiles, config, num_positive):
    """Returns the five logits of each horizon."""
    bottom = mlp(x, params["bottom"], 2)
    heads = []
    for k in range(len(quantiles)):
        h = bottom
        if config.backbone == "mmoe":
            size = config.num_experts
            gate = softmax(dense(bottom, params["gate"])[:, k * size : (k + 1) * size])
            h = sum(gate[:, m : m + 1] * tower(bottom, params["experts"], m, 1) for m in range(size))
        head = params[f"head_{k}"]
        towers = [tower(h, head["towers"], m, 2) for m in range(2 + 3 * num_positive)]
        parts = [towers[2 + i * num_positive : 2 + (i + 1) * num_positive] for i in range(3)]
        result = {
            "class": dense(towers[0], head["dct"]),
            "class_ordinal": ordinal_output(towers[1], head["dot"], 0, config.ordinal),
            "bucket": np.stack([output(t, head["bct"], p) for p, t in enumerate(parts[0])], axis=1),
            "bucket_ordinal": np.stack(
                [ordinal_output(t, head["bot"], p, config.ordinal) for p, t in enumerate(parts[1])], axis=1
            ),
            "bias": np.stack([output(t, head["bbt"], p) for p, t in enumerate(parts[2])], axis=1),
        }
        if heads and config.mono:
            unit = params[f"mono_{k}"]
            o = joint(heads[-1])
            if config.mono_input == "survival":
                o = np.stack([o[:, j:].sum(axis=1) for j in range(o.shape[1])], axis=1)
            positive = {name: np.log1p(np.exp(array(unit[name]))) for name in ("hidden", "class", "bucket")}
            z = relu(o @ positive["hidden"] + array(unit["bias"]))
            result["class"] = result["class"] + z @ positive["class"]
            result["bucket"] = result["bucket"] + (z @ positive["bucket"]).reshape(result["bucket"].shape)
        heads.append(result)
    return heads


def joint(head):
    p_class = softmax(head["class"])
    p_bucket = softmax(head["bucket"])
    columns = [p_class[:, 0]]
    for p in range(p_bucket.shape[1]):
        columns += [p_class[:, 1 + p] * p_bucket[:, p, j] for j in range(p_bucket.shape[2])]
    return np.stack(columns, axis=1)


def ordinal_probabilities(q):
    steps = np.maximum(np.append(1.0, q) - np.append(q, 0.0), 0.0)
    return steps / steps.sum()


def decode(heads, quantiles, num_positive, num_buckets, how):
    """Returns [B, K]."""
    columns = []
    for head, own in zip(heads, quantiles, strict=True):
        edges = edges_of(own, num_positive, num_buckets)
        bias = sigmoid(head["bias"])
        values = np.zeros((len(bias), num_positive, num_buckets))
        for p in range(num_positive):
            for j in range(num_buckets):
                low, high = edges[p * num_buckets + j], edges[p * num_buckets + j + 1]
                values[:, p, j] = low + bias[:, p, j] * (high - low)
        if how == "expected":
            columns.append((joint(head)[:, 1:] * values.reshape(len(values), -1)).sum(axis=1))
            continue
        column = []
        for row in range(len(values)):
            d = int(np.argmax(head["class"][row]))
            column.append(0.0 if d == 0 else values[row, d - 1, int(np.argmax(head["bucket"][row, d - 1]))])
        columns.append(np.array(column))
    return np.stack(columns, axis=1)


def loss_terms(heads, y, known, quantiles, num_positive, num_buckets):
    """Returns the eight terms: means over known rows, summed over horizons."""
    names = ("class", "class_ordinal", "class_distillation", "bucket", "bucket_ordinal", "bucket_distillation", "bias")
    totals = dict.fromkeys((*names, "calibration"), 0.0)
    for k, head in enumerate(heads):
        edges = edges_of(quantiles[k], num_positive, num_buckets)
        for row in np.flatnonzero(known[:, k]):
            value = float(y[row, k])
            terms = dict.fromkeys(names, 0.0)
            index = 0
            if value > 0:
                index = min(int((edges < value).sum()) - 1, num_positive * num_buckets - 1)
            d = 1 + index // num_buckets if value > 0 else 0
            log_class = np.log(softmax(head["class"][row : row + 1]))[0]
            q = sigmoid(head["class_ordinal"][row])
            above = d > np.arange(num_positive)
            terms["class"] = -log_class[d]
            terms["class_ordinal"] = -np.where(above, np.log(q), np.log(1 - q)).sum()
            terms["class_distillation"] = -(ordinal_probabilities(q) * log_class).sum()
            if d > 0:
                j = index % num_buckets
                log_bucket = np.log(softmax(head["bucket"][row : row + 1, d - 1]))[0]
                q = sigmoid(head["bucket_ordinal"][row, d - 1])
                above = j > np.arange(num_buckets - 1)
                bias = np.clip((value - edges[index]) / (edges[index + 1] - edges[index]), 0, 1)
                terms["bucket"] = -log_bucket[j]
                terms["bucket_ordinal"] = -np.where(above, np.log(q), np.log(1 - q)).sum()
                terms["bucket_distillation"] = -(ordinal_probabilities(q) * log_bucket).sum()
                terms["bias"] = (sigmoid(head["bias"][row, d - 1, j]) - bias) ** 2
            for name in names:
                totals[name] += terms[name] / known[:, k].sum()
    expected = decode(heads, quantiles, num_positive, num_buckets, "expected")
    excess = np.maximum(expected[:, :-1] - expected[:, 1:], 0).sum(axis=1)
    totals["calibration"] = excess[known.any(axis=1)].mean()
    return totals
