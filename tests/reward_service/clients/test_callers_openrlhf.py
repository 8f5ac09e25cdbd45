"""OpenRLHF as it is on PyPI, before and after its flag was renamed: its parser, its executor, its tensors."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from reward_service.api.protocols import DROPPED_SCORE
from reward_service.child import start_in_subprocess
from reward_service.keys import add_key
from reward_service.settings import ServiceSettings
from tests.reward_service.clients.callers.installed import installed, run_script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "flag"),
    [("0.9.10", "--remote_rm_url"), ("0.11.2", "--reward.remote_url")],
)
def test_openrlhf(version: str, flag: str, tmp_path: Path) -> None:
    """With a key in the URL; nothing is sent twice, and what cannot be scored is a number."""
    openrlhf = installed(f"openrlhf-{version}", f"openrlhf=={version}", "pylatexenc==2.11", "torchdata==0.11.0")
    _, key = add_key(tmp_path / "keys.json", "trainer")
    settings = ServiceSettings(
        port=0, num_workers=1, rewards=("gsm8k_format", "gsm8k_correctness"), keys_file=tmp_path / "keys.json"
    )
    with start_in_subprocess(settings, log_path=tmp_path / "log") as service:
        url = f"{service.url.replace('//', f'//any:{key}@')}/get_reward"
        found = run_script(openrlhf, "openrlhf_calls.py", url, flag)
        metrics = httpx.get(f"{service.url}/metrics", trust_env=False).text
    assert found["flag"] == url
    if version == "0.11.2":  # a group with an item that has no score is filtered out
        assert found["kept"] == ["scored"]
    outputs = found["outputs"]
    assert [output["reward"] for output in outputs] == [[1.5], [1.5], [1.5], [0.5], [0.0], [0.0], [0.0], [1.5]]
    dropped = [DROPPED_SCORE]
    third = pytest.approx([1 / 3])
    assert [output["scores"] for output in outputs] == [[1], [1], [1], third, [0], dropped, dropped, [1]]
    assert outputs[0]["extra_logs"] == {"gsm8k_format": [0.5], "gsm8k_correctness": [1.0]}
    assert 'reward_requests_total{endpoint="/get_reward",status="200"} 8.0' in metrics
    assert (tmp_path / "log").read_text().count("gsm8k: no score: gsm8k_correctness: invalid_reference") == 1
