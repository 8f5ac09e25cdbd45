"""How token losses add up to a loss. Shapes: B sequences, T positions."""

from __future__ import annotations

from torch import Tensor

from learner.config import LossType


def reduce_losses(
    losses: Tensor,
    mask_BT: Tensor,
    loss_type: LossType,
    *,
    num_items: float | Tensor,
    num_sequences: float | Tensor,
    max_completion_length: int,
) -> Tensor:
    """Σ ℓ·m over what `loss_type` divides by; `policy_loss` has the table.

    `losses`: (B, T), or (B, 1), where one number stands for every token of its sequence.
    """
    losses_BT = losses * mask_BT
    match loss_type:
        case "grpo" | "sapo":
            means_B = losses_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
            return means_B.sum() / num_sequences
        case "luspo":
            return losses_BT.sum() / num_sequences
        case "dr_grpo":
            return losses_BT.sum() / (num_sequences * max_completion_length)
        case "dapo" | "cispo" | "vespo":
            return losses_BT.sum() / num_items
        case "bnpo":
            return losses_BT.sum() / mask_BT.sum().clamp(min=1)
