"""The clients, for other people's trainers: httpx and msgspec are all that they may import."""

from __future__ import annotations

import subprocess
import sys

ALLOWED = ("httpx", "httpcore", "h11", "anyio", "sniffio", "idna", "certifi", "typing_extensions", "msgspec")

# Every other import of a library fails, as where it is not installed.
BLOCKER = f"""
import sys

class OnlyTheAllowed:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {ALLOWED} + ("reward_service",):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyTheAllowed())
"""

USE = """
import asyncio, httpx, msgspec
from reward_service.clients.asynchronous import RewardClient
from reward_service.clients.blocking import BlockingRewardClient, ClientSettings
from reward_service.clients.trl import RemoteReward, gsm8k_answer
from reward_service.clients.verl import make_compute_score
from reward_service.types import RewardItem, RewardSpec

def answer(request):
    items = msgspec.json.decode(request.content)["items"]
    score = {"score": 1.0, "reason": None, "details": {}}
    results = [{"id": item["id"], "total": 1.0, "rewards": {"math": score}} for item in items]
    return httpx.Response(200, content=msgspec.json.encode({"results": results}))

async def score():
    async with RewardClient("http://rewards", transport=httpx.MockTransport(answer)) as client:
        items = [RewardItem(completion="1", reference={"final_answer": "1"})]
        return await client.score(items, [RewardSpec(name="math")])

RemoteReward("http://rewards", "math", reference={"final_answer": gsm8k_answer})
make_compute_score("http://rewards", rewards={"*": ["math"]})
BlockingRewardClient(ClientSettings(url="http://rewards"))
(result,) = asyncio.run(score())
print(result.total)
"""

SERVE = """
from reward_service.commands import main
sys.exit(main(["serve", "--port", "0"]))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_clients_work_where_nothing_but_httpx_and_msgspec_is_installed() -> None:
    done = run(BLOCKER + USE)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


def test_the_service_does_not_start_there_and_names_the_extra() -> None:
    done = run(BLOCKER + SERVE)
    assert done.returncode == 1
    assert done.stderr.endswith("is not installed here; serving needs rlvr[service]\n")
    assert "Traceback" not in done.stderr


def test_the_command_line_does_not_start_there_and_names_the_extra() -> None:
    done = run(
        BLOCKER.replace('"reward_service",', '"reward_service", "orchestration"')
        + "from orchestration.__main__ import main\nsys.exit(main())"
    )
    assert done.returncode == 1
    assert "the command line needs rlvr[service]" in done.stderr
    assert "Traceback" not in done.stderr
