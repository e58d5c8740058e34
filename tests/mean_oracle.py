"""MEAN written a second time in plain NumPy float64, loop by loop from the paper's equations."""

import numpy as np


def relu(x):
    return np.maximum(x, 0.0)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer.get("bias", 0.0), np.float64)


def mlp(x, layers, num_hidden):
    for index in range(num_hidden):
        x = relu(dense(x, layers[f"Dense_{index}"]))
    output = layers.get(f"Dense_{num_hidden}")
    return x if output is None else dense(x, output)


def expert(x, params, j, mean, variance):
    """One E_j: Dense, BatchNorm, ReLU, on its own."""
    kernel = np.asarray(params["kernel_0"], np.float64)[:, j]
    size = kernel.shape[1]
    hidden = x @ kernel
    columns = slice(j * size, (j + 1) * size)
    norm = params["BatchNorm_0"]
    scale, bias = (np.asarray(norm[name], np.float64)[columns] for name in ("scale", "bias"))
    if mean is None:
        mean_j, variance_j = hidden.mean(axis=0), hidden.var(axis=0)
    else:
        mean_j, variance_j = mean[columns], variance[columns]
    return relu((hidden - mean_j) / np.sqrt(variance_j + 1e-5) * scale + bias)


def attention(f, params, pairwise):
    """A [B, N, N] from eq. 4-5, row by row."""
    query, key, bias = (np.asarray(params[name], np.float64) for name in ("query", "key", "bias"))
    rows, num_buckets = f.shape[:2]
    a = np.zeros((rows, num_buckets, num_buckets))
    for t in range(num_buckets):
        if pairwise:
            scores = [
                dense(np.tanh(f[:, t] @ query + f[:, other] @ key + bias), params["score"])[:, 0]
                for other in range(num_buckets)
            ]
            a[:, t] = softmax(np.stack(scores, axis=1))
        else:
            a[:, t] = softmax(dense(np.tanh(f[:, t] @ query + f[:, t] @ key + bias), params["score"]))
    return a


def forward(
    x, params, num_buckets, num_experts, hidden=(2, 1), pairwise=False, own_bottom=False, running=None, printed=False
):
    """Returns eq. 2-7, 9-10 and 12 for encoded rows x.

    `running` = (mean, var) of BatchNorm, None for batch statistics; `printed`: the gate of eq. 2-3 to the letter.
    """
    bottom = mlp(x, params["bottom"], hidden[0])
    mean, variance = (None, None) if running is None else running
    experts = [expert(bottom, params["experts"], j, mean, variance) for j in range(num_experts)]
    head = params["head_0"]
    kernel = np.asarray(head["gate"]["kernel"], np.float64)
    f = []
    for i in range(num_buckets):  # eq. 2-3: one gate per bucket
        if printed:
            f.append(softmax(bottom @ kernel)[:, i : i + 1] * sum(experts))
            continue
        gate = softmax(bottom @ kernel[:, i * num_experts : (i + 1) * num_experts])
        f.append(sum(gate[:, j : j + 1] * experts[j] for j in range(num_experts)))
    f = np.stack(f, axis=1)
    a = attention(f, head["attention"], pairwise)
    attended = np.stack([np.einsum("bn,bnh->bh", a[:, t], f) for t in range(num_buckets)], axis=1)
    e = attended.mean(axis=1)  # eq. 6, literally
    result = {"f": f, "a": a, "e": e, "theta": a.mean(axis=1), "value": dense(e, head["value"])[:, 0]}
    if "dam" in head:
        dam_input = mlp(x, params["dam_bottom"], hidden[0]) if own_bottom else bottom
        result["k"] = mlp(dam_input, head["dam"], hidden[1])
        result["b"] = softmax(result["k"])
    return result


def loss_terms(result, scaled, bucket, delta=1.0, tau=2.0, log_theta=False):
    """Returns the terms of eq. 17, each averaged over the rows."""
    error = np.abs(scaled - result["value"])
    huber = np.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))
    terms = {"huber": huber.mean()}
    if "k" in result:
        b, theta = result["b"], result["theta"]
        z = np.eye(b.shape[1])[bucket]
        teacher = softmax((np.log(theta) if log_theta else theta) / tau)
        terms["kl"] = (b * np.log(b / theta)).sum(axis=1).mean()
        terms["cross_entropy"] = -(z * np.log(b)).sum(axis=1).mean()
        terms["distillation"] = -(teacher * np.log(softmax(result["k"] / tau))).sum(axis=1).mean()
    return terms
