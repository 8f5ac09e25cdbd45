"""One run's settings: the rooms' configurations together, from a recipe and dotted overrides.

Loads no heavy library: `rlvr --help`, `rlvr doctor` and every submit backend start here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from learner.config import LearnerConfig
from orchestration.data.curriculum_config import CurriculumConfig
from orchestration.data.task import Task, called, find_task, registered_tasks
from orchestration.errors import ConfigError, DataError
from orchestration.extras import make_importable
from orchestration.section import Section
from orchestration.settings.episodes import EpisodeConfig
from orchestration.settings.from_trl import is_trl, name_columns, steps_of, take_overrides, translate
from orchestration.settings.problems import first_problem
from orchestration.settings.rewards import RewardConfig
from orchestration.settings.submit import SubmitConfig
from orchestration.settings.tree import assign, parse_override, read_recipe, spell_out_kinds, walk_keys
from orchestration.watch.facts import AlarmName
from reward_service.types import JUDGE, RewardSpec
from rollout_server.config import RolloutConfig

Checked = TypeVar("Checked", bound=BaseModel)

DEFAULT_TASK = "arithmetic"


class ModelConfig(Section):
    """The base model, the same for sampler and learner."""

    name: str = Field(
        "smollm2-135m-instruct",
        description="An embedded model (smollm2-135m-instruct, tiny), random weights of a shape (random:qwen2.5-0.5b, "
        "-1.5b, -7b; for measuring), a local folder, or a hub id.",
    )
    revision: str | None = Field(None, description="Hub revision.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="What the model's chat template is given besides the messages, such as {enable_thinking: false}.",
    )


def _as_task(value: Any) -> Any:
    """A task from its settings, for a configuration that was dumped; `load_settings` says more of what is wrong."""
    if not isinstance(value, dict):
        return value
    try:
        return find_task(value.get("kind", DEFAULT_TASK)).model_validate(value)
    except (ConfigError, ValidationError) as error:
        raise ValueError(str(error)) from error


def _default_task() -> Task:
    return find_task(DEFAULT_TASK)()


DataConfig = Annotated[SerializeAsAny[Task], BeforeValidator(_as_task)]


class RunConfig(Section):
    """Everything a run is made of."""

    recipe: str = Field("arithmetic", description="Name of the recipe the settings came from.")
    run_dir: str | None = Field(None, description="Run folder; unset: runs/RECIPE-TIME.")
    seed: int = Field(0, ge=0, description="Seed of sampling, adapter initialisation and data order.")
    max_steps: int = Field(100, ge=0, description="Optimizer steps.")
    num_train_epochs: float | None = Field(
        None,
        gt=0,
        description="Passes over the training problems, instead of max_steps, which it becomes as TRL counts: what is "
        "left of an epoch's last batch is dropped.",
    )
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="Share of max_steps that becomes learner.warmup_steps."
    )
    prompts_per_step: int = Field(8, ge=1, description="Groups in a step's batch.")
    max_staleness: int = Field(
        0,
        ge=0,
        description="How many updates old a completion may be when it is learned from; 0 is strictly on-policy.",
    )
    drop_flat_groups: bool = Field(
        False,
        description="Throw away groups whose rewards are all equal and refill the batch (DAPO's dynamic sampling).",
    )
    max_refills: int = Field(
        3, ge=0, description="With drop_flat_groups: batches' worth of extra groups a step may draw."
    )
    flat_steps_alarm: int = Field(
        5, ge=1, description="Say so after so many steps in a row in which all groups are flat."
    )
    eval_every: int = Field(0, ge=0, description="Held-out accuracy every so many steps; 0: before and after only.")
    eval_at_ends: bool = Field(True, description="Held-out accuracy before the first and after the last step.")
    stop_on_alarms: tuple[AlarmName, ...] = Field((), description="Alarms with which the run ends, its state kept.")
    save_every: int = Field(0, ge=0, description="Checkpoint every so many steps; 0: by time, and at the end.")
    save_minutes: float = Field(
        5.0, ge=0, description="Checkpoint after the first step that ends so long after the last one; 0: not by time."
    )
    keep_records: int = Field(
        100,
        ge=1,
        description="Steps whose record stays for `rlvr replay`, beside those since the oldest checkpoint.",
    )
    audit: bool = Field(
        False,
        description="Keep the reward service's audit log in the run folder, and digests of all that is written there, "
        "for `rlvr trace`; takes reward.deployment=local.",
    )
    resume: Literal["auto", "adapter"] = Field(
        "auto",
        description="How a run_dir that holds steps goes on. auto: from its checkpoint and records; adapter: where "
        "there are none, from its adapter, with a new optimizer.",
    )
    max_restarts: int = Field(
        5,
        ge=0,
        description="How often within restart_window_s a rollout worker, the learner or the run's own reward service "
        "is started again after it died or hung; then the run stops.",
    )
    restart_window_s: float = Field(600.0, gt=0, description="Over how long restarts are counted, seconds.")
    stop_grace_s: float = Field(
        15.0, ge=0, description="What is under way at Ctrl-C or SIGTERM and takes longer is abandoned, seconds."
    )
    retry_io_s: float = Field(
        600.0, ge=0, description="How long the run waits for room where a disk or /dev/shm is full, seconds."
    )
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...] = Field(
        (),
        description="Trackers that are told of the run, each an extra; how they are reached, their own variables say.",
    )
    run_name: str | None = Field(None, description="The run's name there; unset: that of its folder.")
    project: str = Field("rlvr", min_length=1, description="Their project or experiment.")
    track_adapter: bool = Field(False, description="They are given the adapter too, beside page and completions.")
    monitor: bool = Field(
        False, description="Start Prometheus, and Grafana where there is one, as `rlvr monitor up` does; they stay."
    )
    example_every: int = Field(5, ge=0, description="Show an example completion every so many steps; 0: never.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto: CUDA when there is a GPU."
    )
    placement: Literal["auto", "colocated", "split"] = Field(
        "auto",
        description="split: rollout workers and learner ranks on GPUs of their own; colocated: they share; "
        "auto: split when there are enough GPUs.",
    )
    rollout_nodes: str | None = Field(
        None,
        description="Name of a Ray resource that the nodes for rollout workers carry, as by `ray start --resources`; "
        "unset: any node.",
    )
    learner_nodes: str | None = Field(None, description="The same for learner ranks.")
    dashboard: bool = Field(True, description="Start Ray's dashboard and node metrics.")
    ray_address: str | None = Field(None, description="A running Ray cluster; unset: one is started here for the run.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=_default_task, description="The task.")
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    episodes: EpisodeConfig = Field(default_factory=EpisodeConfig)

    @model_validator(mode="before")
    @classmethod
    def _say_the_rewards(cls, tree: Any) -> Any:
        """Writes the task's own rewards where the settings name none, so that a saved configuration says them."""
        if not isinstance(tree, dict):
            return tree
        task, reward = _as_task(tree.get("data", {})), tree.get("reward", {})
        if isinstance(reward, RewardConfig):
            reward = reward.model_dump() | {"api_key": reward.api_key}
        if isinstance(task, Task) and isinstance(reward, dict) and reward.get("rewards") is None:
            reward = {**reward, "rewards": [asdict(spec) for spec in task.rewards()] or None}
        return {**tree, "data": task, "reward": reward}

    @model_validator(mode="after")
    def _rooms_agree(self) -> RunConfig:
        if self.rollout.num_generations < 2 and self.max_steps:
            raise ValueError("rollout.num_generations must be at least 2: an advantage needs a group to compare with")
        if self.rollout.temperature == 0 and self.max_steps:
            raise ValueError("rollout.temperature must be above 0 for training: greedy groups are all alike")
        self.rollout.check_run(max_steps=self.max_steps, placement=self.placement)
        if self.reward.control != "none" and self.learner.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                f"reward.control={self.reward.control} replaces the total, which multi_objective_aggregation="
                f"normalize_then_sum does not look at: use sum_then_normalize for the control"
            )
        self._check_verifier()
        self.learner.check_run(max_steps=self.max_steps, max_completion_length=self.rollout.max_completion_length)
        if self.learner.lora.r > self.rollout.max_lora_rank:
            raise ValueError(
                f"learner.lora.r={self.learner.lora.r} is over rollout.max_lora_rank={self.rollout.max_lora_rank}: "
                f"raise the latter"
            )
        if self.rollout.max_completion_length >= self.rollout.max_model_len:
            raise ValueError(
                f"rollout.max_completion_length={self.rollout.max_completion_length} leaves no room for a prompt in "
                f"rollout.max_model_len={self.rollout.max_model_len}"
            )
        if self.rollout.max_adapter_versions < self.max_staleness + 2:
            raise ValueError(
                f"max_staleness={self.max_staleness} needs rollout.max_adapter_versions of at least "
                f"{self.max_staleness + 2}, got {self.rollout.max_adapter_versions}"
            )
        if self.placement == "colocated" and self.rollout_nodes != self.learner_nodes:
            raise ValueError(
                f"placement=colocated shares GPUs between rooms that rollout_nodes={self.rollout_nodes} and "
                f"learner_nodes={self.learner_nodes} keep on different nodes: use placement=split"
            )
        if self.audit and (self.reward.url is not None or self.reward.deployment.kind != "local"):
            own = "reward.url" if self.reward.url is not None else "reward.deployment=actor"
            raise ValueError(
                f"audit=true keeps the reward service's log in the run folder, and with {own} the service may be "
                f"elsewhere: leave one of them out (reward.settings_file says where the log goes then)"
            )
        self.data.check()
        if self.episodes.credit == "turn" and self.data.parts():
            raise ValueError(
                "episodes.credit=turn compares the turns of one task's episodes, and data.kind=mixture has several "
                "tasks: use credit=episode, or train on one task alone"
            )
        self.episodes.check_run(self.rewards, self.learner, self.rollout.num_generations)
        names = [spec.name for spec in self.rewards]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"reward.rewards names {twice!r} twice: a completion has one score of each reward")
        if empty := [part for part in self.parts() if names and not self.rewards_of(part)]:
            raise ValueError(f"none of reward.rewards is for the task {empty[0]!r} of the mixture: name one of its own")
        if not names:
            raise ValueError(
                f"the task {self.data.kind!r} has no rewards of its own: say what is learned from, such as "
                f"reward.rewards='[{{name: exact}}]'"
            )
        return self

    def _check_verifier(self) -> None:
        verifier, names = self.reward.verifier, [spec.name for spec in self.rewards]
        if verifier is None:
            return
        for name in (verifier, JUDGE):
            if name not in names:
                raise ValueError(f"reward.verifier={verifier!r} needs {name!r} in reward.rewards: {', '.join(names)}")
        if verifier == JUDGE:
            raise ValueError(f"reward.verifier={verifier!r} is the judge itself: name a reward that verifies")
        if self.learner.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                "reward.verifier changes the total, which multi_objective_aggregation=normalize_then_sum does not look "
                "at: use sum_then_normalize"
            )

    @property
    def rewards(self) -> tuple[RewardSpec, ...]:
        """What the run learns from: the settings' rewards, or the task's own."""
        return self.reward.rewards or ()

    @property
    def judges(self) -> dict[str, RewardSpec]:
        """What decides whether a held-out answer is right, by `strict` and `lenient`; without judges of the task's own
        the run's first reward is the strict one."""
        return self.data.judges().named() or {"strict": self.rewards[0]}

    def rewards_of(self, part: str) -> tuple[RewardSpec, ...]:
        """Of a mixture's task: the run's rewards that it names itself, and those that none of its tasks does."""
        parts = self.data.parts()
        if not parts:
            return self.rewards
        own = {spec.name for spec in parts[part].rewards()}
        others = {spec.name for task in parts.values() for spec in task.rewards()} - own
        return tuple(spec for spec in self.rewards if spec.name not in others)

    def judges_of(self, part: str) -> dict[str, RewardSpec]:
        """Of a mixture's task: its judges under the names of `judges`; `strict` in the place of one that it lacks."""
        parts = self.data.parts()
        if not parts:
            return self.judges
        own = parts[part].judges().named() or {"strict": self.rewards_of(part)[0]}
        return {name: own.get(name) or next(iter(own.values())) for name in self.judges}

    def parts(self) -> tuple[str, ...]:
        """The names of a mixture's tasks; one empty name for a task that is one."""
        return tuple(self.data.parts()) or ("",)


LENGTHS = ("max_steps", "num_train_epochs")
"""Two ways to say how long a run is: the later one holds, of one file max_steps."""

UNIONS = ("data", "reward.deployment")
"""Settings that are one of several kinds: a word alone is the kind, `reward.deployment=actor`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything a recipe and its overrides say."""

    run: RunConfig
    submit: SubmitConfig


def load_config(recipe: str = "arithmetic", overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a recipe (a shipped name or a YAML file) and `dotted.key=value` overrides, the later winning.

    Raises:
        ConfigError: one line, naming the offending key or value and what to do.
    """
    return load_settings(recipe, overrides).run


def load_settings(recipe: str = "arithmetic", overrides: Sequence[str] = ()) -> Settings:
    """As `load_config`, with the settings of where the run is submitted to."""
    tree = read_recipe(recipe)
    if is_from_trl := is_trl(tree):
        overrides = take_overrides(overrides, tree, own_sections())
        tree = translate(tree, own_sections()).tree
    spell_out_kinds(tree, UNIONS)
    for override in overrides:
        key, value = parse_override(override)
        if key in LENGTHS:
            tree = {name: setting for name, setting in tree.items() if name not in LENGTHS}
        assign(tree, key, value, override)
        spell_out_kinds(tree, UNIONS)
    if is_from_trl:
        name_columns(tree.get("data"), all_of_them=bool(dict(tree.get("reward") or {}).get("custom_rewards")))
    beside = Path(recipe).parent
    tree["data"] = task = _task(tree.get("data", {}), beside=beside)
    if task.named_modules() or dict(tree.get("reward") or {}).get("custom_rewards"):
        for folder in (beside, Path()):
            make_importable(folder)
    submit = {name: tree.pop(name) for name in SubmitConfig.model_fields if name in tree}
    run = _validated(RunConfig, tree)
    if run.num_train_epochs is not None or run.warmup_ratio is not None:
        run = _with_steps(run, tree)
    return Settings(run=run, submit=_validated(SubmitConfig, submit))


def _with_steps(run: RunConfig, tree: dict[str, Any]) -> RunConfig:
    """The same run with epochs as max_steps and a share of them as learner.warmup_steps. Raises ConfigError."""
    tree = {**tree, "num_train_epochs": None, "warmup_ratio": None}
    if run.num_train_epochs is not None and "max_steps" not in tree:
        try:
            number = len(run.data.load().train)
        except (ConfigError, DataError) as error:
            raise ConfigError(
                f"num_train_epochs={run.num_train_epochs:g} needs the number of training problems, and {error}; or set "
                f"max_steps"
            ) from error
        tree["max_steps"] = steps_of(run.num_train_epochs, number, run.prompts_per_step)
    if run.warmup_ratio:
        steps = math.ceil(tree.get("max_steps", run.max_steps) * run.warmup_ratio)
        assign(tree, "learner.warmup_steps", steps, f"warmup_ratio={run.warmup_ratio}")
    return _validated(RunConfig, tree)


def own_sections() -> set[str]:
    """Names on the first level of a recipe."""
    return {*RunConfig.model_fields, *SubmitConfig.model_fields}


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back; secrets are left out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat_keys() -> list[str]:
    """All dotted keys of a configuration and its submission, over all variants of their unions."""
    tasks = (key for task in registered_tasks().values() for key in walk_keys(task, "data."))
    return sorted({*walk_keys(RunConfig), *walk_keys(SubmitConfig), *tasks} - {"data"})


def _task(tree: Any, *, beside: Path) -> Task:
    """The task that the section `data` describes. Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"data={tree!r} is neither a task nor a section of its settings")
    kind = tree.get("kind", DEFAULT_TASK)
    if not isinstance(kind, str):
        raise ConfigError(f"data.kind={kind!r} is not a task's name")
    tree = {**tree, **called(kind)}
    task = find_task(str(tree["kind"]), beside=beside)
    return _validated(task, {**tree, "kind": task.target()}, prefix="data", beside=beside)


def _validated(model: type[Checked], tree: dict[str, Any], *, prefix: str = "", beside: Path | None = None) -> Checked:
    try:
        return model.model_validate(tree, context=beside)
    except ValidationError as error:
        raise ConfigError(first_problem(error, _all_names, prefix=prefix)) from error


def _all_names() -> list[str]:
    """Of settings and of their sections."""
    sections = [*RunConfig.model_fields.items(), *SubmitConfig.model_fields.items()]
    return [*flat_keys(), *(name for name, value in sections if value.default_factory)]
