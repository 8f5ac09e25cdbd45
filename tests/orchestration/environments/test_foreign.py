"""Other people's environments, played by hand; `tests/orchestration/cluster/test_environments.py` learns from them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.environments.environment import Step, Surroundings
from orchestration.environments.foreign.verifiers import as_answer, text_of
from orchestration.environments.tools.calls import Call
from orchestration.errors import ConfigError
from orchestration.settings.config import load_config
from orchestration.types import Problem
from tests.orchestration.environments.packages import openenv_server, use_gymnasium
from tests.waiting import until

TRL = "data=trl:tests.orchestration.environments.trl_world:Counter"


def seeded(seed: int) -> Problem:
    return Problem(problem_id=str(seed), question="Go.", reference={"seed": seed})


async def test_trls_methods_are_tools_and_its_reward_is_asked_once_at_the_end(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "Count {n}.", "wanted": {n}}}\n' for n in range(30)))
    task = load_config("guess", [TRL, f"data.train_file={rows}", "data.num_train=5", "data.num_eval=5"]).data
    assert [schema["function"]["name"] for schema in task.tool_schemas()] == ["add"]
    problem = next(one for one in task.load().train if one.reference["wanted"] > 1)
    wanted = problem.reference["wanted"]
    world = task.environment()
    assert world is not None
    world.enter(Surroundings(max_turns=3))  # type: ignore[attr-defined]
    assert await world.reset(problem) == f"Bring it to {wanted}."
    first = await world.step('```add\n{"by": 1}\n```')
    assert (first.reward, first.observation[0]["content"]) == (None, "It is 1.")  # type: ignore[index]
    second = await world.step(f'```add\n{{"by": {wanted - 1}}}\n```')
    assert not second.done
    assert await world.step("Done.") == Step(reward=1.0, done=True)
    cut = task.environment()
    assert cut is not None
    cut.enter(Surroundings(max_turns=1))  # type: ignore[attr-defined]
    await cut.reset(problem)
    assert (await cut.step(f'```add\n{{"by": {wanted}}}\n```')).reward == 1.0  # its last turn


async def test_a_text_world_and_a_discrete_one_of_gymnasiums() -> None:
    use_gymnasium()
    name = "tests.orchestration.environments.gymnasium_world:Repeat-v0"
    world = load_config("guess", [f"data=gymnasium:{name}"]).data.environment()
    assert world is not None
    shown = await world.reset(seeded(1))
    word = str(shown).removeprefix("Say ").rstrip(".")
    assert word in ("cat", "dog")
    assert await world.reset(seeded(1)) == shown
    assert "An action is a text of Text(" in str((await world.step("CAT!")).observation)
    assert await world.step("bird") == Step("Again.", reward=0.0)
    assert await world.step(f" {word}\n") == Step(reward=1.0, done=True)
    cliff = load_config(
        "guess", ["data=gymnasium:CliffWalking-v1", "data.options={render_mode: ansi}"]
    ).data.environment()
    assert cliff is not None
    assert "x" in str(await cliff.reset(seeded(3)))
    assert (await cliff.step("I go 7")).observation == "An action is a number from 0 to 3."
    assert (await cliff.step("I go 0")).reward == -1.0
    with pytest.raises(ConfigError, match=r"data\.environment_id='NoSuch-v0' with data\.options=\{\} cannot be made"):
        load_config("guess", ["data=gymnasium:NoSuch-v0"]).data.load()
    with pytest.raises(ConfigError, match=r"actions of Box\(.* name one with Text or Discrete actions"):
        load_config("guess", ["data=gymnasium:Pendulum-v1"]).data.load()


async def test_an_openenv_servers_refusals_are_told_and_its_failures_are_the_episodes(tmp_path: Path) -> None:
    with openenv_server(tmp_path / "server.log") as url:
        task = load_config("guess", [f"data=openenv:{url}", "data.observation_field=text"]).data
        assert task.load().train
        for wrong, said in (("action_field=move", "the actions of .* have .*message"), ("observation_field=x", "text")):
            with pytest.raises(ConfigError, match=said):
                load_config("guess", [f"data=openenv:{url}", f"data.{wrong}"]).data.load()
        task = load_config("guess", [f"data=openenv:{url}"]).data
        world = task.environment()
        assert world is not None
        assert await world.reset(seeded(4)) == '{"text": "Seed 4."}'
        refused = await world.step("a" * 401)
        assert "at most 400 characters" in str(refused.observation)
        assert (await world.step("abc")).reward == 0.25
        assert (await world.step("")).done
        await world.close()
        worlds = [task.environment() for _ in range(20)]  # the server takes 16
        begun = await asyncio.gather(*(one.reset(seeded(1)) for one in worlds if one), return_exceptions=True)
        refused_ones = [str(one) for one in begun if isinstance(one, Exception)]
        assert len(refused_ones) == 4
        assert "at capacity: 16/16" in refused_ones[0]
        assert "episodes.max_concurrent" in refused_ones[0]
        for one in worlds:
            assert one is not None
            await one.close()
    other = task.environment()
    assert other is not None
    with pytest.raises(OSError, match="Connect call failed"):
        await other.reset(seeded(5))
    with pytest.raises(ConfigError, match=r"data\.url='http://.*no server of OpenEnv's answers .* start it"):
        task.load()
    with pytest.raises(
        ConfigError, match=r"data\.url='localhost' is no address; write http://HOST:PORT, or image:NAME"
    ):
        load_config("guess", ["data=openenv:localhost"]).data.load()


def test_an_openenv_image_is_served_as_long_as_the_process_that_plays_it() -> None:
    """`openenv_server.py` in an image of its package, on the port of its own images."""
    image = os.environ.get("RLVR_OPENENV_IMAGE")
    if image is None or shutil.which("docker") is None:
        pytest.skip("no docker, or RLVR_OPENENV_IMAGE names no image of openenv_server.py")
    script = """if 1:
        import asyncio, os, sys
        from orchestration.settings.config import load_config
        task = load_config("guess", [f"data=openenv:image:{sys.argv[1]}", "data.observation_field=text"]).data
        world, (problem,) = task.environment(), task.load().train[:1]
        print(asyncio.run(world.reset(problem)), flush=True)
        os.kill(os.getpid(), 9)
    """
    before = _containers_of(image)
    done = subprocess.run(
        [sys.executable, "-c", script, image], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("Seed "), done.stderr
    until(lambda: _containers_of(image) == before, timeout_s=60)
    with pytest.raises(ConfigError, match=r"no image that can be run here .*`docker pull no-such-image` gets one"):
        load_config("guess", ["data=openenv:image:no-such-image"]).data.load()


def _containers_of(image: str) -> str:
    asked = ["docker", "ps", "--quiet", "--filter", f"ancestor={image}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def test_an_openenv_image_needs_something_that_runs_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"data\.url='image:x': neither docker nor podman is here; install one, or"):
        load_config("guess", ["data=openenv:image:x"]).data.load()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Counter", "data.factory='nowhere:Counter' does not load: ModuleNotFoundError"),
        ("Counter", "data.factory='Counter': write module:name"),
        ("tests.orchestration.environments.test_foreign:Wrong", "reset is called with nothing: missing a required"),
        ("tests.orchestration.environments.test_foreign:Unpaid", "get_reward is called with nothing: missing a req"),
    ],
)
def test_a_class_that_cannot_be_called_as_trl_calls_it_is_refused_at_the_start(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("guess", [f"data=trl:{name}"]).data.load()


class Wrong:
    def reset(self, level: int) -> None:
        """Wants a column that no row has."""


class Unpaid:
    def reset(self, **kwargs: object) -> None:
        """Takes any."""

    def get_reward(self, completions: list[str]) -> float:
        return 0.0


def test_a_turn_is_put_as_the_chat_protocol_has_it() -> None:
    assert as_answer("<think>2 + 3\n</think>\n5", [], 0) == {
        "role": "assistant",
        "content": "5",
        "reasoning_content": "2 + 3",
    }
    calls = [Call("add", {"a": 1}), Call(wrong="the tool call is not JSON")]
    said = as_answer("Both.", calls, 3)["tool_calls"]
    assert [(one["id"], *one["function"].values()) for one in said] == [
        ("call-3-0", "add", '{"a": 1}'),
        ("call-3-1", "unknown", "the tool call is not JSON"),
    ]
    assert text_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"
    with pytest.raises(ValueError, match="reads text alone"):
        text_of([{"type": "image_url", "image_url": {"url": "data:"}}])


def test_what_stands_behind_a_tasks_name_is_its_setting() -> None:
    data = load_config("tiny", ["data=reasoning_gym:countdown", "data.num_eval=3"]).data
    assert (data.kind, data.dataset, data.num_eval) == ("reasoning_gym", "countdown", 3)  # type: ignore[attr-defined]
