"""Settings of the rewards: which, and where they are computed. Loads no heavy library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestration.section import Section
from reward_service.settings import CustomRewardSpec
from reward_service.types import RewardSpec


class LocalDeployment(Section):
    """The run's own service is a child process of the driver, on loopback."""

    kind: Literal["local"] = "local"


class ActorDeployment(Section):
    """The run's own service is a Ray actor: on a node without GPUs where the cluster has one with room for it.

    It listens on its node's address and demands a key that is made for the run. There is no TLS: who can read the
    network between the nodes can read the key.
    """

    kind: Literal["actor"] = "actor"
    num_cpus: float = Field(
        1.0, gt=0, le=1024, allow_inf_nan=False, description="Cores it reserves; as many scoring processes are started."
    )
    resources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description='Ray resources that its node has to have, such as {"reward": 1}.'
    )

    @field_validator("resources")
    @classmethod
    def _are_custom(cls, resources: dict[str, float]) -> dict[str, float]:
        if own := {"CPU", "GPU", "memory", "object_store_memory"} & resources.keys():
            raise ValueError(f"resource {min(own)} is Ray's own: cores are num_cpus, and the service needs no GPU")
        return resources


Deployment = Annotated[LocalDeployment | ActorDeployment, Field(discriminator="kind")]


class RewardConfig(Section):
    """Where completions are scored, and by what."""

    url: str | None = Field(None, description="A running reward service; unset: the run starts one, see `deployment`.")
    api_key: str | None = Field(None, description="Key of that service.", repr=False, exclude=True)
    api_key_file: Path | None = Field(None, description="File that holds that key, where the run's driver is.")
    use_proxy: bool = Field(
        False, description="Reach it through the proxies of HTTP_PROXY and HTTPS_PROXY, with the key, and not straight."
    )
    deployment: Deployment = Field(
        default_factory=LocalDeployment,
        description="Where the run starts its own service: local or actor; `rlvr eval` always takes local.",
    )
    settings_file: Path | None = Field(
        None,
        description="The service's own settings, as for `rlvr reward serve --settings` (rewards of your own, sandbox, "
        "judge, audit), for a service that the run starts. Which rewards are served, address, port, keys and TLS are "
        "the run's; other paths in it are those of the service's node.",
    )
    rewards: tuple[RewardSpec, ...] | None = Field(
        None,
        min_length=1,
        description="Rewards whose weighted sum is learned from, each with name, weight and params, such as "
        "[{name: math, weight: 2}, repetition]; unset: the task's own.",
    )
    verifier: str | None = Field(
        None,
        description="One of the rewards, which decides where the reward `judge` differs from it: of an answer that it "
        "gives less than 1 the judge counts as 0, of any other as 1. The share is the metric judge_overruled.",
    )
    custom_rewards: tuple[CustomRewardSpec, ...] = Field(
        (),
        description="Rewards of your own for a service that the run starts, beside those of settings_file: each with "
        "name and target, `module:function`; modules may lie in the current folder.",
    )
    control: Literal["none", "random", "shuffled"] = Field(
        "none",
        description="Train on random draws instead of the rewards (which are still measured): a control that shows "
        "whether a gain comes from the rewards. random: uniform draws; shuffled: each group's rewards dealt out anew "
        "among its completions, so at the same rate.",
    )
    timeout_s: float = Field(30.0, gt=0, description="Limit on one HTTP call, seconds.")
    deadline_s: float = Field(
        120.0, gt=0, description="Retries of a call go on so long, seconds; then it is said, and the call begins anew."
    )
    give_up_after_s: float = Field(
        1800.0, ge=0, description="How long a group waits for a service that gives no usable answer, seconds."
    )
    stall_timeout_s: float = Field(
        60.0, gt=0, description="A service of the run's own that is not ready for so long is started again, seconds."
    )
    max_concurrency: int = Field(32, ge=1, description="Calls under way at once.")
    batch_window_s: float = Field(
        0.01, ge=0, description="A group waits so long for others to be sent with, seconds; 0: a call for each group."
    )
    batch_items: int = Field(64, ge=1, description="Most completions of groups that are sent together.")
    start_timeout_s: float = Field(60.0, gt=0, description="Limit on the start of the run's own service, seconds.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _by_name(cls, rewards: Any) -> Any:
        """A reward without weight and parameters may be its name alone."""
        rewards = [rewards] if isinstance(rewards, str) else rewards
        return (
            [{"name": one} if isinstance(one, str) else one for one in rewards]
            if isinstance(rewards, list)
            else rewards
        )

    @model_validator(mode="after")
    def _one_service(self) -> RewardConfig:
        if self.batch_window_s >= self.deadline_s:
            raise ValueError(
                f"reward.batch_window_s={self.batch_window_s:g} must be below reward.deadline_s={self.deadline_s:g}, "
                f"within which a group is to be scored"
            )
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("reward.api_key and reward.api_key_file are two ways to say one thing: leave one out")
        if self.url is None:
            if self.api_key_file is not None:
                raise ValueError("reward.api_key_file is for a service that runs already: give its reward.url")
            return self
        for name, given in (
            ("deployment=actor", self.deployment.kind == "actor"),
            (f"settings_file={self.settings_file}", self.settings_file is not None),
            ("custom_rewards", bool(self.custom_rewards)),
        ):
            if given:
                raise ValueError(f"reward.{name} is about a service that the run starts; leave it out, or reward.url")
        return self
