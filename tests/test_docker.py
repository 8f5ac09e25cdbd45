"""The reward service's image, as far as it can be proven without a Docker daemon.

The Dockerfile is read: what it copies is there, nothing in it is secret or unpinned, it does not run as root. Then what
it installs is put together from its own instructions, and the service run as its entry point runs it:

- everywhere, from the distributions of the lock alone, linked out of this environment (same versions);
- with RLVR_INSTALL_IMAGE=1, as CI sets it, by the Dockerfile's own pip commands in a fresh virtual environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.dockerfiles import ROOT, Dockerfile, Instruction, let_through
from tests.waiting import until

DOCKERFILE = Dockerfile(ROOT / "docker" / "reward_service.Dockerfile")
LOCK = ROOT / "requirements-reward.lock"
IMAGE_PYTHON = "/opt/rlvr/bin/python"

FORBIDDEN = ("torch", "ray", "vllm", "deepspeed", "transformers", "trl", "numpy")


def named(name: str, *, stage: int | None = None) -> list[Instruction]:
    return DOCKERFILE.named(name, stage=stage)


def entry_point() -> list[str]:
    (instruction,) = named("ENTRYPOINT", stage=1)
    return instruction.words


class TestDockerfile:
    def test_the_base_is_pinned_to_a_patch_release_and_small(self) -> None:
        bases = [i.words[0] for i in named("FROM")]
        assert len(bases) == 2
        assert len(set(bases)) == 1  # the virtual environment is copied from one to the other
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])
        assert "latest" not in "".join(i.text for i in DOCKERFILE.instructions())

    def test_what_is_copied_is_there_and_let_through(self) -> None:
        copies = [i.words for i in named("COPY") if not i.words[0].startswith("--from=")]
        assert copies
        for *sources, _ in copies:
            for source in sources:
                assert let_through(source), source

    def test_it_runs_as_a_user_who_may_nothing(self) -> None:
        (user,) = named("USER", stage=1)
        assert int(user.text) >= 1000
        ran_after = [i.name for i in DOCKERFILE.instructions()[DOCKERFILE.instructions().index(user) :]]
        assert not {"RUN", "COPY", "ADD"} & set(ran_after)  # it owns nothing that it runs

    def test_no_layer_holds_a_secret(self) -> None:
        secret = re.compile(r"key|secret|token|passw|credential", re.IGNORECASE)
        assert [i.text for i in named("ENV") + named("ARG") if secret.search(i.text)] == []
        assert named("ADD") == []
        assert [i.text for i in named("RUN") if "--mount" in i.text or "curl" in i.text] == []

    def test_signals_reach_the_service_and_strangers_need_a_key(self) -> None:
        (instruction,) = named("ENTRYPOINT")
        assert instruction.text.startswith("[")  # no shell in between
        words = entry_point()
        assert words[:5] == ["tini", "--", "rlvr", "reward", "serve"]
        assert words[5:] == ["host=0.0.0.0", "keys_file=/etc/rlvr/reward_keys.json"]
        assert [i.text for i in named("EXPOSE")] == ["8300"]
        assert "bubblewrap tini" in "".join(i.text for i in named("RUN", stage=1))

    def test_the_lock_is_what_is_installed(self) -> None:
        commands = pip_commands()
        lock = ["--requirement", "requirements-reward.lock", "--requirement", "build.lock"]
        assert commands[0] == ["install", "--no-deps", "--require-hashes", *lock]
        assert commands[1] == ["install", "--no-deps", "--no-build-isolation", "."]
        assert commands[2] == ["uninstall", "--yes", "setuptools", "pip"]
        build = build_lock().words[1].split()[0]
        assert build in (ROOT / "requirements-cpu.lock").read_text().split()  # the one that installs it here

    def test_hadolint_finds_nothing(self) -> None:
        hadolint = Path(sys.executable).parent / "hadolint"
        done = subprocess.run([hadolint, DOCKERFILE.path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


def pip_commands() -> list[list[str]]:
    """Arguments of pip in the build stage."""
    lines = [i.words for i in named("RUN", stage=0)]
    return [words[3:] for words in lines if words[:3] == [IMAGE_PYTHON, "-m", "pip"]]


def build_lock() -> Instruction:
    """What writes the lock of what builds the package."""
    (instruction,) = (i for i in named("RUN", stage=0) if i.words[0] == "echo")
    return instruction


def copy_sources(folder: Path) -> None:
    """The build stage's folder: only what the Dockerfile copies."""
    for *sources, _ in (i.words for i in named("COPY", stage=0)):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / source)


def install(folder: Path) -> Path:
    """The image's virtual environment, by its own commands."""
    copy_sources(folder)
    subprocess.run(["sh", "-c", build_lock().text], cwd=folder, check=True, timeout=10)
    home = folder / "image"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1", "PIP_RETRIES": "1"}
    for number, words in enumerate(pip_commands()):
        done = subprocess.run(
            [python, "-m", "pip", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        if number == 0 and re.search(r"NewConnectionError|ConnectTimeout|No matching distribution", done.stderr):
            pytest.skip("pip reaches no index")
        assert done.returncode == 0, done.stderr
    return python


def link(folder: Path) -> Path:
    """The same without pip: the lock's distributions from this environment, and our packages from the sources."""
    copy_sources(folder)
    subprocess.run(["sh", "-c", build_lock().text], cwd=folder, check=True, timeout=10)
    home = folder / "image"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    names = [line.split(" ")[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line]
    for name, version in [*names, ("rlvr", metadata.version("rlvr"))]:
        # By the folder: Ray, once imported, has a psutil of its own come first.
        (distribution, *_) = metadata.distributions(name=name, path=[sysconfig.get_path("purelib")])
        assert distribution.version == version, f"{name}: {version} is locked"
        tops = {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "bin"}
        for top in tops:
            if not top.endswith(".pth") and not (top.startswith("__editable__")):
                (site / top).symlink_to(str(distribution.locate_file(top)))
    (site / "rlvr.pth").write_text(f"{folder}\n")
    python = home / "bin" / "python"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["rlvr"].partition(":")
    script = home / "bin" / "rlvr"
    # Guarded as pip's own scripts are: the service's workers import the main module again.
    script.write_text(
        f"#!{python}\nfrom {module} import {function}\nif __name__ == '__main__':\n    exit({function}())\n"
    )
    script.chmod(0o755)
    return python


@pytest.fixture(scope="module", params=["linked", "installed"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the image's virtual environment."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "linked":
        return link(folder)
    if os.environ.get("RLVR_INSTALL_IMAGE") != "1":
        pytest.skip("set RLVR_INSTALL_IMAGE=1 to install the lock with pip, which takes a minute")
    return install(folder)


ITEMS: dict[str, dict[str, Any]] = {
    "gsm8k_format": {"completion": "#### The final answer is 72", "reference": {"final_answer": "72"}},
    "gsm8k_correctness": {"completion": "#### The final answer is 72", "reference": {"final_answer": "72"}},
    "math": {"completion": r"So $\boxed{\frac{1}{2}}$.", "reference": {"final_answer": "0.5"}},
    "symbolic": {"completion": "#### The final answer is (x + 1)^2", "reference": {"final_answer": "x^2 + 2x + 1"}},
    "json_schema": {"completion": '{"a": 1}', "reference": {"schema": {"type": "object", "required": ["a"]}}},
    "code": {
        "completion": "```python\nprint(int(input()) * 2)\n```",
        "reference": {"stdio": [{"stdin": "21\n", "stdout": "42\n"}]},
    },
}


@pytest.fixture
def service(image: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """The entry point's command, on a free port, with a key that the image's own command line made."""
    rlvr = str(image.with_name("rlvr"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    keys = tmp_path / "reward_keys.json"
    made = subprocess.run(
        [rlvr, "reward", "keys", "add", "trainer", "--file", str(keys)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=True,
    )
    key = re.findall(r"rlvr_[0-9a-f]{12}_[\w-]{43}", made.stdout + made.stderr)[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [rlvr, *entry_point()[3:], f"keys_file={keys}", f"port={port}", "host=127.0.0.1"]
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True) as process:
        try:
            yield process, port, key
        finally:
            process.kill()


@pytest.mark.slow
def test_the_image_scores_by_http_and_ends_in_order(
    image: Path, service: tuple[subprocess.Popen[str], int, str], tmp_path: Path
) -> None:
    process, port, key = service
    health = [str(image), str(ROOT / "docker" / "healthcheck.py"), str(port)]

    def is_healthy() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        return subprocess.run(health, capture_output=True, timeout=30, check=False).returncode == 0

    until(is_healthy, 60, poll_s=0.2, told=(tmp_path / "log").read_text)
    for reward, item in ITEMS.items():
        answer = post(port, key, {"rewards": [{"name": reward}], "items": [{"id": "0", "prompt": "", **item}]})
        decision = answer["results"][0]["rewards"][reward]
        assert decision["score"] == (0.5 if reward == "gsm8k_format" else 1.0), (reward, decision)
    libraries = loaded_libraries(process.pid)
    assert libraries  # msgspec's and others'
    assert [path for path in libraries if not set(FORBIDDEN).isdisjoint(Path(path).parts)] == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Application shutdown complete" in (tmp_path / "log").read_text()
    assert subprocess.run(health, capture_output=True, timeout=30, check=False).returncode == 1


def post(port: int, key: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/score",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


def loaded_libraries(pid: int) -> set[str]:
    """Shared libraries in the memory of a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if line.endswith(".so")}


@pytest.mark.slow
def test_no_training_library_is_there_or_asked_for(image: Path, tmp_path: Path) -> None:
    """Everything that the service may load is loaded, and the command line that starts it."""
    code = f"""
import importlib, importlib.util, sys
import orchestration.cli, reward_service.commands, reward_service.api.app, reward_service.serve
from reward_service.registry import load_rewards
from reward_service.settings import ServiceSettings
for reward in load_rewards(ServiceSettings()).values():
    for module in reward.preload:
        importlib.import_module(module)
import reward_service.audit.export, reward_service.audit.verify, pyarrow.parquet, psycopg
print([n for n in {FORBIDDEN} if n in sys.modules or importlib.util.find_spec(n)])
"""
    done = subprocess.run([image, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr


@pytest.mark.slow
def test_training_without_its_libraries_is_refused_in_words(image: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [image.with_name("rlvr"), "train", "tiny", f"run_dir={tmp_path}/run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
