"""MEAN in PyTorch, the peer that train_step.py compares with: same arithmetic, written as a PyTorch user would.

Covers the defaults of `MeanConfig` for one horizon and numeric features in the `standard` encoding.
"""

from collections.abc import Mapping
import itertools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mean_jax.models.encoder import MAX_STANDARDISED
from mean_jax.run import Program


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))


class TorchMean(nn.Module):
    """The network and its loss (paper eq. 2-17)."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        model = self._model = program.config.model
        self._num_buckets, self._cap = program.config.labels.num_buckets, program.config.labels.cap
        encoder, labels = program.transform.encoder_constants(), program.label_constants
        constants = {
            "is_log": torch.from_numpy(encoder.is_log),
            "mean": torch.from_numpy(encoder.mean),
            "inverse_std": torch.from_numpy(1.0 / encoder.std),
            "scale": torch.tensor(float(labels.scale[0])),
            "edges": torch.from_numpy(np.asarray(labels.edges[0])),
        }
        for name, value in constants.items():
            self.register_buffer(name, value)
        width, experts, size = model.bottom_sizes[-1], model.num_experts, model.expert_size
        self.bottom = _mlp((len(encoder.mean), *model.bottom_sizes))
        self.experts = nn.Linear(width, experts * size, bias=False)
        self.norm = nn.BatchNorm1d(experts * size, momentum=1.0 - model.batch_norm_momentum)
        self.gate = nn.Linear(width, self._num_buckets * experts, bias=False)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, self._num_buckets)
        self.value = nn.Linear(size, 1)
        self.dam = nn.Sequential(*_mlp((width, *model.dam_sizes)), nn.Linear(model.dam_sizes[-1], self._num_buckets))

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes over the Flax parameters of one replica."""
        head, attention = params["head_0"], params["head_0"]["attention"]
        stacks = ((self.bottom, params["bottom"]), (self.dam, head["dam"]))
        linears = [
            (layer, layers[f"Dense_{index}"])
            for stack, layers in stacks
            for index, layer in enumerate(layer for layer in stack if isinstance(layer, nn.Linear))
        ]
        linears += [(self.gate, head["gate"]), (self.score, attention["score"]), (self.value, head["value"])]
        kernel = np.asarray(params["experts"]["kernel_0"])
        linears += [(self.experts, {"kernel": kernel.reshape(len(kernel), -1)})]
        linears += [(self.query, {"kernel": attention["query"], "bias": attention["bias"]})]
        linears += [(self.key, {"kernel": attention["key"]})]
        with torch.no_grad():
            for layer, values in linears:
                layer.weight.copy_(torch.from_numpy(np.array(values["kernel"]).T))
                if layer.bias is not None:
                    layer.bias.copy_(torch.from_numpy(np.array(values["bias"])))
            norm = params["experts"]["BatchNorm_0"]
            self.norm.weight.copy_(torch.from_numpy(np.array(norm["scale"])))
            self.norm.bias.copy_(torch.from_numpy(np.array(norm["bias"])))

    def _encode(self, numeric_BxC: torch.Tensor) -> torch.Tensor:
        is_missing_BxC = torch.isnan(numeric_BxC)
        known_BxC = torch.where(is_missing_BxC, 0.0, numeric_BxC)
        logged_BxC = torch.sign(known_BxC) * torch.log1p(torch.abs(known_BxC))
        chosen_BxC = torch.where(self.is_log, logged_BxC, known_BxC)
        scaled_BxC = ((chosen_BxC - self.mean) * self.inverse_std).clamp(-MAX_STANDARDISED, MAX_STANDARDISED)
        return torch.where(is_missing_BxC, 0.0, scaled_BxC)

    def _outputs(self, numeric_BxC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns value [B], log_theta [B, N] and logits [B, N]."""
        model = self._model
        bottom_BxD = self.bottom(self._encode(numeric_BxC))
        expert_BxMxH = functional.relu(self.norm(self.experts(bottom_BxD))).unflatten(1, (model.num_experts, -1))
        gate_BxNxM = self.gate(bottom_BxD).unflatten(1, (self._num_buckets, -1)).softmax(dim=-1)
        f_BxNxH = gate_BxNxM @ expert_BxMxH
        # One product with the sum of both matrices, as in the JAX model.
        hidden_BxNxH = torch.tanh(functional.linear(f_BxNxH, self.query.weight + self.key.weight, self.query.bias))
        log_a_BxNxN = self.score(hidden_BxNxH).log_softmax(dim=-1)
        log_theta_BxN = log_a_BxNxN.logsumexp(dim=1) - np.log(self._num_buckets)
        embedding_BxH = (log_theta_BxN.exp()[:, None] @ f_BxNxH)[:, 0]
        return self.value(embedding_BxH)[:, 0], log_theta_BxN, self.dam(bottom_BxD)

    def forward(self, numeric_BxC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """Returns the total loss of known labels in currency."""
        model = self._model
        value_B, log_theta_BxN, logits_BxN = self._outputs(numeric_BxC)
        scaled_B = torch.clamp(label_B / self.scale, max=self._cap)
        bucket_B = torch.where(label_B > 0, 1 + (label_B[:, None] > self.edges).sum(dim=1), 0)
        log_b_BxN = logits_BxN.log_softmax(dim=-1)
        teacher_BxN = (log_theta_BxN.exp() / model.tau).softmax(dim=-1)
        soft_BxN = (logits_BxN / model.tau).log_softmax(dim=-1)
        return (
            functional.huber_loss(value_B, scaled_B, delta=model.huber_delta)
            + model.kl_weight * (log_b_BxN.exp() * (log_b_BxN - log_theta_BxN)).sum(dim=-1).mean()
            + model.beta * functional.nll_loss(log_b_BxN, bucket_B)
            - model.gamma * (teacher_BxN * soft_BxN).sum(dim=-1).mean()
        )


class TorchTrainer:
    """Train steps of the first horizon's model with Adam."""

    def __init__(
        self, program: Program, params: Mapping[str, Any], num_threads: int, mode: str | None, device: str = "cpu"
    ) -> None:
        """Starts from the Flax parameters `params` of one replica.

        Args:
          program: whose model and optimiser to build.
          params: of one replica.
          num_threads: on the CPU.
          mode: of `torch.compile`; None compiles nothing.
          device: "cpu" or "cuda".
        """
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX by default; no difference on a CPU
        self._device = device
        model = TorchMean(program)
        model.load(params)
        model.to(self._device)
        self._num_features = len(program.schema.numeric)
        self._loss_fn = torch.compile(model, mode=mode) if mode else model
        self._optimizer = torch.optim.Adam(model.parameters(), lr=program.config.train.learning_rate, fused=True)

    def place(self, words_SxBxW: np.ndarray) -> torch.Tensor:
        """Returns the rows of a dispatch where the model is."""
        return torch.from_numpy(words_SxBxW).to(self._device)

    def dispatch(self, words_SxBxW: torch.Tensor) -> float:
        """Runs S steps and returns their mean loss."""
        losses = []
        for words_BxW in words_SxBxW:
            self._optimizer.zero_grad()
            loss = self._loss_fn(words_BxW[:, : self._num_features], words_BxW[:, self._num_features])
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach().clone())  # CUDA graphs write the next one into the same place
        return float(torch.stack(losses).mean())
