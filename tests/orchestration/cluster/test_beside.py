"""Groups that are scored in their worker's process, by a real service, and what happens there when it is gone."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.generator import RayMember, ScoringPool
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.cluster.upkeep.whereabouts import Whereabouts
from orchestration.run.flow import FlowSettings, RolloutFlow
from orchestration.run.metrics import PhaseClock
from orchestration.run.ports import Drawn
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import load_config
from orchestration.types import BuiltPrompt, Problem
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams
from tests.orchestration.cluster.test_keeper import newest_service, own_service
from tests.waiting import until_async

CONFIG = load_config("tiny", ["reward.control=random"])
SAMPLING = SamplingParams(num_generations=2)
PROBLEM = Problem(problem_id="p", question="?", reference={"final_answer": "7"})
BUILT = BuiltPrompt(problem=PROBLEM, prompt=Prompt(prompt_id="p", token_ids=(1, 2)), text="?")


class Engine:
    """Answers 7 and 8; its steps never grow."""

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                text=f"#### The final answer is {7 + index}",
                token_ids=(1,),
                sampling_logprobs=(0.0,),
                finish_reason=FinishReason.STOP,
                adapter_version=0,
            )
            for index in range(sampling.num_generations)
        ]

    async def heartbeat(self) -> int:
        return 5


class Member:
    """The actor itself, in this process and on a node of a name."""

    def __init__(self, node_id: str) -> None:
        self.name, self.actor = "rollout-0", self
        self.process = Whereabouts(host="h", pid=1, mark="m", node_id=node_id)
        self.worker = RolloutActor(
            "rollout-0", lambda name: lambda values: None, lambda: node_id, lambda: "127.0.0.1", CONFIG, {}
        )
        self.worker._started = cast(Any, Engine())

    async def start(self) -> None: ...

    async def heartbeat(self) -> int:
        return await self.worker.heartbeat()

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        found: Sequence[Completion] = pickle.loads(await self.worker.generate(pickle.dumps((prompt, sampling))))
        return found

    async def generate_scored(
        self, prompt: Prompt, sampling: SamplingParams, built: BuiltPrompt, address: object, limit_s: float
    ) -> Drawn:
        asked = pickle.dumps((prompt, sampling, built.problem, built.text, address))
        drawn: Drawn = pickle.loads(await self.worker.generate_scored(asked))
        return drawn


async def pool_of(member: Member) -> RolloutPool[Any]:
    pool: RolloutPool[Any] = RolloutPool(
        lambda index, life: cast(RayMember, member),
        num_workers=1,
        stall_timeout_s=60.0,
        new_restarts=lambda: Restarts(limit=1, window_s=60.0),
    )
    await pool.start()
    return pool


async def test_a_worker_scores_as_the_driver_does_and_leaves_what_fails_to_it(tmp_path: Path) -> None:
    notes: list[str] = []
    async with own_service(tmp_path) as (keeper, _):
        scorer, _ = make_scorers(CONFIG, keeper, run_id="run")
        beside, far = Member("here"), Member("elsewhere")
        pools = [await pool_of(member) for member in (beside, far)]
        generators = [
            ScoringPool(pool, keeper, CONFIG, run_id="run", node_id="here", note=lambda level, text: notes.append(text))
            for pool in pools
        ]
        drawn = await generators[0].generate_scored(BUILT, BUILT.prompt, SAMPLING)
        assert drawn.group is not None
        from_here = await scorer.score(PROBLEM, "?", [member.completion for member in drawn.group.members])
        assert drawn.group.members == tuple(from_here)
        assert [member.rewards for member in from_here] == [(0.5, 1.0), (0.5, 0.0)]
        assert [member.item_id for member in from_here] != ["", ""]
        assert 0 < drawn.scoring_s < 60

        unreached = await generators[1].generate_scored(BUILT, BUILT.prompt, SAMPLING)
        assert (unreached.group, unreached.problem) == (None, ""), "127.0.0.1 is another host there"

        service = keeper.client
        os.kill(newest_service(tmp_path), signal.SIGSTOP)
        waiting = asyncio.create_task(generators[0].generate_scored(BUILT, BUILT.prompt, SAMPLING))
        await until_async(lambda: beside.worker._num_scoring)
        assert await beside.heartbeat() < await beside.heartbeat(), "one that waits for scores is no engine that hangs"
        os.kill(newest_service(tmp_path), signal.SIGKILL)
        lost = await waiting
        assert lost.group is None
        assert lost.problem in notes[0]

        await until_async(lambda: keeper.url() is not None and keeper.client is not service)
        flow = RolloutFlow(
            generator=generators[0],
            scorer=scorer,
            source=cast(Any, type("Source", (), {"next": lambda self: BUILT})()),
            settings=FlowSettings(
                prompts_per_step=1,
                max_staleness=0,
                drop_flat_groups=False,
                max_refills=0,
                sampling=SAMPLING,
                max_batches=1,
            ),
            clock=(clock := PhaseClock()),
        )
        (group,) = (await flow.next_batch()).scored_P
        assert group.members == tuple(from_here), "asked at its new address at once"
        assert clock.busy_seconds()["scoring"] > 0
        for pool in pools:
            await pool.close()


def test_what_was_scored_meanwhile_was_not_generated() -> None:
    now = [0.0]
    clock = PhaseClock(lambda: now[0])
    with clock.phase("generation") as first:
        now[0] = 2.0
        with clock.phase("generation") as second:
            now[0] = 5.0
            second.was_later("scoring", 2.0)
        now[0] = 6.0
        first.was_later("scoring", 2.5)
    assert clock.seconds()["generation"] == pytest.approx(3.5)
    assert clock.busy_seconds()["scoring"] == pytest.approx(3.0)
    assert clock.seconds()["scoring"] == pytest.approx(2.5)
