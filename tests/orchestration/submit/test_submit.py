"""What is decided before anything is sent: code, paths, records, and the command line's refusals."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from orchestration import extras
from orchestration.cli import main
from orchestration.errors import ConfigError, RlvrError, SubmitError, UnreachableError
from orchestration.settings.config import load_config, load_settings
from orchestration.settings.submit import MAX_NAME_CHARS
from orchestration.submit.common import package
from orchestration.submit.common.book import JobBook, JobRecord
from orchestration.submit.common.job import JobSpec, Plan, Record, Say, job_name
from orchestration.submit.common.package import MAX_INCLUDED_BYTES, ROOMS, CodePackage, packed_code
from orchestration.submit.common.paths import is_loopback, with_settings
from orchestration.submit.ray.cluster import RayBackend, check_gpus, cluster_run
from orchestration.submit.ray.local import LocalBackend, local_run

# --- the code


def test_the_package_runs_where_we_are_not_installed(tmp_path: Path) -> None:
    with packed_code() as code:
        assert {path.name for path in code.folder.iterdir()} >= set(ROOMS)
        (tmp_path / "there").mkdir()
        packed = code.archived()
        assert packed == code.archived()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    program = (
        "import orchestration, sys; from importlib import metadata; import orchestration.cli\n"
        "plugins = metadata.entry_points(group='vllm.general_plugins')\n"
        "print(orchestration.__file__, [p.name for p in plugins if p.dist.name == 'rlvr'][:1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "there", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert "['rlvr_cpu_lora']" in done.stdout


def test_neither_tests_nor_caches_nor_data_travel() -> None:
    with packed_code() as code:
        names = [path.relative_to(code.folder).as_posix() for path in code.folder.rglob("*") if path.is_file()]
    read = ("recipes/tiny.yaml", "submit/hyperpod/ray_job.yaml", "page/page.css", "page/page.form.html", "page/page.js")
    assert {f"orchestration/{name}" for name in read} <= set(names)
    suffixes = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert suffixes <= {".py", ".yaml", ".typed", ".css", ".html", ".js"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_code_of_ones_own_travels_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "mine.py").write_text("x = 1\n")
    with packed_code() as plain, packed_code([tmp_path / "my_rewards"]) as code:
        assert (code.folder / "my_rewards" / "mine.py").read_text() == "x = 1\n"
        assert code.digest != plain.digest
        assert code.num_files == plain.num_files + 1


def test_links_are_their_files_and_hidden_folders_stay_here(tmp_path: Path) -> None:
    elsewhere, mine = tmp_path / "elsewhere", tmp_path / "my rewards é"
    for folder in (elsewhere, mine / ".git", mine / "__pycache__"):
        folder.mkdir(parents=True)
    (mine / ".git" / "config").write_text("[remote]\nurl = https://me:secret@example\n")
    (mine / "__pycache__" / "mine.pyc").write_text("")
    for name in ("shared.py", "id_rsa"):
        (elsewhere / name).write_text("x = 1\n")
    (mine / "mine.py").symlink_to(elsewhere / "shared.py")
    with packed_code([mine]) as code:
        assert [path.name for path in (code.folder / mine.name).rglob("*")] == ["mine.py"]
    for target, says in (
        (elsewhere / "id_rsa", "looks like a secret"),
        (elsewhere, "holds the link 'link' to .* only links to files are followed"),
        (elsewhere / "gone.py", "holds the link 'link' to .*gone.py"),
    ):
        (mine / "link").symlink_to(target)
        with pytest.raises(ConfigError, match=says), packed_code([mine]):
            pass
        (mine / "link").unlink()


def test_relative_paths_are_found_here_and_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, recipes = tmp_path / "here", tmp_path / "recipes"
    for folder in (here, recipes):
        folder.mkdir()
    (here / "of_here.py").write_text("")
    (recipes / "my_task.py").write_text("class MyTask: ...\n")
    monkeypatch.chdir(here)
    with packed_code([Path("my_task.py"), Path("of_here.py")], recipe_folder=Path("../recipes")) as code:
        assert {"my_task.py", "of_here.py"} <= {path.name for path in code.folder.iterdir()}
        program = "import sys, my_task; print(my_task.MyTask.__module__, my_task.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=code.folder, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.split() == ["my_task", str(code.folder / "my_task.py")]
    (here / "my_task.py").write_text("")
    with (
        pytest.raises(ConfigError, match=r"may be .*/here/my_task\.py or .*/recipes/my_task\.py; give the whole path"),
        packed_code([Path("my_task.py")], recipe_folder=recipes),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "size", "what"),
    [
        ("missing.py", None, "does not exist"),
        (".env", 1, "looks like a secret"),
        ("server.pem", 1, "looks like a secret"),
        ("learner", 1, "is taken"),
        ("data.bin", MAX_INCLUDED_BYTES + 1, "more than the 50 MiB that code may have"),
        ("random.py", 1, "would hide Python's own module 'random'"),
        ("yaml.py", 1, "would hide the installed package 'yaml'"),
        ("\udcff.py", 1, "holds '\\\\udcff.py', a name that is not in UTF-8"),
        ("/dev/null", None, "is neither a file nor a folder"),
        (".", None, "has no name that it could be imported by"),
        ("..", None, "has no name that it could be imported by"),
    ],
)
def test_what_is_no_code_stays_here(name: str, size: int | None, what: str, tmp_path: Path) -> None:
    if size is not None:
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    source = tmp_path / name if name.strip(".") else Path(name)
    with pytest.raises(ConfigError, match=what), packed_code([source]):
        pass


def test_what_changes_while_it_is_packed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.setattr(package, "_is_secret", lambda path: path.unlink(missing_ok=True))
    with (
        pytest.raises(RlvrError, match=r"was not packed: .*mine\.py: No such file"),
        packed_code([tmp_path / "mine.py"]),
    ):
        pass


def test_what_is_included_has_a_limit_together(tmp_path: Path) -> None:
    for number in range(11):
        with (tmp_path / f"part{number}.bin").open("wb") as file:
            file.truncate(MAX_INCLUDED_BYTES)  # holes: nothing is written, and nothing may be copied
    says = "together has more than the 500 MiB that code may have"
    with pytest.raises(ConfigError, match=says), packed_code(sorted(tmp_path.iterdir())):
        pass


# --- paths and addresses


def run(*overrides: str) -> Any:
    return load_config("gsm8k", overrides)


HERE = ("data.train_file=/d/train.jsonl", "data.eval_file=s3://b/test.jsonl")


def test_on_a_cluster_only_whole_paths_mean_something() -> None:
    there = cluster_run(run(*HERE), "job", run_root="/fsx/runs/")
    assert (there.run_dir, there.ray_address) == ("/fsx/runs/job", "auto")
    assert there.data == run(*HERE).data


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("data.train_file=train.jsonl",), "data.train_file='train.jsonl' is a path of this machine"),
        ((*HERE, "model.name=tests"), "model.name='tests' is a path of this machine"),
        ((*HERE, "reward.url=http://r:1", "reward.api_key_file=key"), "reward.api_key_file='key' is a path of this"),
        ((*HERE, "run_dir=runs/a"), "run_dir='runs/a' would lie in the job's working directory"),
        ((*HERE, "reward.url=http://localhost:8300"), "reward.url='http://localhost:8300' is this machine"),
        ((*HERE, "reward.url=http://127.0.0.7:1"), "is this machine"),
        ((*HERE, "reward.url=http://r:1", "reward.api_key=k"), "set reward.api_key_file"),
        ((*HERE, "ray_address=10.0.0.1:6379"), "ray_address='10.0.0.1:6379' is for `rlvr train`"),
    ],
)
def test_what_stays_here_is_refused(overrides: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        cluster_run(run(*overrides), "job", run_root="~/runs")


def test_here_relative_paths_become_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"data\.train_file='/.*/a\.jsonl' does not exist here; give a file"):
        local_run(run("data.train_file=a.jsonl"), "job")
    (tmp_path / "a.jsonl").touch()
    there = local_run(run("data.train_file=a.jsonl", "data.eval_file=s3://b/c", "model.name=model"), "job")
    with pytest.raises(ConfigError, match="run_dir='s3://b/run' is no folder"):
        local_run(run("run_dir=s3://b/run"), "job")
    assert there.data.train_file == str(tmp_path / "a.jsonl")
    assert there.data.eval_file == "s3://b/c"
    assert there.model.name == str(tmp_path / "model")
    assert there.run_dir == str(tmp_path / "runs" / "job")


def test_a_reward_service_of_this_machine_is_here_for_a_job_that_is() -> None:
    there = local_run(load_settings("tiny", ["reward.url=http://127.0.0.1:8300"]).run, "job")
    assert there.reward.url == "http://127.0.0.1:8300"


def test_changed_settings_are_checked_again() -> None:
    with pytest.raises(ValueError, match="same file"):
        with_settings(run(), {"data.eval_file": run().data.train_file})


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        *(("http://localhost:1", True), ("http://[::1]:1", True), ("http://127.1.2.3", True)),
        *(("http://0.0.0.0:8000", True), ("http://LOCALHOST.:1", True)),
        *(("http://10.0.0.1", False), ("http://notlocalhost", False)),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ([{"CPU": 8.0, "GPU": 4.0}], "has 4 GPUs on 1 nodes: placement=split needs 8 GPUs"),
        ([{"GPU": 8.0}], "rollout_nodes='fast', but no node"),
    ],
)
def test_a_cluster_that_can_never_place_the_run_is_refused(nodes: list[dict[str, float]], what: str) -> None:
    wanted = run("rollout.num_workers=4", "learner.num_ranks=4", "placement=split", "rollout_nodes=fast")
    with pytest.raises(SubmitError, match=what):
        check_gpus(wanted, nodes, address="http://c:8265")


# --- names and records


@pytest.mark.parametrize("check", [True, False])
def test_the_clusters_gpus_are_counted_unless_that_is_switched_off(
    check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that grows when it is asked for more has none at first."""

    class NoGpus:
        sent: ClassVar[list[str]] = []

        def check_version(self) -> str:
            return "2.51"

        def nodes(self) -> list[dict[str, float]]:
            return [{"CPU": 8.0}]

        def submit(self, *, name: str, **_: object) -> None:
            self.sent.append(name)

    (tmp_path / "orchestration").mkdir()
    code = CodePackage(folder=tmp_path, digest="0" * 64, num_files=1, num_bytes=4)
    overrides = ["ray.address=http://cluster:8265", "device=cuda", f"ray.check_gpus={str(check).lower()}"]
    settings = load_settings("tiny", overrides)
    backend, jobs = RayBackend(settings.submit), NoGpus()
    monkeypatch.setattr(backend, "_jobs", lambda address: jobs)
    job = JobSpec(name="gpu", run=settings.run, code=code)
    if check:
        with pytest.raises(SubmitError, match="has 0 GPUs on 1 nodes"):
            backend.submit(job, print)
    else:
        backend.submit(job, print)
    assert jobs.sent == ([] if check else ["gpu"])


STOP_WITHIN: dict[str, tuple[type[LocalBackend] | type[RayBackend], list[str]]] = {
    "local.stop_timeout_s": (LocalBackend, []),
    "ray.stop_timeout_s": (RayBackend, ["ray.address=http://cluster:8265"]),
}


@pytest.mark.parametrize("key", STOP_WITHIN)
def test_ray_gives_a_stopped_job_as_long_as_the_settings_say(key: str, tmp_path: Path) -> None:
    backend, overrides = STOP_WITHIN[key]
    settings = load_settings("tiny", [*overrides, f"{key}=77"])
    code = CodePackage(folder=tmp_path, digest="0" * 64, num_files=1, num_bytes=4)
    plan = backend(settings.submit).plan(JobSpec(name="rlvr-tiny", run=settings.run, code=code))
    assert plan.request["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "77"


def test_names_fit_every_place() -> None:
    name = job_name("My recipe_with/a-very-long-name-that-goes-on-and-on", now=time.gmtime(0))
    assert re.fullmatch("rlvr-my-recipe-with-a-ve-19700101-000000-[0-9a-f]{6}", name)
    assert len(name) <= MAX_NAME_CHARS
    load_settings("tiny", [f"job.name={name}"])


def test_names_of_one_second_differ() -> None:
    assert len({job_name("tiny", now=time.gmtime(0)) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("job.name=Bad_Name", "job.name='Bad_Name'"),
        ("job.environment={A B: x}", "'A B': string should match pattern"),
        ("sagemaker.secrets={A=B: ssm:x}", "'A=B': string should match pattern"),
        ("job.environment={HF_TOKEN: x}", "HF_TOKEN looks like a secret"),
        ("job.environment={AWS_SECRET_ACCESS_KEY: x}", "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ("job.environment={WANDB_API_KEY_2: x}", "WANDB_API_KEY_2 looks like a secret"),
        ("sagemaker.secrets={HF_TOKEN: hf_abc}", "HF_TOKEN wants a secret's name or ARN"),
        (
            "sagemaker.secrets={A: 'ssm:arn:aws:secretsmanager:us-west-2:123456789012:secret:x'}",
            "wants a secret's name",
        ),
        ("sagemaker.secrets={A: 'secretsmanager:arn:aws'}", "wants a secret's name or ARN"),
        ("sagemaker.tags=a=b", "sagemaker.tags='a=b': input should be a mapping, {a: b}"),
        ("sagemaker.xyz=1", "unknown setting 'sagemaker.xyz'; `rlvr settings` lists all"),
        ("sagemaker.instance_groups=[{role: learner, instance_type: ml.x.y, count: 2}]", "groups.0.count'; `rlvr"),
        ("reward.api_key_file=key", "^reward: reward.api_key_file is for a service"),
        ("hyperpod.secrets={HF_TOKEN: hf_abc}", "HF_TOKEN wants the name of a Kubernetes Secret"),
        ("job.environment={OMP_NUM_THREADS: 4}", "job.environment.OMP_NUM_THREADS: .* in quotes of its own"),
        ("job.include=mine.py", "job.include='mine.py': input should be a list"),
        ("sagemaker.endpoints={s3: vpce-1}", "sagemaker.endpoints.s3"),
        ("ray.adress=x", "did you mean 'ray.address'"),
        ("local.linger_s=-1", "local.linger_s=-1"),
        ("sagemaker=ml.p4d.24xlarge", "sagemaker"),
    ],
)
def test_wrong_settings_of_a_submission_are_named(override: str, what: str) -> None:
    for read in (load_settings, load_config):  # `rlvr train` does not use them, and reads them all the same
        with pytest.raises(ConfigError, match=what) as caught:
            read("tiny", [override])
        assert "hf_abc" not in str(caught.value)


def test_what_is_no_secret_may_be_in_the_environment() -> None:
    names = ("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "RAY_AUTH_TOKEN_PATH", "MONKEY", "TOKENS_PER_STEP")
    settings = load_settings("tiny", [f"job.environment={json.dumps(dict.fromkeys(names, 'x'))}"])
    assert set(settings.submit.job.environment) == set(names)


def record(name: str, at: str = "2026-01-01T00:00:00Z") -> JobRecord:
    return JobRecord(name=name, place="ray", recipe="tiny", submitted_at=at, reference={"job_id": name})


def test_what_was_submitted_is_found_again(tmp_path: Path) -> None:
    book = JobBook(tmp_path / "jobs")
    assert book.all() == []
    book.write(record("a"))
    book.write(record("b", "2026-02-01T00:00:00Z"))
    (tmp_path / "jobs" / "c.json").write_text("{")
    assert [job.name for job in book.all()] == ["b", "a"]
    assert book.read("a") == record("a")
    with pytest.raises(ConfigError, match="submitted before"), book.reserved("a"):
        pass
    with book.reserved("new"), pytest.raises(ConfigError, match="'new' is being submitted"), book.reserved("new"):
        pass
    assert not list((tmp_path / "jobs").glob("*.lock"))
    wrong = "is not a job's name"
    for name, what in (
        ("aa", "did you mean 'a'"),
        ("../a", wrong),
        ("a" * 300, wrong),
        ("", wrong),
        ("c", "remove it"),
    ):
        with pytest.raises(ConfigError, match=what):
            book.read(name)


# --- the command line


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_dry_run_says_what_would_be_sent_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    words = ["submit", "tiny", "seed=3", "--to", "ray", "ray.address=http://nowhere:8265", "--dry-run"]
    assert main([*words, "--json"]) == 0
    request = json.loads(capsys.readouterr().out)
    assert request["address"] == "http://nowhere:8265"
    assert request["entrypoint"] == "python -m orchestration.cli train run.yaml"
    assert (request["run"]["seed"], request["run"]["ray_address"]) == (3, "auto")
    assert main(words) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["seed"] == 3
    assert not state.exists()


def test_a_module_beside_the_recipe_is_in_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--to", "ray", "ray.address=http://nowhere:8265", "--dry-run", "--json"]
    num_files = []
    for include in ("[]", "[mine.py]"):
        (tmp_path / "mine.py").write_text("")
        (tmp_path / "recipe.yaml").write_text(f"{{model: {{name: tiny}}, job: {{include: {include}}}}}")
        assert main(["submit", str(tmp_path / "recipe.yaml"), *words]) == 0
        plan = json.loads(capsys.readouterr().out)
        num_files.append(int(re.findall(r"(\d+) files", plan["runtime_env"]["working_dir"])[0]))
    assert num_files[1] == num_files[0] + 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--to", "ray"], "set ray.address"),
        (["--to", "ray", "ray.address=head:8265"], "is not a dashboard's address"),
        (["--to", "ray", "ray.address=http://me:secret@head:8265"], "is not a dashboard's address"),
        (["--to", "ray", "ray.address=http://[::1"], "is not a dashboard's address"),
        (["--to", "ray", "ray.address=http://127.0.0.1:1", "ray.timeout_s=inf"], "less than or equal to 3600"),
        (["--to", "ray", "ray.address=http://127.0.0.1:1", f"ray.token_file={__file__}"], "not one line with a token"),
        # the toolkit would try these as plain HTTP
        (["--to", "ray", "ray.address=sagemaker_ray://"], "is no address of a RayCluster"),
        (["--to", "ray", "ray.address=sagemaker_ray:///team-a"], "is no address of a RayCluster"),
        (["--to", "ray", "ray.address=sagemaker_ray://c/ns/x"], "is no address of a RayCluster"),
        (["--to", "ray", "ray.address=sagemaker_ray:c"], "is no address of a RayCluster"),
        (["--to", "ray", "ray.address=http://127.0.0.1:1", "ray.token_file=/nowhere"], "cannot be read"),
        (["--to", "ray", "ray.address=http://127.0.0.1:1", "ray.ca_file=/nowhere"], "does not exist"),
        (["--to", "local", "--dry-run", "--follow"], "leave one out"),
        (["--to", "local", "--json", "--follow"], "leave one out"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    assert main(["submit", "tiny", *words]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert not list(state.rglob("*.json"))


def test_a_library_that_is_missing_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for place, what in (("ray", "ray[default]: install rlvr[ray]"), ("local", "vllm: install rlvr[cpu]")):
        assert main(["submit", "tiny", "--to", place, "ray.address=http://127.0.0.1:1"]) == 2
        assert what in capsys.readouterr().err


def test_no_cluster_is_an_error_with_its_address(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    assert main(["submit", "tiny", "--to", "ray", "ray.address=http://127.0.0.1:1/#/overview"]) == 1
    assert "no Ray dashboard answers at http://127.0.0.1:1 " in capsys.readouterr().err
    assert not list(state.rglob("*.json"))


class Breaking:
    """A place that takes a job, or does not, and breaks off."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def plan(self, job: JobSpec) -> Plan:
        return Plan(request={})

    def submit(self, job: JobSpec, say: Say, record: Record) -> dict[str, str]:
        record({"address": "http://127.0.0.1:1", "job_id": job.name, "adapter": "/a"})
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "mine may have been sent all the same; rlvr jobs status mine"),
        (UnreachableError("no answer"), 1, "mine may have been sent all the same; rlvr jobs status mine"),
        (SubmitError("refused"), 1, None),
    ],
)
def test_a_job_that_may_be_there_is_found_again(
    error: BaseException,
    code: int,
    says: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: Path,
) -> None:
    """And paid for: its sending was interrupted, or not answered. What was refused leaves its name free."""
    monkeypatch.setattr("orchestration.commands.submit.make_backend", lambda *_: Breaking(error))
    assert main(["submit", "tiny", "--to", "ray", "job.name=mine"]) == code
    said = capsys.readouterr().err
    assert ("may have been sent" in said) is JobBook().knows("mine") is (says is not None)
    assert says is None or says in said


def test_jobs_whose_place_does_not_answer_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list"]) == 0
    assert "no job was submitted" in capsys.readouterr().out
    reference = {"address": "http://127.0.0.1:1", "job_id": "a"}
    JobBook().write(JobRecord(name="a", place="ray", recipe="tiny", submitted_at="2026", reference=reference))
    assert main(["jobs", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["job"], row["state"]) == ("a", "unknown")
    assert "no Ray dashboard answers" in row["message"]
    assert main(["jobs", "logs", "b"]) == 2


def test_a_local_job_whose_head_has_gone_is_told_by_its_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = {"address": "http://127.0.0.1:1", "head": "gone", "job_id": "a", "run_dir": f"{tmp_path}/run"}
    JobBook().write(JobRecord(name="a", place="local", recipe="tiny", submitted_at="2026", reference=reference))
    assert main(["jobs", "stop", "a"]) == 1
    assert "a cannot be stopped: its Ray head has ended, and" in capsys.readouterr().err
    assert main(["jobs", "logs", "-f", "a"]) == 3
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text('{"status": "finished"}')
    assert main(["jobs", "stop", "a"]) == main(["jobs", "logs", "-f", "a"]) == 0
    assert "the Ray head that ran a has ended, and its log with it" in capsys.readouterr().err
