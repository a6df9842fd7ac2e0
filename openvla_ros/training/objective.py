"""The loss of a batch, and how well its actions were hit, as OpenVLA is trained and measured.

Everything a training step computes happens in `Objective.forward`, because that is the module that
DDP or FSDP2 wraps. Logits exist only where a label is: 8 positions of 293, for the same loss. No
mask is passed: padding comes last and the decoder is causal, so attention takes its fast kernel.
Source: openvla @ c8f03f4, vla-scripts/finetune.py and prismatic/training/strategies.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.modeling import IGNORE_INDEX, OpenVLAForActionPrediction
from openvla_ros.training.auxiliary import AuxiliaryLosses
from openvla_ros.training.batch import TrainingBatch

#: Methods besides `forward` that use weights: FSDP2 must be told of them
#: (torch.distributed.fsdp.register_fsdp_forward_method).
FORWARD_METHODS = ("generate", "predict")


def spread_of_bins(bins: int, deviation: float) -> torch.Tensor:
    """Return (bins, bins) float32: the label of each bin as shares of all bins; rows sum to 1.

    A normal distribution around the recorded bin: an answer that is nearly right costs less than
    one that is far off, which plain labels do not tell apart.

    Args:
        bins: How many.
        deviation: Its standard deviation, in bins, above 0.
    """
    number = torch.arange(bins, dtype=torch.float32)
    return torch.softmax(-0.5 * ((number[:, None] - number) / deviation) ** 2, dim=1)


@dataclass(frozen=True)
class Labelled:
    """What the model says where a label is: L positions of the whole batch, row by row.

    Attributes:
        logits: (L, vocabulary) float32.
        labels: (L,) int64.
        hidden: (B, P + T, D) last hidden states of all positions.
        first_action_id: The lowest id of an action bin.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    hidden: torch.Tensor
    first_action_id: int

    def cross_entropy(self, spread: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean loss over the labels: a float32 scalar.

        Args:
            spread: (n, n) how much of the label of each action bin belongs to each bin, for the n
                ids from `first_action_id` on; None = all of it to its own.
        """
        if spread is None:
            return F.cross_entropy(self.logits, self.labels)
        bins = self.labels - self.first_action_id
        is_action = (bins >= 0) & (bins < len(spread))
        shares = spread[bins.clamp(0, len(spread) - 1)] * is_action[:, None]
        logs = self.logits.log_softmax(dim=-1)
        actions = logs[:, self.first_action_id : self.first_action_id + len(spread)]
        others = logs.gather(1, self.labels[:, None])[:, 0] * ~is_action
        return -((shares * actions).sum(dim=1) + others).mean()


class Objective(nn.Module):
    """Cross-entropy on the action tokens of a batch, and the metrics that go with it.

    Args:
        model: What is trained, adapters included.
        tokenizer: Of its actions.
        auxiliary: Further losses, which are added with their weights; None = none.
        precision: "bfloat16" computes under autocast; "float32" as the weights are.
        label_spread: Standard deviation of the labels in bins, see `spread_of_bins`; 0 = none.
    """

    bin_centers: torch.Tensor
    spread: torch.Tensor | None

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        tokenizer: ActionTokenizer,
        auxiliary: AuxiliaryLosses | None = None,
        precision: str = "float32",
        label_spread: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.auxiliary = auxiliary
        self.precision = precision
        centers = torch.from_numpy(tokenizer.bin_centers)
        self.register_buffer("bin_centers", centers, persistent=False)
        spread = spread_of_bins(tokenizer.n_action_bins, label_spread) if label_spread else None
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Return name -> scalar: "loss" with its graph, everything else detached.

        Besides "loss", the total: "cross_entropy", "action_accuracy" and "l1" (normalised units),
        both teacher-forced over action ids alone, and "auxiliary/NAME", unweighted.
        """
        with self.autocast(batch.input_ids.device):
            labelled = self._labelled(batch)
            extra = {} if self.auxiliary is None else self.auxiliary(labelled.hidden, batch)
        loss = labelled.cross_entropy(self.spread)
        numbers = {"cross_entropy": loss.detach(), **self._metrics(labelled)}
        for name, value in extra.items():
            assert self.auxiliary is not None
            loss = loss + self.auxiliary.weights[name] * value
            numbers[f"auxiliary/{name}"] = value.detach()
        return {"loss": loss, **numbers}

    @torch.no_grad()
    def predict(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the likeliest id and the loss at each label, teacher-forced.

        Returns:
            (L,) int64 and (L,) float32, row by row in the order of the labels.
        """
        with self.autocast(batch.input_ids.device):
            labelled = self._labelled(batch)
        losses = F.cross_entropy(labelled.logits, labelled.labels, reduction="none")
        return labelled.logits.argmax(dim=-1), losses

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> torch.Tensor:
        """Return (B, action_dim) int64: the ids that greedy decoding chooses, each fed back.

        Args:
            input_ids: (B, T) int64 prompts of one length, ending in the empty token.
            pixel_values: (B, 3 or 6, H, W).
            action_dim: Number of ids to generate.
        """
        with self.autocast(input_ids.device):
            logits, cache = self.model.prefill(input_ids, pixel_values)
            ids = [logits.argmax(dim=-1, keepdim=True)]
            for _ in range(action_dim - 1):
                logits = self.model.decode(ids[-1], cache)
                ids.append(logits.argmax(dim=-1, keepdim=True))
        return torch.cat(ids, dim=1)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Return the context in which the model computes in this precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def _labelled(self, batch: TrainingBatch) -> Labelled:
        # First of all: finding the labels makes the host wait, and nothing is under way yet.
        rows, columns = (batch.labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        embeddings = self.model.embed(batch.input_ids, batch.pixel_values)  # (B, P + T, D)
        if torch.is_autocast_enabled(embeddings.device.type):
            # Trained embeddings are float32, and would keep all activations so.
            embeddings = embeddings.to(torch.get_autocast_dtype(embeddings.device.type))
        decoder = self.model.language_model.model
        hidden = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        patches = embeddings.shape[1] - batch.input_ids.shape[1]
        # The label of text position t + 1 is predicted at position P + t.
        head = self.model.get_output_embeddings()
        logits = head(hidden[rows, columns + patches]).float()  # (L, vocabulary)
        return Labelled(logits, batch.labels[rows, columns + 1], hidden, self._first_action_id)

    @torch.no_grad()
    def _metrics(self, labelled: Labelled) -> dict[str, torch.Tensor]:
        is_action = labelled.labels >= self._first_action_id
        count = is_action.sum()
        predicted, labels = labelled.logits.argmax(dim=-1), labelled.labels
        hits = (predicted == labels) & is_action
        distance = (self._decode(predicted) - self._decode(labels)).abs() * is_action
        return {"action_accuracy": hits.sum() / count, "l1": distance.sum() / count}

    @property
    def _first_action_id(self) -> int:
        return self.tokenizer.vocab_size - self.tokenizer.n_action_bins

    def _decode(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return what `ActionTokenizer.decode` does, where the ids are."""
        index = self.tokenizer.vocab_size - token_ids - 1
        return self.bin_centers[index.clamp(0, len(self.bin_centers) - 1)]
