"""TRL's adapter: against the real service, and in the real GRPOTrainer."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch

from reward_service.audit.settings import AuditSettings
from reward_service.child import RunningService, start_in_subprocess
from reward_service.clients.errors import RequestRefusedError, RewardServiceUnavailable
from reward_service.clients.trl import AsyncRemoteReward, RemoteReward, gsm8k_answer
from reward_service.custom import CustomRewardSpec
from reward_service.keys import add_key
from reward_service.settings import ServiceSettings
from reward_service.types import RewardSpec
from tests.reward_service.clients.client_rewards import distance

GOOD = "48 + 24 = 72\n#### The final answer is 72"
GSM8K = {"final_answer": gsm8k_answer}
DISTANCE = CustomRewardSpec(
    name="distance", target="tests.reward_service.clients.client_rewards:distance", low=-9, high=0
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(
        port=0,
        num_workers=1,
        rewards=("gsm8k_format", "gsm8k_correctness", "last_number", "length", "distance"),
        custom_rewards=(DISTANCE,),
        max_body_bytes=16384,
        audit=AuditSettings(database=f"sqlite:///{folder}/audit.db"),
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield running


def recorded(service: RunningService, run_id: str, item_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/v1/audit", params={"run_id": run_id, "id": item_id}, trust_env=False).json()
    (record,) = answer["records"]
    assert isinstance(record, dict)
    return record


def test_as_trl_calls_it(service: RunningService) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness", reference=GSM8K, run_id="as-trl")
    metrics: dict[str, float] = {}
    scores = reward(
        prompts=["q"] * 3,
        completions=[GOOD, "no idea", GOOD],
        completion_ids=[[1], [2], [3]],
        answer=["48 + 24 = 72 #### 72", "#### 72", "#### nobody knows"],
        trainer_state=SimpleNamespace(global_step=7),
        log_extra=lambda name, values: None,
        log_metric=metrics.__setitem__,
        environments=None,
    )
    assert scores == [1.0, 0.0, None]
    assert reward.__name__ == "gsm8k_correctness"
    assert metrics == {"gsm8k_correctness/unscored": pytest.approx(1 / 3)}
    assert recorded(service, "as-trl", "7/0")["policy_version"] == 7


def test_every_column_but_trls_own_is_the_reference(service: RunningService) -> None:
    reward = RemoteReward(service.url, "distance", name="shaping", weight=2.0)
    scores = reward(prompts=["q", "q"], completions=["four", "four"], completion_ids=[[1], [1]], length=[4, 104])
    assert scores == [0.0, -0.2]
    assert reward.__name__ == "shaping"


def test_chat_messages(service: RunningService) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness", reference={"final_answer": "solution"})
    prompt = [{"role": "user", "content": "How many?"}]
    completions = [
        [{"role": "assistant", "content": GOOD}],
        [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}],
        [
            {"role": "assistant", "content": None, "tool_calls": [{}]},
            {"role": "tool", "content": "#### The final answer is 99"},
            {"role": "assistant", "content": GOOD},
        ],
        [{"role": "assistant", "content": "#### The final answer is 99"}, {"role": "assistant", "content": GOOD}],
    ]
    assert reward([prompt] * 4, completions, solution=["72"] * 4) == [1.0, 1.0, 1.0, 0.0]
    blocks = [{"type": "reasoning", "text": "#### The final answer is 99"}, GOOD, {"type": "text", "text": None}]
    odd: list[Any] = [
        [{"role": "assistant", "content": blocks}],
        [{"role": "Assistant", "content": {"type": "text", "text": GOOD}}],
        np.array([{"role": "model", "content": GOOD}], dtype=object),
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "reasoning_content": "cut off"}],
        [],
    ]
    assert reward([None] * 6, odd, solution=["72"] * 6) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    for unread in (None, [GOOD], [{"from": "gpt", "value": GOOD}], [{"role": "gpt", "content": GOOD}], GOOD.encode()):
        with pytest.raises(ValueError, match=r"`role`.*`content`"):
            reward(["q"], [unread], solution=["72"])


def test_columns_as_tables_have_them(service: RunningService) -> None:
    """Arrays, tensors, a table's columns whose rows have other numbers; one row that has no answer costs that alone."""
    reward = RemoteReward(service.url, "last_number", reference={"final_answer": "answer"})
    table = pd.DataFrame({"answer": ["72", "so #### 73"], "text": [GOOD, GOOD]}, index=[7, 3])
    columns = (table["answer"], np.array([72, 73]), torch.tensor([72, 73]), np.array([["72"], ["73"]], dtype=object))
    for column in columns:
        assert reward(table["text"], table["text"], answer=column) == [1.0, 0.0]
    answers = [72, None, "", "####", math.nan, pd.NA, "72\ud800", b"72", '{"final_answer": 72}']
    assert reward(["q"] * 9, [GOOD] * 9, answer=answers) == [1.0, *[None] * 6, 1.0, 1.0]
    assert reward(["q"] * 2, [GOOD + "\ud800", GOOD], answer=[72, 72]) == [None, 1.0]


def test_params(service: RunningService) -> None:
    reward = RemoteReward(service.url, "length", params={"max_length": 10, "cache": 10})
    assert reward(["q"] * 2, ["", "x" * 10]) == [0.0, -1.0]
    with pytest.raises(RequestRefusedError, match="max_len: Extra"):
        RemoteReward(service.url, "length", params={"max_len": 10})(["q"], ["x"])


def test_many_are_sent_in_parts(service: RunningService) -> None:
    reward = RemoteReward(service.url, "last_number", max_items=7, max_concurrency=2)
    scores = reward(["q"] * 100, [f"it is {n}" for n in range(100)], final_answer=[n - n % 2 for n in range(100)])
    assert scores == [float(n % 2 == 0) for n in range(100)]
    assert reward([], []) == []


def test_what_is_too_large_for_one_request_is_sent_in_halves(service: RunningService) -> None:
    reward = RemoteReward(service.url, "last_number")
    texts = [f"{'so ' * 1000}it is {n}" for n in range(16)]  # 48 kB, of which the service takes 16
    assert reward(["q"] * 16, texts, final_answer=list(range(16))) == [1.0] * 16
    with pytest.raises(RequestRefusedError, match="body_too_large"):
        reward(["q"] * 2, ["x" * 20_000, "x"], final_answer=[1, 1])


def test_why_nothing_is_scored_is_said_once(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert reward(["q"] * 2, [GOOD, GOOD], final_answer=["?", "?"]) == [None, None]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("gsm8k_correctness: 2 of 2 completions have no score")
    assert "invalid_reference (final_answer '?' is not a finite number)" in told


def test_no_reference_at_all_is_an_error(service: RunningService) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness")
    with pytest.raises(ValueError, match=r'reads "final_answer" of a reference, and the references have nothing;'):
        reward(["q"], [GOOD])
    with pytest.raises(ValueError, match=r"references have answer; .* by reference=\{\.\.\.\}: there are answer"):
        reward(["q"], [GOOD], answer=["72"])
    assert RemoteReward(service.url, "gsm8k_format")(["q"], [GOOD]) == [0.5]  # which reads none


def test_what_cannot_work_is_said_when_it_is_made(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"no reward 'gsm8k_corectness'; the service has distance, gsm8k_correctness"):
        RemoteReward(service.url, "gsm8k_corectness")
    with pytest.raises(
        ValueError, match=r'reads "final_answer" of a reference, and the references have question, answer'
    ):
        RemoteReward(service.url, "gsm8k_correctness", columns=["question", "answer"])
    with pytest.raises(ValueError, match=r'reads "final_answer" of a reference, and the references have answer'):
        RemoteReward(service.url, "gsm8k_correctness", reference={"answer": "answer"})
    with pytest.raises(ValueError, match=r"no column 'solution' for 'final_answer'; there are question, answer"):
        RemoteReward(
            service.url,
            "gsm8k_correctness",
            reference={"final_answer": "solution"},
            columns=["question", "answer"],
        )
    assert not caplog.records
    RemoteReward("http://127.0.0.1:9", "anything")
    assert "http://127.0.0.1:9: its rewards and their keys are not checked yet" in caplog.text


def test_a_key_that_is_none_is_said_when_it_is_made(tmp_path: Path) -> None:
    _, key = add_key(tmp_path / "keys.json", "trainer")
    settings = ServiceSettings(port=0, num_workers=1, rewards=("gsm8k_format",), keys_file=tmp_path / "keys.json")
    with start_in_subprocess(settings, log_path=tmp_path / "log") as running:
        assert RemoteReward(running.url, "gsm8k_format", api_key=key)(["q"], [GOOD]) == [0.5]
        for url, api_key in ((running.url, "wrong-key"), (running.url.replace("//", "//any:wrong-key@"), None)):
            with pytest.raises(RequestRefusedError, match="unauthorized") as caught:
                RemoteReward(url, "gsm8k_format", api_key=api_key)
            assert "wrong-key" not in str(caught.value)


BOTH = [RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness", weight=2.0)]


def test_several_rewards_in_one_request(service: RunningService) -> None:
    reward = RemoteReward(service.url, BOTH, reference={"final_answer": "answer"}, run_id="several")
    metrics: dict[str, float] = {}
    answers = ["so #### 72", "#### 71", "#### nobody knows"]
    assert reward(["q"] * 3, [GOOD] * 3, answer=answers, log_metric=metrics.__setitem__) == [2.5, 0.5, None]
    assert reward.__name__ == "gsm8k_format+gsm8k_correctness"
    name = reward.__name__
    assert metrics == {f"{name}/unscored": 1 / 3, f"{name}/gsm8k_format": 0.5, f"{name}/gsm8k_correctness": 0.5}
    assert recorded(service, "several", "0")["rewards"].keys() == {"gsm8k_format", "gsm8k_correctness"}
    with pytest.raises(ValueError, match="in RewardSpecs of their own"):
        RemoteReward(service.url, ["gsm8k_format", "gsm8k_correctness"], weight=2.0)


async def test_awaited(service: RunningService) -> None:
    reward = AsyncRemoteReward(service.url, BOTH, reference={"final_answer": "answer"})
    calls = [reward(["q"], [GOOD], answer=[answer]) for answer in ("72", "#### 71", "48 + 24\n#### 72")]
    assert await asyncio.gather(*calls) == [[2.5], [0.5], [2.5]]
    assert inspect.iscoroutinefunction(reward.__call__)  # by which TRL tells
    again = pickle.loads(pickle.dumps(reward))
    assert await again(["q"], [GOOD], answer=["72"]) == [2.5]


def test_columns_that_do_not_fit(service: RunningService) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness", reference={"final_answer": "solution"})
    with pytest.raises(ValueError, match=r"no column 'solution' for 'final_answer'; there are answer, level"):
        reward(["q"], [GOOD], answer=["72"], level=[3])
    with pytest.raises(ValueError, match="'solution' has 2 entries for 1"):
        reward(["q"], [GOOD], solution=["72", "73"])
    with pytest.raises(ValueError, match="cannot be put into JSON"):
        reward(["q"], [GOOD], solution=[object()])


def test_pictures_stay_here(service: RunningService) -> None:
    assert RemoteReward(service.url, "distance")(
        ["q"], ["four"], image=[object()], images=[[object()]], length=[4]
    ) == [0]


def test_a_service_that_is_down_is_no_zero() -> None:
    reward = RemoteReward("http://anyone:secret@127.0.0.1:9", "gsm8k_correctness", deadline_s=0.3)
    with pytest.raises(RewardServiceUnavailable, match=r"http://127\.0\.0\.1:9: no usable answer") as caught:
        reward(["q"], [GOOD], final_answer=["72"])
    assert "secret" not in str(caught.value) + repr(reward)


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="reward service url"):
        RemoteReward("rewards:8300", "gsm8k_correctness")
    with pytest.raises(ValueError, match=r"ca_file '/nowhere\.pem'"):
        RemoteReward("https://rewards:8300", "gsm8k_correctness", ca_file="/nowhere.pem")


def in_child(reward: RemoteReward, answers: Any) -> None:
    answers.put([reward(["q"], [GOOD], final_answer=["72"]) for _ in range(3)])


def test_threads_forks_and_pickles(service: RunningService) -> None:
    reward = RemoteReward(service.url, "gsm8k_correctness", api_key="not needed")

    def score() -> list[float | None]:
        return reward(["q"], [GOOD], final_answer=["72"])

    assert score() == [1.0]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=in_child, args=(reward, answers)) for _ in range(2)]
    for child in children:
        child.start()
    found: list[list[float | None]] = []
    threads = [threading.Thread(target=lambda: found.append(score())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert [answers.get(timeout=20) for _ in children] == [[[1.0]] * 3] * 2
    for ended in [*children, *threads]:
        ended.join(20)
    assert found == [[1.0]] * 8
    assert score() == [1.0]  # the children have not taken the parent's connection down

    state = pickle.dumps(reward)
    assert b"socket" not in state
    assert pickle.loads(state)(["q"], [GOOD], final_answer=["72"]) == [1.0]


def test_a_process_that_used_it_ends_without_a_word(service: RunningService) -> None:
    program = (
        "import sys; from reward_service.clients.trl import RemoteReward\n"
        "reward = RemoteReward(sys.argv[1], 'gsm8k_correctness')\n"
        "print(reward(['q'], ['x'], final_answer=['72']))\n"
    )
    command = [sys.executable, "-X", "dev", "-c", program, service.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    # asyncio's debug mode also tells of steps that took 100 ms, which a busy machine brings about
    said = [line for line in ended.stderr.splitlines() if not line.startswith("Executing <")]
    assert (ended.stdout, said) == ("[0.0]\n", [])


@pytest.mark.parametrize("module", ["trl", "verl", "asynchronous"])
def test_no_trainer_is_needed(module: str) -> None:
    program = (
        "import sys\n"
        "for name in ('trl', 'verl', 'torch', 'transformers', 'datasets', 'ray', 'requests', 'aiohttp', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        f"import reward_service.clients.{module}\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert not {"fastapi", "uvicorn", "pydantic", "sqlalchemy", "sympy"} & set(loaded.stdout.split())


class Recorder(RemoteReward):
    """Remembers what TRL asked and was answered."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.calls: list[tuple[dict[str, Any], list[float | None]]] = []

    def __call__(self, *arguments: Any, **columns: Any) -> list[float | None]:
        scores = super().__call__(*arguments, **columns)
        self.calls.append((columns, scores))
        return scores


class AsyncRecorder(AsyncRemoteReward):
    """The same of one that is awaited."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.calls: list[tuple[dict[str, Any], list[float | None]]] = []

    async def __call__(self, *arguments: Any, **columns: Any) -> list[float | None]:
        scores = await super().__call__(*arguments, **columns)
        self.calls.append((columns, scores))
        return scores


@pytest.fixture
def launched_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of another test may be open in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("launched_by_nobody")
@pytest.mark.parametrize(("kind", "recorder"), [("text", Recorder), ("chat", AsyncRecorder)])
def test_the_real_trainer(
    service: RunningService, kind: str, recorder: type[Recorder | AsyncRecorder], tmp_path: Path
) -> None:
    """Four steps of `GRPOTrainer` on a tiny random model, whose words are numbers."""
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tests.learner.loss.trl_reference import import_trl
    from tests.models import VOCABULARY, random_model

    trl = import_trl()
    words = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    prompts: list[Any] = [f"{number} 7" for number in range(8)]
    if kind == "chat":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = [
        {"prompt": prompt, "length": 5 * index, "answer": "?" if index == 0 else f"so #### {index}"}
        for index, prompt in enumerate(prompts)
    ]
    run_id = f"trainer-{kind}"
    rewards = [
        recorder(service.url, "distance", run_id=run_id),
        recorder(service.url, "last_number", reference=GSM8K),
    ]
    trainer = trl.GRPOTrainer(
        str(random_model("llama")),
        list(rewards),
        trl.GRPOConfig(
            output_dir=str(tmp_path / "out"),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            max_completion_length=6,
            num_generations=4,
            per_device_train_batch_size=8,
            max_steps=4,
            logging_steps=1,
            seed=3,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    # What the service said is what the reward says here of the same texts and columns ...
    for columns, scores in rewards[0].calls:
        texts = [text if kind == "text" else text[0]["content"] for text in columns["completions"]]
        wanted = [{"length": length} for length in columns["length"]]
        assert scores == pytest.approx([distance(*pair, None) for pair in zip(texts, wanted, strict=True)])
        assert len(set(scores)) > 1
    for columns, scores in rewards[1].calls:
        assert [score is None for score in scores] == [answer == "?" for answer in columns["answer"]]
    # ... and what TRL has logged: means over what was scored of every step, the numbers themselves of the last one.
    history = [entry for entry in trainer.state.log_history if "rewards/distance/mean" in entry]
    for reward in rewards:
        name = reward.__name__
        scored = [[score for score in scores if score is not None] for _, scores in reward.calls]
        assert [entry[f"rewards/{name}/mean"] for entry in history] == pytest.approx([sum(s) / len(s) for s in scored])
        last = [math.nan if score is None else score for score in reward.calls[-1][1]]
        assert list(trainer._logs["rewards"][name]) == pytest.approx(last, nan_ok=True)
    assert sorted(entry["last_number/unscored"] for entry in history) == [0, 0, 0, 0.5]
    assert recorded(service, run_id, "3/7")["policy_version"] == 3
