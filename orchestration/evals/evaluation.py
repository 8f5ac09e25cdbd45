"""One evaluation from settings to figures: base and adapter on one engine, one after the other."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestration.cluster.local import LocalAdapter, local_generator, read_adapter
from orchestration.cluster.reward.deployment import reward_client
from orchestration.concurrency import in_thread
from orchestration.data.problems import Problems
from orchestration.data.prompts import PromptBuilder
from orchestration.episodes.generator import acting
from orchestration.errors import ConfigError
from orchestration.evals import lm_eval
from orchestration.evals.answers import ADAPTER, BASE, HELD_OUT, TRAIN, Answer
from orchestration.evals.asking import Batch, LocalJudge, Manner, ask, batches
from orchestration.evals.figures import METHOD, summary
from orchestration.evals.rules import article_score
from orchestration.evals.store import Store
from orchestration.evals.table import table_of
from orchestration.models.dequantized import served_model
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.run.rewards import check_rewards
from orchestration.run.scorer import make_judges
from orchestration.settings.config import RunConfig
from orchestration.storage.cache import Progress
from orchestration.types import BuiltPrompt, Problem
from rollout_server.config import Device
from rollout_server.forking.leftovers import owned_prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an evaluation is of, beside the settings."""

    adapter: Path | None
    """A peft folder; None: the base model alone."""
    adapter_name: str | None = None
    """How it is called in the figures."""
    with_base: bool = True
    """Beside an adapter: ask the base too."""
    num_samples: int = 0
    as_lm_eval: bool = False
    """Answers end at lm-eval's stop strings, and its two filters of the task `gsm8k` judge too."""
    article_tokens: int = 0
    """Judge by the AWS article's evaluation and lm-eval's filters too, where the answers are numbers, on greedy
    completions that run on up to so many tokens; 0: do not."""
    num_train: int = 0
    """Ask so many training problems too, the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of it."""

    results: Mapping[str, Any]
    answers: Sequence[Answer]
    problems: Problems
    table: str


async def evaluate(config: RunConfig, wanted: Wanted, store: Store, device: Device, progress: Progress) -> Evaluated:
    """Have everything answered that the store does not hold yet, and count it.

    Args:
        config: the base model, the problems and how the engine runs.
        wanted: whose answers, and which.
        store: what an earlier call got so far is read from it.
        device: of the engine.
        progress: told what is being done, and the share that is done.

    Raises:
        ConfigError: the settings do not allow it, or the store holds another evaluation.
        RlvrError, RolloutError, RewardServiceError, LearnerError: a part of it does not start, or fails.
    """
    check_turns(config, wanted)
    progress("reading the problems", 0.0)
    problems = config.data.load()
    if wanted.as_lm_eval:
        check_final_answers(problems.eval)
    if config.data.has_turns() or not has_final_answers(problems.eval):
        wanted = replace(wanted, article_tokens=0)
    await in_thread(partial(check_rewards, config, problems))
    progress(f"preparing the model {config.model.name}", 0.0)
    name, revision = config.model.name, config.model.revision
    model_path = await in_thread(partial(resolve_model, name, revision, progress=progress))
    served = await in_thread(partial(served_model, model_path, config, device=device, progress=progress))
    builder = make_prompt_builder(config, problems, model_path)
    held_out = builder.build_all(problems.eval)
    parts: dict[str, Sequence[BuiltPrompt]] = {HELD_OUT: held_out.prompts}
    if wanted.num_train:
        parts[TRAIN] = builder.build_all(problems.train[: wanted.num_train]).prompts
    adapter = None if wanted.adapter is None else await asyncio.to_thread(read_adapter, wanted.adapter)
    manner = manner_of(config, wanted, builder)
    store.begin(identity(config, wanted, parts, manner, adapter))
    sides = [BASE] if adapter is None else [BASE, ADAPTER] if wanted.with_base else [ADAPTER]
    at_once = min(config.rollout.max_num_seqs, config.episodes.max_concurrent or config.rollout.max_num_seqs)
    planned = [one for side in sides for one in batches(side, parts, manner, max_num_seqs=at_once)]
    decoding = load_tokenizer(model_path)
    runner = _Runner(config, problems, builder, manner, store, served, device, wanted, progress)
    answers = await runner.run(planned, adapter, lambda ids: decoding.decode(ids, skip_special_tokens=True))
    results: dict[str, Any] = {
        "model": config.model.name,
        "adapter": wanted.adapter_name,
        "base": "original" if served == model_path else f"{config.learner.quantization}, dequantised",
        "data": config.data.kind,
        "num_shots": len(problems.shots),
        "seed": config.seed,
        "num_samples": wanted.num_samples,
        "judges": list(answers[0].scores),
        "skipped": list(held_out.skipped),
        "method": METHOD,
        **{part: summary([answer for answer in answers if answer.part == part], seed=config.seed) for part in parts},
    }
    table = table_of(results)
    store.end(answers, results, table)
    return Evaluated(results=results, answers=answers, problems=problems, table=table)


class _Runner:
    """Starts the engine and the reward service only where something is missing."""

    def __init__(
        self,
        config: RunConfig,
        problems: Problems,
        builder: PromptBuilder,
        manner: Manner,
        store: Store,
        served: Path,
        device: Device,
        wanted: Wanted,
        progress: Progress,
    ) -> None:
        self._config, self._problems, self._builder = config, problems, builder
        self._manner, self._store, self._served = manner, store, served
        self._device, self._wanted, self._progress = device, wanted, progress
        self._done = self._total = 0

    async def run(self, planned: Sequence[Batch], adapter: LocalAdapter | None, decode: Any) -> list[Answer]:
        """The answers to all batches, in their order."""
        missing = [batch for batch in planned if self._store.read(batch.name) is None]
        self._total = sum(len(batch.prompts) for batch in planned)
        self._done = self._total - sum(len(batch.prompts) for batch in missing)
        if missing:
            await self._ask(missing, adapter, decode)
        return [answer for batch in planned for answer in self._store.read(batch.name) or ()]

    async def _ask(self, missing: Sequence[Batch], adapter: LocalAdapter | None, decode: Any) -> None:
        config = self._config
        async with AsyncExitStack() as stack:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix=owned_prefix("eval")))
            self._progress("starting the reward service and the vLLM engine", 0.0)
            client = await stack.enter_async_context(reward_client(config, Path(logs)))
            engine = await stack.enter_async_context(
                local_generator(model_path=self._served, config=config.rollout, device=self._device, seed=config.seed)
            )
            asked = acting(engine, config, self._problems, self._builder, client, device=self._device)
            judges = make_judges(config, client, run_id="eval")
            for side in dict.fromkeys(batch.side for batch in missing):
                if side == ADAPTER and adapter is not None:
                    await engine.publish(adapter)
                await ask(
                    [batch for batch in missing if batch.side == side],
                    asked,
                    engine.drop_prefix_cache,
                    judges,
                    local_judges(self._wanted),
                    self._manner,
                    decode,
                    self._store,
                    on_problem=self._tell,
                )

    def _tell(self) -> None:
        self._done += 1
        self._progress(f"answering, {self._done} of {self._total} problems", self._done / self._total)


def check_turns(config: RunConfig, wanted: Wanted) -> None:
    """A task that is played in turns has no answers to look at one by one.

    Raises:
        ConfigError: Something is wanted that only single answers have.
    """
    if not config.data.has_turns():
        return
    if wanted.as_lm_eval:
        raise ConfigError(
            f"--lm-eval-compatible cuts single answers, and the task {config.data.kind!r} is played in turns; "
            f"leave it out"
        )
    if not config.episodes.takes(wanted.num_samples):
        raise ConfigError(
            f"--samples {wanted.num_samples} of a problem begin together, and there is no room for them in "
            f"episodes.max_concurrent={config.episodes.max_concurrent}: raise it, or ask for fewer"
        )


def manner_of(config: RunConfig, wanted: Wanted, builder: PromptBuilder) -> Manner:
    """How the settings ask.

    Raises:
        ConfigError: Samples are wanted without a temperature.
    """
    if wanted.num_samples and config.rollout.temperature == 0:
        raise ConfigError("--samples draws completions that differ: rollout.temperature must be above 0")
    asked = training_sampling(config, builder)
    if wanted.as_lm_eval:
        asked = replace(asked, stop=(*asked.stop, *lm_eval.STOPS))
    return Manner(
        asked=asked,
        seed=config.seed,
        num_samples=wanted.num_samples,
        run_on_tokens=wanted.article_tokens,
        cut=lm_eval.cut if wanted.as_lm_eval else str,
    )


def identity(
    config: RunConfig,
    wanted: Wanted,
    parts: Mapping[str, Sequence[BuiltPrompt]],
    manner: Manner,
    adapter: LocalAdapter | None,
) -> dict[str, Any]:
    """All that the answers depend on, as JSON."""
    digest = hashlib.sha256()
    for part, prompts in parts.items():
        for built in prompts:
            content = (part, built.prompt.prompt_id, tuple(built.prompt.token_ids), built.problem.reference)
            digest.update(repr(content).encode("utf-8", "replace"))
    played = {"episodes": config.episodes.model_dump(mode="json")} if config.data.has_turns() else {}
    return {
        **played,
        "model": [config.model.name, config.model.revision, config.learner.quantization, config.rollout.dtype],
        "adapter": None if adapter is None else adapter.payload.checksum(),
        "with_base": wanted.with_base,
        "problems": digest.hexdigest(),
        "sampling": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(manner.asked).items()},
        "max_num_seqs": config.rollout.max_num_seqs,
        "samples": manner.num_samples,
        "run_on_tokens": manner.run_on_tokens,
        "lm_eval_compatible": wanted.as_lm_eval,
        "judges": {name: asdict(spec) for name, spec in config.judges.items()},
        "seed": manner.seed,
    }


def has_final_answers(problems: Sequence[Problem]) -> bool:
    """Whether all problems have what the article and lm-eval compare with."""
    return all(isinstance(problem.reference.get("final_answer"), str) for problem in problems)


def check_final_answers(problems: Sequence[Problem]) -> None:
    """What lm-eval compares with is there.

    Raises:
        ConfigError: A problem has no final answer.
    """
    if not has_final_answers(problems):
        lacking = next(one for one in problems if not has_final_answers([one]))
        raise ConfigError(
            f"--lm-eval-compatible compares final answers, and {lacking.problem_id} has none; leave it out"
        )


def local_judges(wanted: Wanted) -> dict[str, LocalJudge]:
    """Those that are not the reward service's: lm-eval's two filters, the article's rule."""
    judges: dict[str, LocalJudge] = {}
    if wanted.as_lm_eval:
        judges["strict_match"] = lambda built, text, _: lm_eval.strict_match(text, _answer(built))
        judges["flexible_extract"] = lambda built, text, _: lm_eval.flexible_extract(text, _answer(built))
    if wanted.article_tokens:
        cut = lm_eval.cut
        judges["strict_match"] = lambda built, _, run_on: lm_eval.strict_match(cut(run_on), _answer(built))
        judges["flexible_extract"] = lambda built, _, run_on: lm_eval.flexible_extract(cut(run_on), _answer(built))
        judges["article"] = lambda built, _, run_on: article_score(built.text, run_on, _answer(built))
    return judges


def _answer(built: BuiltPrompt) -> str:
    return str(built.problem.reference.get("final_answer", ""))
