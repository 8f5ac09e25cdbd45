"""What the endpoints share: from parsed items to results, whichever protocol they came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, NamedTuple

import msgspec

from reward_service.api.bodies import Bodies, Texts, check_limits
from reward_service.api.judges import JudgedPlan, JudgedScoring
from reward_service.api.metrics import Metrics
from reward_service.api.rare_log import RareLog
from reward_service.api.siblings import Siblings, add_up
from reward_service.audit.decisions import describe
from reward_service.audit.handle import AuditHandle
from reward_service.audit.records import read_key
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.wire import AppliedReward, AuditBatch
from reward_service.errors import (
    AuditError,
    AuditUnavailableError,
    KeysError,
    NoAuditError,
    ServiceError,
    ServiceStartError,
    UnknownProfileError,
)
from reward_service.keys import ANONYMOUS, KeyRing
from reward_service.pool.messages import ScoredItem, encode_specs
from reward_service.pool.pool import WorkerPool
from reward_service.pool.request import unscored_item
from reward_service.rates import Caller, SharedRates
from reward_service.registry import is_light
from reward_service.rewards.base import Reward
from reward_service.sandbox.probe import resolve
from reward_service.schemas import ScoreItem, ServiceInfo, UnreadableItem
from reward_service.scoring import Plan, make_plan, unscored
from reward_service.settings import Profile, ServiceSettings
from reward_service.types import Reason, RewardSpec

_RESULT_BYTES = 400
"""About what an item's identifiers and scores take in the audit log's messages."""
_MAX_PLANS = 64
_MAX_PLAN_BYTES = 4096
_SMALL_BYTES = 2**15
"""Of a request whose light rewards this process may apply itself: no text makes that take long."""
_FEW_ITEMS = 4
"""Are scored here: to hand them to a worker is as much work. More are, too, where no worker is idle."""
NOBODY = Caller(name=ANONYMOUS)


class _Asked(NamedTuple):
    """What requests ask for. It is mostly the same, and to look it up and validate it takes as long as an item."""

    plan: Plan
    judged: JudgedPlan | None
    deadlines_s: Sequence[float]
    is_light: bool
    """Nothing but rewards that the server may apply itself."""


class Scored(NamedTuple):
    """Items with their results, in the items' order."""

    plan: Plan
    items: Sequence[ScoreItem]
    results: Sequence[ScoredItem]


class RewardService:
    """Scores on the pool what requests ask for. All methods are called on one event loop."""

    def __init__(
        self,
        settings: ServiceSettings,
        rewards: Mapping[str, Reward],
        version: str,
        *,
        siblings: Siblings | None = None,
        rates: SharedRates | None = None,
    ) -> None:
        """Raises ServiceStartError for settings that cannot work here: profiles, keys, audit log, sandbox."""
        self.settings, self.rewards, self.version = settings, rewards, version
        self.pool = WorkerPool(settings, _preloaded(settings, rewards))
        self._judges = JudgedScoring(settings, rewards, self.pool)
        self.bodies = Bodies(settings)
        self.metrics = Metrics(self.pool, self._audit_bytes if settings.audit is not None else None)
        self.unscorable_log = RareLog()
        self._siblings = siblings
        self._asked: dict[bytes, _Asked] = {}
        self._audit: AuditHandle | None = None
        try:
            self._keys = None if settings.keys_file is None else KeyRing(settings.keys_file, rates=rates)
        except KeysError as error:
            raise ServiceStartError(str(error)) from None
        self._profiles = {
            name: tuple(RewardSpec(name=r.name, weight=r.weight, params=r.params) for r in profile.rewards)
            for name, profile in settings.profiles.items()
            if settings.rewards is None or all(r.name in rewards for r in profile.rewards)
        }
        self._check()

    def _check(self) -> None:
        """What would otherwise fail at the first request."""
        for name, specs in self._profiles.items():
            try:
                self._look_up(specs)
            except ServiceError as error:
                raise ServiceStartError(f"profile {name!r}: {error}") from None
        if "code" in self.rewards and self.settings.sandbox.mode != "auto":
            resolve(self.settings.sandbox)
        if (audit := self.settings.audit) is not None:
            try:
                key = read_key(audit.hmac_key_file)
                with closing(AuditStore(audit.database, key=key, busy_timeout_s=audit.busy_timeout_s)) as store:
                    store.create()
            except AuditError as error:
                raise ServiceStartError(str(error)) from None

    async def start(self) -> None:
        """Starts the workers and opens the audit log; AuditError if that cannot be."""
        for reward in self.rewards.values():
            _ = reward.version  # worked out from source files before any request
        if self.settings.audit is not None:
            self._audit = await AuditHandle.start(self.settings.audit, service_version=self.version)
        await self.pool.start()
        if self._siblings is not None:
            await self._siblings.start(self.metrics.text)

    async def close(self) -> None:
        """Ends the workers and commits what is not yet in the audit log; AuditError if that cannot be."""
        if self._siblings is not None:
            await self._siblings.close()
        await self._judges.close()
        await self.pool.close()
        if self._audit is not None:
            await self._audit.close()

    def identify(self, authorization: str | None, x_api_key: str | None) -> Caller:
        """Who asks; UnauthorizedError if keys are asked for and this is none."""
        return NOBODY if self._keys is None else self._keys.check(authorization, x_api_key)

    @property
    def unready(self) -> str | None:
        """Why nothing can be scored now; None if it can."""
        if self._audit is not None and self._audit.failed is not None:
            return f"decisions cannot be recorded: {self._audit.failed}"
        return None if self.pool.ready else "no worker can score now: starting, held up by items, or shutting down"

    def profile(self, name: str) -> tuple[Profile, tuple[RewardSpec, ...]]:
        """A profile with its rewards; UnknownProfileError if there is none."""
        if name not in self._profiles:
            there = ", ".join(sorted(self._profiles)) or "none"
            raise UnknownProfileError(f"there is no profile {name!r:.100}; this service has {there}")
        return self.settings.profiles[name], self._profiles[name]

    async def score(
        self,
        caller: Caller,
        specs: tuple[RewardSpec, ...],
        items: list[ScoreItem],
        *,
        num_bytes: int,
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> Scored:
        """Scores every item by every reward, and records what was decided.

        Args:
            caller: whose rate limit the items count towards.
            specs: what to score by.
            items: the completions.
            num_bytes: of the request's body, which bound the items.
            run_id: for the audit log.
            policy_version: for the audit log.

        Raises:
            ServiceError: the request cannot be taken as a whole: unknown rewards, bad parameters, a limit, no room.
        """
        asked = self._look_up(specs)
        texts = Texts([item.prompt for item in items], [item.completion for item in items])
        check_limits(texts, self.settings)
        caller.spend(len(items))
        async with self._recording(texts) as audit:
            sound = [item for item in items if not isinstance(item, UnreadableItem)]
            if asked.judged is not None:
                results = await self._judges.score(asked.judged, sound)
            elif (
                asked.is_light
                and num_bytes <= _SMALL_BYTES
                and (len(sound) <= _FEW_ITEMS or not self.pool.has_idle_worker)
            ):
                results = self.pool.score_here(asked.plan, sound)
            else:
                results = await self.pool.score(specs, asked.deadlines_s, sound)
            if len(sound) < len(items):
                results = _with_unreadable(specs, items, results)
            scored = Scored(asked.plan, items, results)
            if audit is not None:
                audit.offer(_audit_batch(scored, texts, caller, run_id, policy_version))
        self.metrics.items.inc(len(items))
        return scored

    def _look_up(self, specs: tuple[RewardSpec, ...]) -> _Asked:
        key = encode_specs(specs)
        if (asked := self._asked.get(key)) is None:
            plan = make_plan(specs, self.rewards)
            asked = _Asked(
                plan=plan,
                judged=self._judges.prepare(plan, specs),
                deadlines_s=[self.settings.deadline_of(p.reward.name, p.reward.deadline_s) for p in plan],
                is_light=all(is_light(p.reward, p.params) for p in plan),
            )
            if len(self._asked) >= _MAX_PLANS:
                self._asked.clear()
            if len(key) <= _MAX_PLAN_BYTES:
                self._asked[key] = asked
        return asked

    @asynccontextmanager
    async def _recording(self, texts: Texts) -> AsyncIterator[AuditHandle | None]:
        """The audit log, once it has room for these items; None if there is none."""
        if self._audit is None:
            yield None
            return
        size = sum(map(len, texts.prompts)) + sum(map(len, texts.completions)) + _RESULT_BYTES * len(texts.prompts)
        async with self._audit.room(size):
            yield self._audit

    async def explain(
        self, caller: Caller, run_id: str | None, item_id: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """What was decided of an item, newest first; with keys, only what this caller asked for.

        Args:
            caller: Who asks now.
            run_id: None: requests that named no run.
            item_id: None: all items.
            limit: Most decisions.

        Raises:
            NoAuditError: The service keeps no log.
            AuditError: What is decided does not get into the log in time, or it cannot be read.
        """
        if self._audit is None or self.settings.audit is None:
            raise NoAuditError("this service keeps no audit log; its setting `audit` turns it on")
        await self._audit.flush(self.settings.audit.room_timeout_s)
        return await asyncio.to_thread(
            _explain, self.settings.audit, run_id, item_id, None if self._keys is None else caller.name, limit
        )

    async def metrics_text(self) -> bytes:
        """The metrics of all processes."""
        own = self.metrics.text()
        return own if self._siblings is None else add_up([own, *await self._siblings.texts()])

    def encode(self, scored: Scored) -> bytes:
        """The answer of POST /v1/score."""
        versions = {planned.reward.name: planned.reward.version for planned in scored.plan}
        service = msgspec.json.encode(ServiceInfo(self.version, versions))
        return b'{"results":[%b],"service":%b}' % (b",".join([item.result for item in scored.results]), service)

    def _audit_bytes(self) -> int:
        return 0 if self._audit is None else self._audit.bytes_in_flight


def _preloaded(settings: ServiceSettings, rewards: Mapping[str, Reward]) -> list[str]:
    """Modules that all workers have from their start."""
    named = settings.rewards is not None
    return sorted({m for reward in rewards.values() for m in (*reward.preload, *(reward.on_demand if named else ()))})


def _with_unreadable(
    specs: Sequence[RewardSpec], items: Sequence[ScoreItem], results: Sequence[ScoredItem]
) -> list[ScoredItem]:
    """The results with those of items that could not be read in their places."""
    sound = iter(results)
    return [
        unscored_item(item.id, {spec.name: unscored(Reason.UNREADABLE_ITEM, item.problem) for spec in specs})
        if isinstance(item, UnreadableItem)
        else next(sound)
        for item in items
    ]


def _audit_batch(
    scored: Scored, texts: Texts, caller: Caller, run_id: str | None, policy_version: int | None
) -> AuditBatch:
    return AuditBatch(
        time_us=time.time_ns() // 1000,
        caller=caller.name,
        run_id=run_id,
        policy_version=policy_version,
        rewards=tuple(AppliedReward(p.reward.name, p.weight, p.reward.version) for p in scored.plan),
        ids=[item.id for item in scored.items],
        groups=[item.group for item in scored.items],
        prompts=texts.prompts,
        completions=texts.completions,
        results=[item.result for item in scored.results],
    )


def _explain(
    settings: AuditSettings, run_id: str | None, item_id: str | None, caller: str | None, limit: int
) -> list[dict[str, Any]]:
    try:
        with closing(AuditStore(settings.database, busy_timeout_s=settings.busy_timeout_s)) as store:
            return [describe(one) for one in store.explain(run_id, item_id, caller=caller, limit=limit)]
    except AuditError as error:
        raise AuditUnavailableError(str(error)) from None
