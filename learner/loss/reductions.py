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
    """One number of the token losses ℓ, m being the mask:

    | grpo, sapo | Σ over sequences of (Σ ℓ·m / max(Σ m, 1)) / num_sequences |
    | luspo | Σ ℓ·m / num_sequences: a sequence's loss times its length (LUSPO, arXiv 2602.05261) |
    | dr_grpo | Σ ℓ·m / (num_sequences · max_completion_length) (arXiv 2503.20783) |
    | dapo, cispo, vespo | Σ ℓ·m / num_items (arXiv 2503.14476) |
    | bnpo | Σ ℓ·m / Σ m, of the sequences given here whatever the step's denominators |

    bnpo divides by its local batch, so its micro-batches have no sum that means anything. Taken over a whole optimizer
    step it is dapo, and the learner takes it so: how memory cuts a step must not change the gradient.

    Args:
        losses: ℓ, shape (B, T), or (B, 1), where one number stands for every token of its sequence.
        mask_BT: m.
        loss_type: Which row of the table.
        num_items, num_sequences: Denominators; of the whole step, where these sequences are a part of it.
        max_completion_length: dr_grpo's constant.
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
