"""`rlvr reward …`: the reward service's own commands (see tests/reward_service/test_operator_commands.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

import reward_service.commands
from orchestration.cli import main
from reward_service.keys import KeyRing


def test_the_commands_of_the_reward_service_are_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["reward", "keys", "add", "alice", *file]) == 0
    assert KeyRing(tmp_path / "keys.json").check(f"Bearer {capsys.readouterr().out.strip()}").name == "alice"
    assert main(["reward", "keys", "revoke", "bob", *file]) == 1
    assert capsys.readouterr().err.startswith(f"rlvr: {file[1]} has no valid key 'bob'")


def test_a_service_that_cannot_start_is_said_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "serve", "--port", "0", "rewards=[nonesuch]"]) == 1
    assert capsys.readouterr().err.startswith("rlvr: rewards: there is no 'nonesuch'")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "--port", "99999999"], "port=99999999: Input should be less than or equal to 65535"),
        (["serve", "processes=0"], "processes=0: Input should be greater than or equal to 1"),
        (["serve", "nonesuch=1"], "there is no setting 'nonesuch'"),
        (["serve", "--settings", "/nowhere"], "cannot read the settings"),
        (["keys", "add", "alice", "--items-per-s", "-1"], "a rate limit of -1 items"),
        (["keys", "add", "a b"], "is not a key's name"),
    ],
)
def test_wrong_values_are_wrong_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", *words]) == reward_service.commands.main(words) == 2
    assert capsys.readouterr().err.count(says) == 2
