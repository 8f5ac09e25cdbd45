"""Settings of the service: a YAML or JSON file, `rlvr reward serve --settings FILE`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reward_service.audit.settings import AuditSettings
from reward_service.judging.settings import JudgeSettings
from reward_service.sandbox.settings import SandboxSettings

_NUM_CORES = len(os.sched_getaffinity(0))


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


END_TOKENS = (
    "<|im_end|>",  # Qwen, SmolLM and others that speak ChatML
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",  # Llama 3
    "<|eom_id|>",
    "</s>",  # Llama 2, Mistral
    "<eos>",  # Gemma
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",  # DeepSeek
    "<|end|>",  # Phi
    "<|return|>",  # gpt-oss
)


class ProfileReward(_Settings):
    """One reward of a profile."""

    name: str = Field(description="Name of a reward.")
    weight: float = Field(1.0, ge=-1e6, le=1e6, allow_inf_nan=False, description="Its weight in the total.")
    params: Mapping[str, Any] = Field(default_factory=dict, description="Its parameters.")


class Profile(_Settings):
    """What /get_reward/{profile} and /rm/{profile} score by: their requests cannot say."""

    rewards: tuple[ProfileReward, ...] = Field(min_length=1, max_length=64, description="Rewards to apply.")
    label_key: str = Field("final_answer", min_length=1, description="Key of the reference that holds the label.")
    unscorable: Literal["drop", "error"] | Annotated[float, Field(allow_inf_nan=False)] = Field(
        "drop",
        description="What stands for no score, which these protocols cannot say. drop: the reward 0, and for OpenRLHF"
        " a `score` by which its dynamic filtering leaves the prompt out; a number: that reward; error: status 409 or"
        " 503, which OpenRLHF and slime try again and then crash of.",
    )
    end_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        END_TOKENS, description="Texts of the tokens that end a completion, taken off its end: trainers send them too."
    )


GSM8K_PROFILE = Profile(rewards=(ProfileReward(name="gsm8k_format"), ProfileReward(name="gsm8k_correctness")))


class CustomRewardSpec(_Settings):
    """A reward of somebody's own, to be loaded; see `reward_service.custom`."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$", description="What requests call it.")
    target: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300, description="Where it is: `module:name`."
    )
    low: float | None = Field(
        None, allow_inf_nan=False, description="The lowest score; None: 0, or as the Reward has it."
    )
    high: float | None = Field(
        None, allow_inf_nan=False, description="The highest score; None: 1, or as the Reward has it."
    )
    deadline_s: float | None = Field(
        None, gt=0, le=3600, description="Time for one item, seconds; None: as the Reward or the service has it."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Defaults for its parameters: a request may state others."
    )


class ServiceSettings(_Settings):
    """Where the service listens, what it takes, and how it scores."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; loopback unless there are keys.")
    port: int = Field(8300, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    root_path: str = Field(
        "",
        pattern=r"^(/[^/?#\s]+)*$",
        description="Prefix under which a proxy in front shows the service, such as /rewards, whether it takes it off"
        " or not.",
    )
    ssl_certfile: Path | None = Field(None, description="Certificate chain (PEM); with it the service speaks TLS.")
    ssl_keyfile: Path | None = Field(None, description="Its private key (PEM), if that is not in the same file.")
    keys_file: Path | None = Field(
        None, description="API keys, made by `rlvr reward keys add`; without it everybody who reaches the service may."
    )
    audit: AuditSettings | None = Field(None, description="Where decisions are recorded; null: nowhere.")

    rewards: tuple[str, ...] | None = Field(None, min_length=1, description="Rewards to serve; null: all there are.")
    custom_rewards: tuple[CustomRewardSpec, ...] = Field((), description="Rewards of your own, `module:function`.")
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings, description="How the reward `code` runs code.")
    judge: JudgeSettings | None = Field(None, description="Endpoint of the reward `judge`; null: there is no judge.")
    profiles: Mapping[str, Profile] = Field(
        default_factory=lambda: {"gsm8k": GSM8K_PROFILE}, description="Profiles of /get_reward and /rm, by name."
    )

    end_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Texts of end tokens that are taken off the completions of /v1/score too."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that take requests, at one port. Workers, queue, bodies and connections are shared out"
        " among them.",
    )
    max_connections: int = Field(4096, ge=1, description="Most connections; beyond it 503.")
    max_connections_per_address: int = Field(
        1024, ge=1, description="Most connections of one address (IPv6: of one /64), a proxy's too; beyond it 429."
    )
    max_header_bytes: int = Field(64 * 2**10, ge=1024, description="Largest head of a request, bytes; beyond it 431.")
    max_headers: int = Field(100, ge=8, description="Most header fields of a request; beyond it 431.")
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time from a connection's, or a request's, first byte to its whole head, seconds."
    )
    idle_timeout_s: float = Field(
        30.0, gt=0, description="Time a connection may be idle, or leave an answer unread, seconds."
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body, bytes; beyond it 413.")
    max_body_keys: int = Field(
        300_000,
        ge=1,
        description="Most keys of objects in a request body, in text of its strings too; beyond it 413. A million are "
        "a second and a half during which nobody else is served.",
    )
    max_bodies_bytes: int = Field(
        512 * 2**20, ge=1024, description="Most bytes of all bodies that are being read or scored; beyond it 429."
    )
    max_items: int = Field(4096, ge=1, description="Most items of one request; beyond it 422.")
    max_text_chars: int = Field(2_000_000, ge=1, description="Longest prompt or completion, characters; beyond it 422.")
    body_timeout_s: float = Field(30.0, gt=0, description="Time a client has to send its body, seconds; beyond it 408.")

    num_workers: int = Field(_NUM_CORES, ge=1, le=512, description="Worker processes that are not held up.")
    max_workers: int = Field(
        4 * _NUM_CORES + 4, ge=1, le=1024, description="Worker processes, those that an item holds up included."
    )
    chunk_items: int = Field(128, ge=1, description="Most items a worker takes before other requests get their turn.")
    max_queued_items: int = Field(65_536, ge=1, description="Most items that wait for a worker; beyond it 429.")
    deadline_s: float = Field(5.0, gt=0, le=3600, description="Time of one reward for one item, seconds.")
    deadlines_s: Mapping[str, float] = Field(default_factory=dict, description="The same for single rewards.")
    max_deadline_factor: float = Field(
        10.0,
        ge=1,
        le=1000,
        description="Deadlines and request_timeout_s do not count the time in which an item waited for a processor that"
        " others had; so many times as long at most.",
    )
    request_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Time of a request, seconds; items not reached by then have no score."
    )
    max_items_per_worker: int = Field(1_000_000, ge=1, description="Items after which a worker is replaced.")
    worker_memory_bytes: int = Field(
        2 * 2**30, ge=2**26, description="Address space a worker may take beyond what it starts with, bytes."
    )
    shutdown_timeout_s: float = Field(10.0, gt=0, description="Time accepted requests have to end on SIGTERM, seconds.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.processes > self.num_workers:
            raise ValueError(f"processes={self.processes} is more than num_workers={self.num_workers}; each has one")
        if self.max_workers < self.num_workers:
            raise ValueError(f"max_workers={self.max_workers} is less than num_workers={self.num_workers}")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile is given without ssl_certfile")
        for name, deadline_s in self.deadlines_s.items():
            if not 0 < deadline_s <= 3600:
                raise ValueError(f"deadlines_s.{name}={deadline_s} is not in (0, 3600]")
        return self

    def deadline_of(self, name: str, own_s: float | None) -> float:
        """How long a reward may take.

        Args:
            name: The reward's.
            own_s: What it asks for itself; None: nothing.

        Returns:
            Seconds for one item: of `deadlines_s`, else its own, else `deadline_s`.
        """
        return self.deadlines_s.get(name, own_s if own_s is not None else self.deadline_s)


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Write a value at its dotted place in tables of tables, making those that are not there.

    Raises:
        ValueError: a part of the way is a value and not a table; the message is that part's name.
    """
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        if not isinstance(tree[parent], dict):
            raise ValueError(parent)
        tree = tree[parent]
    tree[leaf] = value


def read_yaml(text: str) -> Any:
    """A document of YAML, or of JSON, in which no table has a key twice: YAML's readers take the last one in silence.

    Raises:
        yaml.YAMLError: it is no YAML, or has such a key; the message names the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            first: dict[str, Any] = {}
            for key, _ in node.value:
                if (other := first.setdefault(str(key.value), key)) is not key:
                    lines = [each.start_mark.line + 1 for each in (other, key)]
                    raise yaml.YAMLError(f"{key.value!r} stands twice, in lines {lines[0]} and {lines[1]}")
            return node

    return yaml.load(text, Loader)
