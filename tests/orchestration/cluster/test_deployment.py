"""Where a run's own reward service goes, what it is told, and what the run hears when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestration.cluster.reward.actor import ClusterNode, RewardServiceActor, ServiceEndpoint, ServiceOrder
from orchestration.cluster.reward.deployment import (
    preferred_node,
    reward_client,
    start_on,
)
from orchestration.errors import ConfigError, MachineError, RemoteTimeoutError
from orchestration.run.rewards import service_settings
from orchestration.settings.config import RunConfig, dump_config, load_config
from orchestration.settings.rewards import ActorDeployment, RewardConfig
from orchestration.settings.rewards import RewardSpec as OwnReward
from reward_service.clients.asynchronous import RewardClient
from reward_service.errors import ServiceStartError
from reward_service.types import RewardItem, RewardSpec
from tests.waiting import until_async

ITEM = RewardItem(id="0", completion="#### The final answer is 72", reference={"final_answer": "72"})
PAIR = (RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness"))


def node(name: str, **resources: float) -> ClusterNode:
    return ClusterNode(node_id=name, address=f"10.0.0.{len(name)}", resources=resources)


class TestSettings:
    def test_a_word_is_the_kind_and_more_can_be_added(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("reward: {deployment: actor}")
        for source, words in (("tiny", ["reward.deployment=actor"]), (str(recipe), [])):
            config = load_config(
                source, [*words, "reward.deployment.num_cpus=2", "reward.deployment.resources.reward=1"]
            )
            assert config.reward.deployment == ActorDeployment(num_cpus=2, resources={"reward": 1})
            saved = tmp_path / "config.yaml"
            saved.write_text(dump_config(config))
            assert load_config(str(saved)).reward == config.reward
        assert load_config("tiny").reward.deployment.kind == "local"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["reward.deployment=pod"], "'pod'"),
            (["reward.batch_window_s=120"], "reward.batch_window_s=120 must be below reward.deadline_s=120"),
            (["reward.deployment=local", "reward.deployment.num_cpus=2"], "of another kind of 'reward.deployment'"),
            (["reward.deployment=actor", "reward.deployment.resources.GPU=1"], "resource GPU is Ray's own"),
            (["reward.deployment=actor", "reward.deployment.num_cpus=0"], "greater than 0"),
            (["reward.deployment=actor", "reward.url=http://h:1"], "leave it out, or reward.url"),
            (["reward.settings_file=s.yaml", "reward.url=http://h:1"], "leave it out, or reward.url"),
        ],
    )
    def test_what_is_wrong_is_named(self, words: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_config("tiny", words)

    def test_only_the_rewards_of_the_run_are_served(self) -> None:
        config = RunConfig.model_validate({"reward": {"rewards": [{"name": "length"}, {"name": "gsm8k_correctness"}]}})
        assert service_settings(config) == {"rewards": ("length", "gsm8k_correctness", "last_number")}

    def test_a_file_says_the_rest(self, tmp_path: Path) -> None:
        file = tmp_path / "settings.yaml"
        file.write_text(
            "{host: 0.0.0.0, port: 1, keys_file: k, rewards: [exact], num_workers: 3, sandbox: {wall_s: 2}}"
        )
        settings = service_settings(RunConfig(reward=RewardConfig(settings_file=file)))
        assert settings == {
            "rewards": ("gsm8k_format", "gsm8k_correctness", "last_number"),
            "num_workers": 3,
            "sandbox": {"wall_s": 2.0},
        }

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("-", None, "standard input"),
            ("absent.yaml", None, "absent.yaml"),
            ("s.yaml", "worker: 1", "worker"),
            ("s.yaml", "[1]", "not a table"),
        ],
    )
    def test_a_wrong_file_is_named(self, tmp_path: Path, name: str, text: str | None, message: str) -> None:
        file = Path(name) if name == "-" else tmp_path / name
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=message) as raised:
            service_settings(RunConfig(reward=RewardConfig(settings_file=file)))
        assert "reward.settings_file" in str(raised.value)


class TestNode:
    @pytest.mark.parametrize(
        ("nodes", "wanted", "chosen"),
        [
            ([node("gpu", CPU=64, GPU=8), node("cpu", CPU=8)], {}, "cpu"),
            ([node("small", CPU=2), node("large", CPU=8), node("gpu", CPU=64, GPU=8)], {}, "large"),
            ([node("full", CPU=0.5), node("gpu", CPU=64, GPU=8)], {}, None),
            ([node("gpu", CPU=64, GPU=8)], {}, None),
            ([node("cpu", CPU=8), node("mine", CPU=2, reward=1)], {"resources": {"reward": 1}}, "mine"),
            ([node("cpu", CPU=8), node("mine", CPU=2, GPU=1, reward=1)], {"resources": {"reward": 1}}, None),
            ([node("b", CPU=4), node("a", CPU=4)], {"num_cpus": 4}, "a"),
        ],
    )
    def test_one_without_gpus_where_there_is_one(
        self, nodes: list[ClusterNode], wanted: Mapping[str, Any], chosen: str | None
    ) -> None:
        found = preferred_node(nodes, ActorDeployment(**wanted))
        assert (found and found.node_id) == chosen

    def test_what_no_node_has_is_said(self) -> None:
        with pytest.raises(
            MachineError, match=r"a node with 1 CPU, 1 reward, and the cluster has 10\.0\.0\.3: 8 CPU, 0"
        ):
            preferred_node([node("cpu", CPU=8)], ActorDeployment(resources={"reward": 1}))


class FakeRemote:
    """Answers by method, in turn; exceptions are raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.where = "not started yet"
        self._answers = answers
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def call(self, method: Callable[..., Any], *, timeout_s: float) -> Callable[..., Coroutine[Any, Any, Any]]:
        assert timeout_s > 0

        async def called(*args: Any) -> Any:
            self.calls.append((method.__name__, args))
            answer = self._answers[method.__name__].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return called


class TestTheDriver:
    async def test_it_starts_the_service_where_the_actor_is(self, tmp_path: Path) -> None:
        endpoint = ServiceEndpoint(url="http://10.0.0.7:1", api_key="rlvr_secret")
        remote = FakeRemote(where=["node 10.0.0.7"], start=[endpoint])
        config = RewardConfig(deployment=ActorDeployment(num_cpus=2.5))
        assert await start_on(remote, RunConfig(reward=config), driver_node_id="d", log_folder=tmp_path) == endpoint
        assert remote.where == "node 10.0.0.7"
        ((_, _), (_, (order,))) = remote.calls
        assert (order.num_cpus, order.driver_node_id, order.log_folder) == (2.5, "d", str(tmp_path))
        assert "secret" not in repr(endpoint)

    async def test_no_room_is_said_in_time(self, tmp_path: Path) -> None:
        remote = FakeRemote(where=[RemoteTimeoutError("reward-0 did not answer")])
        config = RewardConfig(deployment=ActorDeployment(resources={"reward": 1}))
        with pytest.raises(MachineError, match="no node had 1 CPU, 1 reward free for the reward service within"):
            await start_on(remote, RunConfig(reward=config), driver_node_id="d", log_folder=tmp_path)


class ActorHere:
    """The real actor class in this process, called as Ray would call it."""

    def __init__(self, node_id: str = "here") -> None:
        here = ClusterNode(node_id=node_id, address="127.0.0.1")
        self.actor = RewardServiceActor("reward-0", lambda: here)
        self.where = self.actor.where()

    def call(self, method: Callable[..., Any], *, timeout_s: float) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def called(*args: Any) -> Any:
            return await asyncio.wait_for(asyncio.to_thread(method, self.actor, *args), timeout_s)

        return called

    @property
    def pid(self) -> int:
        assert self.actor._service is not None
        return self.actor._service.process.pid


def order(folder: Path, **settings: Any) -> ServiceOrder:
    return ServiceOrder(
        settings={"rewards": ("gsm8k_format", "gsm8k_correctness", "last_number"), **settings},
        num_cpus=0.5,
        driver_node_id="here",
        log_folder=str(folder),
        start_timeout_s=60.0,
    )


class TestTheActor:
    async def test_it_serves_whoever_has_the_key_and_says_when_its_service_ended(self, tmp_path: Path) -> None:
        remote = ActorHere()
        endpoint = await remote.call(RewardServiceActor.start, timeout_s=60)(order(tmp_path))
        try:
            async with RewardClient(endpoint.url, api_key=endpoint.api_key) as client:
                (result,) = await client.score([ITEM], PAIR)
                assert result.total == 1.5
            async with httpx.AsyncClient(trust_env=False) as stranger:
                assert (await stranger.post(f"{endpoint.url}/v1/score", json={})).status_code == 401
            os.kill(remote.pid, signal.SIGKILL)
            reason = await remote.call(RewardServiceActor.watch, timeout_s=60)(60.0)
            assert reason is not None
            assert reason.startswith("exit code -9")
            assert remote.actor._folder is not None
            at_rest = [p.read_text() for p in (*tmp_path.rglob("*"), *remote.actor._folder.rglob("*")) if p.is_file()]
            assert len(at_rest) == 3  # the log, the keys and their lock
            secret = endpoint.api_key.split("_", 2)[2]  # which may hold underscores itself
            assert not any(secret in text for text in at_rest)
        finally:
            remote.actor.shutdown()
        assert not remote.actor._folder.exists()

    async def test_on_another_node_its_log_is_the_actors_output(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        remote = ActorHere("elsewhere")
        await remote.call(RewardServiceActor.start, timeout_s=60)(order(tmp_path))
        watch = asyncio.create_task(remote.call(RewardServiceActor.watch, timeout_s=60)(60.0))
        said: list[str] = []

        def has_announced_itself() -> bool:
            said.append(capsys.readouterr().out)
            return "reward service at" in "".join(said)

        await until_async(has_announced_itself)
        remote.actor.shutdown()
        assert await watch is None  # it was asked to end
        output = "".join(said) + capsys.readouterr().out
        assert output.count("reward service at http://127.0.0.1") == 1
        assert "Finished server process" in output
        assert list(tmp_path.iterdir()) == []

    def test_what_it_cannot_start_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ServiceStartError, match=r"did not start on node 127\.0\.0\.1.*there is no 'gsm9k'"):
            ActorHere().actor.start(order(tmp_path, rewards=("gsm9k",)))
        with pytest.raises(ServiceStartError, match=r"did not start on node 127\.0\.0\.1.*max_workers=1 is less"):
            ActorHere().actor.start(order(tmp_path, num_workers=2, max_workers=1))


async def test_the_local_service_has_the_runs_rewards_and_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("custom_rewards: [{name: mine, target: 'tests.reward_service.clients.client_rewards:distance'}]")
    config = RewardConfig(settings_file=file, rewards=(OwnReward(name="mine"),), batch_window_s=0.2, batch_items=3)
    async with reward_client(RunConfig(reward=config), tmp_path / "logs") as keeper:
        assert await served(keeper.client) == {"mine", "gsm8k_correctness", "last_number"}
        await asyncio.gather(*(keeper.client.score([ITEM], PAIR[1:]) for _ in range(4)))
        text = (await keeper.client._http.get(f"{keeper.client._url}/metrics")).text
        assert 'reward_requests_total{endpoint="/v1/score",status="200"} 2.0' in text, text  # of three, and the fourth


async def served(client: RewardClient) -> set[str]:
    answer = await client._http.get(f"{client._url}/v1/rewards")
    return {reward["name"] for reward in answer.json()["rewards"]}
