"""MDAN written a second time in plain NumPy float64, pair by pair and anchor by anchor (BASELINES.md section 4)."""

import numpy as np

from tests.mean_oracle import dense, mlp, relu, softmax


def channel(u, params, index, is_linear):
    """One MLP_i of two layers on its own."""
    hidden = u
    for layer in (0, 1):
        kernel = np.asarray(params[f"kernel_{layer}"], np.float64)
        kernel = kernel[:, index] if layer == 0 else kernel[index]
        hidden = hidden @ kernel + np.asarray(params[f"bias_{layer}"], np.float64)[index]
        hidden = hidden if layer == 1 and is_linear else relu(hidden)
    return hidden


def forward(x, params, num_buckets, num_horizons=1, is_linear=False):
    """Returns per horizon (embedding, prediction, controller logits) for encoded rows."""
    u = mlp(x, params["bottom"], 2)
    heads = []
    for k in range(num_horizons):
        head = params[f"head_{k}"]
        v = mlp(u, head["clc"], 2)
        g = softmax(v)
        e = sum(g[:, i : i + 1] * channel(u, head["channels"], i, is_linear) for i in range(num_buckets))
        heads.append((e, dense(e, head["value"])[:, 0], v))
    return heads


def anchors(y, priority, known, limit):
    """Rows by rising priority of which no earlier one has the same label, at most `limit`."""
    chosen = []
    for row in np.argsort(priority, kind="stable"):
        if known[row] and all(y[row] != y[other] for other in chosen):
            chosen.append(int(row))
    return chosen[:limit]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def pairwise(e, y, rows, max_label):
    """The mean of (S - R)^2 over ordered pairs of different rows."""
    errors = [
        (0.5 * (1 + cosine(e[i], e[j])) - (1 - abs(y[i] - y[j]) / max_label)) ** 2 for i in rows for j in rows if i != j
    ]
    return np.mean(errors) if errors else 0.0


def rank(values):
    """Place from above, ties by position, over n."""
    count = len(values)
    places = [
        1 + sum(values[other] > values[j] or (values[other] == values[j] and other < j) for other in range(count))
        for j in range(count)
    ]
    return np.array(places) / count


def rank_gradient(values, gradient, strength):
    """Step 4 of 4.4."""
    return -(rank(values) - rank(values + strength * gradient)) / (strength + 1e-8)


def ranksim(e, y, rows, strength=2.0):
    """Returns the reference's sum over anchors and its gradient by S [n, n], row i of it from anchor i alone."""
    total, gradient = 0.0, np.zeros((len(rows), len(rows)))
    for position, i in enumerate(rows):
        similarity = np.array([cosine(e[i], e[j]) for j in rows])
        target = rank(np.array([-abs(y[i] - y[j]) for j in rows]))
        error = rank(similarity) - target
        total += np.mean(error**2)
        gradient[position] = rank_gradient(similarity, 2 * error / len(rows), strength)
    return total, gradient


def class_weights(positive_rate, num_buckets):
    frequency = np.array([1 - positive_rate] + [positive_rate / (num_buckets - 1)] * (num_buckets - 1))
    weights = 1 / frequency
    return weights / weights.mean()


def regression_and_entropy(head, y, bucket, known, weights, delta=None):
    """Returns the mean squared error, or the Huber loss of `delta`, and the class-weighted cross entropy."""
    _, value, v = head
    error = y - value
    squared = error**2
    if delta is not None:
        squared = np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))
    entropy = -np.log(softmax(v)[np.arange(len(y)), bucket]) * weights[bucket]
    return squared[known].mean(), entropy[known].mean()
