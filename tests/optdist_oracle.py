"""OptDist written a second time in plain NumPy float64, candidate by candidate (BASELINES.md section 5)."""

import numpy as np
from scipy import special, stats

from tests.mean_oracle import mlp, relu, softmax


def candidate(u, params, index):
    """The three logits of one SDN of two hidden layers."""
    hidden = u
    for layer in range(3):
        kernel = np.asarray(params[f"kernel_{layer}"], np.float64)
        kernel = kernel[:, index] if layer == 0 else kernel[index]
        hidden = hidden @ kernel + np.asarray(params[f"bias_{layer}"], np.float64)[index]
        hidden = hidden if layer == 2 else relu(hidden)
    return hidden


def forward(x, params, num_experts, num_horizons=1):
    """Returns per horizon (logits [B, L, 3], selector [B, L]) for encoded rows."""
    u = mlp(x, params["bottom"], 2)
    return [
        (
            np.stack([candidate(u, params[f"experts_{k}"], i) for i in range(num_experts)], axis=1),
            mlp(u, params[f"selector_{k}"], 2),
        )
        for k in range(num_horizons)
    ]


def likelihoods(logits, y):
    """Returns the ZILN loss of every candidate [B, L], by SciPy's densities."""
    result = np.zeros(logits.shape[:2])
    for i in range(logits.shape[1]):
        p, mu, sigma = special.expit(logits[:, i, 0]), logits[:, i, 1], np.log1p(np.exp(logits[:, i, 2]))
        density = stats.lognorm.logpdf(np.where(y > 0, y, 1.0), s=sigma, scale=np.exp(mu))
        result[:, i] = -np.where(y > 0, np.log(p) + density, np.log1p(-p))
    return result


def means(logits):
    """Returns the mean of every candidate [B, L]."""
    sigma = np.log1p(np.exp(logits[..., 2]))
    return special.expit(logits[..., 0]) * np.exp(logits[..., 1] + sigma**2 / 2)


def pseudo_labels(logits, y):
    """Returns the best candidate [B] and softmax(-loss) [B, L]."""
    loss = likelihoods(logits, y)
    return loss.argmin(axis=1), softmax(-loss)


def loss_terms(head, y, known, selection, pseudo, gamma=2.0, kl_of_label=False):
    """Returns (likelihood, focal cross entropy, KL), means over the known rows, under given pseudo-labels."""
    logits, v = head
    best, soft = pseudo
    alpha = softmax(v)
    hit = alpha[np.arange(len(y)), best]
    nll = (selection * likelihoods(logits, y)).sum(axis=1)
    focal = -((1 - hit) ** gamma) * np.log(hit)
    kl = special.rel_entr(soft, alpha) if kl_of_label else special.rel_entr(alpha, soft)
    return tuple(values[known].mean() for values in (nll, focal, kl.sum(axis=1)))
