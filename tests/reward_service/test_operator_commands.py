"""`python -m reward_service audit …` and `keys …`, which are `rlvr reward audit …` and `keys …` too."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from reward_service.audit.store import AuditStore
from reward_service.commands import main
from reward_service.keys import KeyRing
from tests.reward_service.audit.audit_cases import batch, recorded


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A log of three records, of two items each."""
    store = AuditStore(str(tmp_path / "audit.sqlite3"))
    store.create()
    store.append(recorded(*map(batch, range(3)), keep_text=False), session="s", messages=3)
    store.close()
    return str(tmp_path / "audit.sqlite3")


def manipulate(database: str, statement: str) -> None:
    engine = sa.create_engine(f"sqlite:///{database}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_verify(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["audit", "verify", "--database", database]
    assert main(verify) == 0
    said = capsys.readouterr().out
    assert said.startswith("intact: 6 decisions in 3 records, chained by sha256; head 3:")
    head = said.split()[-1]
    assert main([*verify, "--expect-head", head]) == 0
    assert main([*verify, "--json", "--expect-head", f"3:{'0' * 64}"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["intact"], found["head"], found["num_records"]) == (False, head, 3)
    manipulate(database, "UPDATE audit_records SET results = item_ids WHERE seq = 2")
    assert main(verify) == 1
    assert capsys.readouterr().out.startswith("record 2: changed")


@pytest.mark.parametrize("head", ["x", "1:2", f"-1:{'0' * 64}", "6"])
def test_a_head_that_is_none(head: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", "verify", f"--expect-head={head}"])
    assert end.value.code == 2


def test_show(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    show = ["audit", "show", "--database", database, "--run-id", "run", "--id", "1/0"]
    assert main(show) == 0
    said = capsys.readouterr().out
    assert said.startswith("record 2, 2023-11-14T22:13:20.000001Z: item 0, '1/0', of run 'run', policy version 3")
    assert 'gsm8k_correctness x 1.0: 1  {"extracted": "72"}  [bbbbbbbbbbbb]' in said
    assert main([*show, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq"] == 2
    assert main([*show[:-1], "none"]) == 1
    manipulate(database, "UPDATE audit_records SET results = item_ids WHERE seq = 2")
    assert main(show) == 1
    assert "record 2 cannot be read" in capsys.readouterr().err


def test_export(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.parquet"
    assert main(["audit", "export", str(path), "--database", database]) == 0
    assert capsys.readouterr().out == f"6 decisions in {path}\n"
    assert path.exists()


@pytest.mark.parametrize("command", [["verify"], ["show"], ["export", "x.parquet"]])
def test_no_log(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = command
    assert main(["audit", name, *rest, "--database", str(tmp_path / "none")]) == 1
    assert "there is no audit log" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["keys", "add", "alice", "--items-per-s", "100", *file]) == 0
    said = capsys.readouterr()
    text = said.out.strip()
    assert text not in said.err, "the key alone is on standard output, so that it can be piped on"
    assert KeyRing(tmp_path / "keys.json").check(f"Bearer {text}").name == "alice"
    assert main(["keys", "add", "alice", *file]) == 1
    assert "revoke it first" in capsys.readouterr().err
    assert main(["keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert "alice" in listed
    assert "100 items/s" in listed
    assert text[-43:] not in listed
    assert main(["keys", "add", "bob", "--expires", "30d", *file]) == 0
    assert main(["keys", "add", "carol", "--expires", "soon", *file]) == 2
    assert "'soon' is not a time" in capsys.readouterr().err
    assert main(["keys", "list", *file]) == 0
    assert "expires 20" in capsys.readouterr().out
    assert main(["keys", "revoke", "bob", *file]) == 0
    assert main(["keys", "revoke", "alice", *file]) == 0
    assert main(["keys", "revoke", "alice", *file]) == 1
    capsys.readouterr()
    assert main(["keys", "list", "--json", *file]) == 0
    key, _ = json.loads(capsys.readouterr().out)
    assert key["revoked"] is not None
    assert "sha256" not in key


def test_what_runs_before_a_command_loads_no_library_of_the_server() -> None:
    code = "import sys, reward_service.commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not {"pydantic", "sqlalchemy", "fastapi", "uvicorn", "sympy"} & set(loaded.stdout.split())


def test_a_key_is_made_and_the_service_started_by_the_package_alone(tmp_path: Path) -> None:
    run = partial(subprocess.run, capture_output=True, text=True, timeout=60)
    made = run([sys.executable, "-m", "reward_service", "keys", "add", "bob", "--file", str(tmp_path / "keys.json")])
    assert made.returncode == 0, made.stderr
    assert KeyRing(tmp_path / "keys.json").check(f"Bearer {made.stdout.strip()}").name == "bob"
    refused = run([sys.executable, "-m", "reward_service", "audit", "verify", "--database", str(tmp_path / "none")])
    assert refused.returncode == 1
    assert refused.stderr.startswith("reward service: there is no audit log")
