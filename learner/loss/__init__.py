"""The policy loss, in small pure pieces."""

from learner.loss.objective import LossConfig, policy_loss, step_entropy_threshold

__all__ = ["LossConfig", "policy_loss", "step_entropy_threshold"]
