"""Every shipped recipe: parsed, resolved, planned for the machine that it names, and sent as a job that is not sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.settings.config import load_config
from orchestration.settings.tree import recipe_names

ONE, EIGHT = ["--gpus-per-node", "1", "--gpu", "a10g"], ["--gpus-per-node", "8", "--gpu", "a100-40"]
AS_GOOD = 0.8
"""Of the best split's steps an hour: what a recipe that names a machine must make by its own split."""


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_parsed_planned_and_dry_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))
    config = load_config(name)
    assert config.recipe == name
    assert main(["plan", name, *(EIGHT if name.endswith("p4d") else ONE), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    memory, best = plan["memory"], plan["best"]
    assert 0 < memory["rollout"] <= memory["has"]
    assert 0 < memory["learner"] <= memory["has"]
    assert 0 < max(best["rollout_busy"], best["learner_busy"]) <= 1
    if name.endswith("p4d"):
        assert (config.rollout.num_workers, config.learner.num_ranks) == (4, 4)
        own = plan["as_set"] or best
        assert own["step_s"] * AS_GOOD <= best["step_s"]
    words = ["submit", name, "--to", "ray", "ray.address=http://nowhere:8265", "--dry-run", "--json"]
    assert main([*words, *data_files(name, tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["model"]["name"] == config.model.name


def data_files(name: str, folder: Path) -> list[str]:
    """Settings that name problems, where a recipe comes without any."""
    if load_config(name).data.kind != "gsm8k":
        return []
    for file in ("train", "eval"):
        rows = ({"question": f"{file}: {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(20))
        (folder / f"{file}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [f"data.{file}_file={folder / file}.jsonl" for file in ("train", "eval")]
