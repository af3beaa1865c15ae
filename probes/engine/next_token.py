"""Next-token statistics: what the probe model's logits at the last prompt token tell of its next token."""

import torch
from torch import Tensor

TOP = 5
STATISTICS = 2 * TOP + 1


def next_token_statistics(logits: Tensor) -> Tensor:
    """(batch, vocabulary) -> the five largest probabilities, their logarithms, the entropy in nats: (batch, 11)."""
    logs = logits.float().log_softmax(dim=-1)
    top = logs.topk(TOP, dim=-1).values  # (batch, 5)
    entropy = -(logs.exp() * logs).sum(dim=-1, keepdim=True)  # (batch, 1)
    return torch.cat([top.exp(), top, entropy], dim=-1)
