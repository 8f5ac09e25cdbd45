"""A step makes and leaves no tensor beside its device. On `meta` PyTorch refuses what mixes devices, as on a GPU; the
attention's and the head's operations are those of GPUs, of which `meta` checks arguments, shapes and precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.config import LearnerConfig, LossConfig
from learner.policy import logprob_head, products
from learner.policy.policy import Policy, load_policy
from learner.step.passes import PassResult, make_microbatch, run_pass
from learner.step.plan import plan_step
from tests.learner.helpers import random_groups

META = torch.device("meta")


@pytest.fixture(scope="module")
def loaded(llama: str) -> Policy:
    policy = load_policy(llama, LearnerConfig(dtype="bfloat16"), device=torch.device("cpu"), seed=0)
    return policy.to(META)


@pytest.fixture
def policy(loaded: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """As on a GPU."""
    monkeypatch.setattr(products, "_WHOLE", "meta")
    monkeypatch.setitem(logprob_head.LOGITS_PER_CHUNK, "meta", 1000)
    for module in ("learner.tree.attention", "learner.step.passes"):
        monkeypatch.setattr(f"{module}.kind_on", lambda device, kind="auto": "levels")
    loaded.zero_grad()
    return loaded


def passed(policy: Policy, loss: dict[str, Any], **changes: Any) -> PassResult:
    config = LearnerConfig(loss=LossConfig(**loss))
    plan = plan_step(random_groups(0), config)
    microbatch = make_microbatch(plan, range(len(plan.sequences)), config, META)
    microbatch.ref_logprobs_BT = torch.zeros_like(microbatch.sampling_logprobs_BT) if config.loss.beta else None
    for name, value in changes.items():
        setattr(microbatch, name, value)
    threshold = 1.0 if config.loss.top_entropy_quantile < 1 else None
    return run_pass(policy, microbatch, plan, config.loss, temperature=0.7, entropy_threshold=threshold)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"beta": 0.1, "off_policy_mask_threshold": 0.5, "delta": 3.0, "top_entropy_quantile": 0.5},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo"},
        {"loss_type": "sapo"},
    ],
)
def test_a_pass_stays_on_its_device(policy: Policy, loss: dict[str, Any]) -> None:
    loss_of_pass = passed(policy, loss).loss
    loss_of_pass.backward()
    assert (loss_of_pass.device.type, loss_of_pass.dtype) == ("meta", torch.float32)
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.requires_grad]
    assert {(one.device.type, one.dtype) for one in gradients if one is not None} == {("meta", torch.float32)}


def test_what_is_left_on_the_host_is_refused(policy: Policy) -> None:
    with pytest.raises(RuntimeError, match="device"):
        passed(policy, {}, advantages_B=torch.zeros(8))
