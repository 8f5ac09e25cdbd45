"""Asks a model in batches that begin together, judges what it says, and keeps each batch.

A batch meets an engine that has forgotten all prefixes, and its prompts begin as one, in order: on CPUs the same
evaluation gives the same bytes, whether it was broken off or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from orchestration.concurrency import gather_or_cancel
from orchestration.evals.answers import GREEDY, SAMPLED, Answer
from orchestration.evals.rules import Decode, own_part
from orchestration.evals.store import Store
from orchestration.run.ports import Scorer
from orchestration.types import BuiltPrompt
from rollout_server.types import Completion, Prompt, SamplingParams, Turn

LocalJudge = Callable[[BuiltPrompt, str, str], float | None]
"""Of a prompt, what is judged of a completion, and the whole completion."""


class Asked(Protocol):
    """What answers: an engine, or what plays episodes with one."""

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How everything is asked and judged."""

    asked: SamplingParams
    """Limit and stops of what is judged, and how samples are drawn."""
    seed: int
    num_samples: int = 0
    """Completions a problem beside the greedy one."""
    run_on_tokens: int = 0
    """Let greedy completions run on, without stops but the model's own end token, up to so many tokens; 0: do not."""
    cut: Callable[[str], str] = str
    """What of that text is judged."""

    def sampling(self, draw: str) -> SamplingParams:
        """What the engine is told."""
        if draw == SAMPLED:
            return replace(self.asked, num_generations=self.num_samples)
        greedy = replace(self.asked, num_generations=1, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
        if not self.run_on_tokens:
            return greedy
        longest = max(self.run_on_tokens, greedy.max_completion_length)
        return replace(greedy, max_completion_length=longest, stop=(), stop_token_ids=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts that begin together."""

    side: str
    part: str
    draw: str
    number: int
    prompts: Sequence[BuiltPrompt]

    @property
    def name(self) -> str:
        return f"{self.side}-{self.part}-{self.draw}-{self.number:04d}"


def batches(
    side: str, parts: Mapping[str, Sequence[BuiltPrompt]], manner: Manner, *, max_num_seqs: int
) -> Iterator[Batch]:
    """All that one model is asked, as many completions at once as its engine decodes at once.

    Args:
        side: Base or adapter.
        parts: Prompts by the set of problems that they are of.
        manner: How they are asked.
        max_num_seqs: Completions that the engine decodes at once.
    """
    for part, prompts in parts.items():
        for draw in (GREEDY, SAMPLED)[: 2 if manner.num_samples else 1]:
            size = max(1, max_num_seqs // manner.sampling(draw).num_generations)
            for number, start in enumerate(range(0, len(prompts), size)):
                yield Batch(side=side, part=part, draw=draw, number=number, prompts=prompts[start : start + size])


async def ask(
    wanted: Sequence[Batch],
    asked: Asked,
    forget: Callable[[], Awaitable[None]],
    judges: Mapping[str, Scorer],
    local_judges: Mapping[str, LocalJudge],
    manner: Manner,
    decode: Decode,
    store: Store,
    *,
    on_problem: Callable[[], None],
) -> None:
    """Have the batches answered, judged and kept, one after the other.

    Args:
        wanted: in this order.
        asked: answers with the model and the adapter of the batches' side.
        forget: empties the engine's prefix cache.
        judges: services' rewards, by name; of each the first counts.
        local_judges: what is judged here, by name.
        manner: how is drawn, greedily and by samples.
        decode: token ids into text.
        store: keeps each batch once it is whole.
        on_problem: told of each prompt that is answered and judged.

    Raises what asking or judging raises.
    """
    for batch in wanted:
        await forget()

        async def one(index: int, built: BuiltPrompt, batch: Batch = batch) -> list[Answer]:
            turn = Turn(key=f"{batch.name}/{manner.seed}", index=index, size=len(batch.prompts))
            seed = _seed(manner.seed, batch, built.prompt.prompt_id)
            drawn = await asked.generate(replace(built.prompt, seed=seed, turn=turn), manner.sampling(batch.draw))
            answers = await _judged(batch, built, drawn, judges, local_judges, manner, decode)
            on_problem()
            return answers

        found = await gather_or_cancel(one(index, built) for index, built in enumerate(batch.prompts))
        store.write(batch.name, [answer for answers in found for answer in answers])


async def _judged(
    batch: Batch,
    built: BuiltPrompt,
    drawn: Sequence[Completion],
    judges: Mapping[str, Scorer],
    local_judges: Mapping[str, LocalJudge],
    manner: Manner,
    decode: Decode,
) -> list[Answer]:
    parts = [own_part(completion, manner.asked, decode) for completion in drawn]
    texts = [manner.cut(text) for text, _, _ in parts]
    shown = [replace(completion, text=text) for completion, text in zip(drawn, texts, strict=True)]
    scored = await gather_or_cancel(judge.score(built.problem, built.text, shown) for judge in judges.values())
    return [
        Answer(
            side=batch.side,
            part=batch.part,
            draw=batch.draw,
            problem_id=built.problem.problem_id,
            category=built.problem.category,
            sample=index,
            text=texts[index],
            num_tokens=num_tokens,
            ended=ended,
            scores={
                **{name: given[index].rewards[0] for name, given in zip(judges, scored, strict=True)},
                **{name: judge(built, texts[index], drawn[index].text) for name, judge in local_judges.items()},
            },
            run_on=drawn[index].text if manner.run_on_tokens and batch.draw == GREEDY else "",
        )
        for index, (_, num_tokens, ended) in enumerate(parts)
    ]


def _seed(seed: int, batch: Batch, prompt_id: str) -> int:
    """Of a problem's samples: the same for base and adapter, whose draws are then paired as far as they can be."""
    text = f"eval/{seed}/{batch.part}/{prompt_id}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")
