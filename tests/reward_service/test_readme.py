"""The room's README: its table of rewards, and its example of a reward of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reward_service.commands import describe_rewards, score_one
from reward_service.judging.settings import JudgeSettings
from reward_service.settings import CustomRewardSpec, ServiceSettings
from reward_service.types import ReferenceKeys, RewardItem, RewardSpec

README = (Path(__file__).parents[2] / "reward_service" / "README.md").read_text()
ROWS = {
    name: row
    for row in re.findall(r"^\| `.*\|$", README, re.MULTILINE)
    for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1].partition("(")[0])
}


def test_the_table_has_every_reward_with_its_keys_and_range() -> None:
    rewards = describe_rewards(ServiceSettings(judge=JudgeSettings(base_url="http://127.0.0.1:9/v1", model="m")))
    assert ROWS.keys() == rewards.keys()
    for name, reward in rewards.items():
        _, _, keys, bounds, _ = ROWS[name].split("|")
        assert {float(number) for number in re.findall(r"-?[\d.]+", bounds)} == {reward.low, reward.high}, name
        assert reward.reference is not None
        for key in (*reward.reference.required, *reward.reference.any_of, *reward.reference.optional):
            assert f"`{key}`" in keys, (name, key)


def test_the_example_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine_of_the_readme.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ServiceSettings(custom_rewards=(CustomRewardSpec(name="shout", target="mine_of_the_readme:shout"),))
    assert describe_rewards(settings)["shout"].reference == ReferenceKeys(required=("word",))
    item = RewardItem(completion="HELLO!", reference={"word": "hello"})
    assert score_one([RewardSpec(name="shout")], item, settings).total == 1.0
