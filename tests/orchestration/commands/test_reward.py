"""`rlvr reward audit …` and `rlvr reward keys …`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestration.cli import main
from orchestration.commands import reward as reward_commands
from reward_service.audit.records import drafts
from reward_service.audit.settings import DEFAULT_DATABASE
from reward_service.audit.store import AuditStore
from reward_service.keys import DEFAULT_KEYS_FILE, KeyRing
from tests.reward_service.audit.audit_cases import batch


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A log of six records."""
    store = AuditStore(str(tmp_path / "audit.sqlite3"))
    store.create()
    made = [draft for n in range(3) for draft in drafts(batch(n), service_version="1.0", keep_text=False)]
    store.append(made, session="s", messages=3)
    store.close()
    return str(tmp_path / "audit.sqlite3")


def manipulate(database: str, statement: str) -> None:
    engine = sa.create_engine(f"sqlite:///{database}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_the_defaults_are_those_of_the_service() -> None:
    assert reward_commands._DATABASE == DEFAULT_DATABASE
    assert reward_commands._KEYS_FILE == DEFAULT_KEYS_FILE


def test_verify(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["reward", "audit", "verify", "--database", database]
    assert main(verify) == 0
    said = capsys.readouterr().out
    assert said.startswith("intact: 6 records, chained by sha256; head 6:")
    head = said.split()[-1]
    assert main([*verify, "--expect-head", head]) == 0
    assert main([*verify, "--json", "--expect-head", f"6:{'0' * 64}"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["intact"], found["head"], found["num_records"]) == (False, head, 6)
    manipulate(database, "UPDATE audit_records SET total = 0 WHERE seq = 4")
    assert main(verify) == 1
    assert capsys.readouterr().out.startswith("record 4: changed")


@pytest.mark.parametrize("head", ["x", "1:2", f"-1:{'0' * 64}", "6"])
def test_a_head_that_is_none(head: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["reward", "audit", "verify", f"--expect-head={head}"])
    assert end.value.code == 2


def test_show(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    show = ["reward", "audit", "show", "--database", database, "--run-id", "run", "--id", "1/0"]
    assert main(show) == 0
    said = capsys.readouterr().out
    assert said.startswith("record 3, 2023-11-14T22:13:20.000001Z: item '1/0' of run 'run', policy version 3")
    assert 'gsm8k_correctness x 1.0: 1  {"extracted": "72"}  [bbbbbbbbbbbb]' in said
    assert main([*show, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq"] == 3
    assert main([*show[:-1], "none"]) == 1
    manipulate(database, "UPDATE audit_records SET rewards = '{' WHERE seq = 3")
    assert main(show) == 1
    assert "record 3 cannot be read" in capsys.readouterr().err


def test_export(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.parquet"
    assert main(["reward", "audit", "export", str(path), "--database", database]) == 0
    assert capsys.readouterr().out == f"6 records in {path}\n"
    assert path.exists()


@pytest.mark.parametrize("command", [["verify"], ["show"], ["export", "x.parquet"]])
def test_no_log(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = command
    assert main(["reward", "audit", name, *rest, "--database", str(tmp_path / "none")]) == 1
    assert "there is no audit log" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["reward", "keys", "add", "alice", "--items-per-s", "100", *file]) == 0
    said = capsys.readouterr()
    text = said.out.strip()
    assert text not in said.err, "the key alone is on standard output, so that it can be piped on"
    assert KeyRing(tmp_path / "keys.json").check(f"Bearer {text}").name == "alice"
    assert main(["reward", "keys", "add", "alice", *file]) == 1
    assert "revoke it first" in capsys.readouterr().err
    assert main(["reward", "keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert "alice" in listed
    assert "100 items/s" in listed
    assert text[-43:] not in listed
    assert main(["reward", "keys", "revoke", "alice", *file]) == 0
    assert main(["reward", "keys", "revoke", "alice", *file]) == 1
    capsys.readouterr()
    assert main(["reward", "keys", "list", "--json", *file]) == 0
    (key,) = json.loads(capsys.readouterr().out)
    assert key["revoked"] is not None
    assert "sha256" not in key
