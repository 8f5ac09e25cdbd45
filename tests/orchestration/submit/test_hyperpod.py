"""HyperPod, as far as it is pure: what is refused, and manifests against KubeRay's schemas, without unknown fields."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestration.errors import ConfigError
from orchestration.settings.config import RunConfig, load_config, load_settings
from orchestration.settings.hyperpod import GpuGroup
from orchestration.submit.common.job import JobSpec, Plan, job_name
from orchestration.submit.common.package import CodePackage
from orchestration.submit.hyperpod.backend import HyperPodBackend
from orchestration.submit.hyperpod.checks import host_of
from orchestration.submit.hyperpod.manifest import job_manifests, owned_by

ROOT = Path(__file__).parents[3]
P4D = "hyperpod.learner.instance_type=ml.p4d.24xlarge"
SETTINGS = ["hyperpod.image=123456789012.dkr.ecr.us-west-2.amazonaws.com/rlvr:1.0", "hyperpod.fsx_claim=fsx", P4D]
LARGE = [
    *("hyperpod.learner.count=2", "hyperpod.rollout.instance_type=ml.p5.48xlarge", "hyperpod.rollout.count=2"),
    *("hyperpod.reward.cpus=16", "hyperpod.reward.instance_type=ml.c5.4xlarge", "hyperpod.service_account=rlvr"),
    *("hyperpod.queue=team-a", "hyperpod.priority=training", "hyperpod.image_pull_secret=registry"),
    *("rollout.num_workers=16", "learner.num_ranks=16", "hyperpod.context=eks", "hyperpod.retries=2"),
    "save_every=5",
]


@pytest.fixture
def code(tmp_path: Path) -> CodePackage:
    folder = tmp_path / "code"
    (folder / "orchestration").mkdir(parents=True)
    (folder / "orchestration" / "cli.py").write_text("print('hello')\n")
    (folder / "learner").mkdir()
    (folder / "learner" / "loss.py").write_text("")
    return CodePackage(folder=folder, digest="0123456789abcdef" * 4, num_files=2, num_bytes=15)


def plan(code: CodePackage, *overrides: str, recipe: str = "tiny", name: str = "rlvr-tiny") -> Plan:
    settings = load_settings(recipe, overrides)
    return HyperPodBackend(settings.submit).plan(JobSpec(name=name, run=settings.run, code=code))


def dry_run(code: CodePackage, overrides: list[str]) -> None:
    settings = load_settings("tiny", [*SETTINGS, *overrides])
    job = JobSpec(name="rlvr-tiny", run=settings.run, code=code, environment=settings.submit.job.environment)
    HyperPodBackend(settings.submit).plan(job)


def manifests(code: CodePackage, *overrides: str) -> dict[str, dict[str, Any]]:
    settings = load_settings("tiny", overrides)
    job = JobSpec(name="rlvr-tiny", run=settings.run, code=code, environment={"NCCL_DEBUG": "WARN"})
    return {m["kind"]: m for m in job_manifests(job, settings.submit.hyperpod, token="secret-of-the-cluster")}


def groups(ray_job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def marks(group: dict[str, Any]) -> dict[str, float]:
    """What `ray start` gets of a group's resources: KubeRay pastes the value into a shell's command line."""
    command = f"printf %s {group['rayStartParams']['resources']}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    return dict(json.loads(done.stdout))


def pods(ray_job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specs of all pods that Ray runs in."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]}


def run_of(config_map: dict[str, Any], tmp_path: Path) -> RunConfig:
    """The run as its driver will read it."""
    (tmp_path / "run.yaml").write_text(config_map["data"]["run.yaml"])
    return load_config(str(tmp_path / "run.yaml"))


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["hyperpod.image=null"], "hyperpod.image is needed"),
            (["hyperpod.image=rlvr"], "hyperpod.image='rlvr' may be another image tomorrow"),
            (["hyperpod.image=host:5000/rlvr"], "may be another image tomorrow"),
            (["hyperpod.image=rlvr:latest"], "may be another image tomorrow"),
            (["hyperpod.fsx_claim=null"], "hyperpod.fsx_claim is needed"),
            (["hyperpod.learner=null"], "hyperpod.learner.instance_type is needed"),
            (["hyperpod.namespace=Team_A"], "hyperpod.namespace='Team_A': a name of this kind"),
            (["hyperpod.learner.gpus=9"], "hyperpod.learner.gpus=9 is more than ml.p4d.24xlarge has, 8"),
            (
                ["hyperpod.learner.instance_type=ml.g4dn.12xlarge"],
                "GPU T4 with compute capability 7.5, and bfloat16 needs",
            ),
            (["hyperpod.learner.instance_type=ml.trn1.32xlarge"], "has no GPU but AWS's own chips"),
            (["hyperpod.learner.instance_type=ml.x9.large"], "'ml.x9.large' is not in our table"),
            (["learner.num_ranks=9"], "9 learner ranks need at least 9 GPUs but there are 8"),
            (["rollout.num_workers=9"], "hyperpod.learner (8 GPUs): 9 rollout workers"),
            (
                ["hyperpod.learner.count=2", "rollout.tensor_parallel_size=5", "rollout.num_workers=3"],
                "takes 2 such workers",
            ),
            (["rollout.num_workers=8", "learner.num_ranks=8", "placement=split"], "needs 16 GPUs"),
            ([*LARGE, "learner.num_ranks=17"], "learner.num_ranks=17 needs as many GPUs, and hyperpod.learner has 16"),
            ([*LARGE, "rollout.num_workers=17"], "hyperpod.rollout (32 GPUs): rollout_nodes=rollout"),
            ([*LARGE, "placement=colocated"], "placement=colocated shares GPUs"),
            (["device=cpu"], "device=cpu would leave the GPUs"),
            (["data=gsm8k", "data.train_file=gsm8k/train.jsonl"], "data.train_file='gsm8k/train.jsonl' is in no pod"),
            (
                ["data=gsm8k", "data.train_file=/fsx/../train.jsonl"],
                "data.train_file='/fsx/../train.jsonl' is in no pod",
            ),
            (["model.name=/models/base"], "model.name='/models/base' is in no pod"),
            (["model.name=./base"], "model.name='./base' is in no pod"),
            (["run_dir=runs/one"], "run_dir='runs/one' is lost when its pod ends"),
            (["run_dir=/fsx"], "run_dir='/fsx' is lost"),
            (["ray_address=10.0.0.1:6379"], "ray_address='10.0.0.1:6379'"),
            (["rollout_nodes=fast", "placement=split"], "rollout_nodes='fast'"),
            (["reward.url=http://localhost:8300"], "reward.url='http://localhost:8300' is this machine"),
            (["reward.url=http://r:8300", "reward.api_key=rlvr_secret"], "reward.api_key would be stored"),
            (
                ["reward.url=http://r:8300", "reward.api_key_file=/home/me/key"],
                "reward.api_key_file='/home/me/key' is in no pod",
            ),
            (
                ["reward.url=http://r:8300", "hyperpod.reward.cpus=2"],
                "hyperpod.reward is about a service that the run starts",
            ),
            (["reward.settings_file=nowhere.yaml"], "reward.settings_file='nowhere.yaml' is no YAML file here"),
            (["hyperpod.shm_gib=500"], "hyperpod.shm_gib=500 is over half of the 960 GiB"),
            (["hyperpod.max_runtime_s=600"], "hyperpod.start_timeout_s=3600 must be less"),
            (["hyperpod.retries=2", "save_minutes=0"], "hyperpod.retries=2 would begin again each time"),
            (["hyperpod.priority=high"], "hyperpod.priority='high' is of a queue"),
            (["job.environment={RAY_AUTH_MODE: disabled}"], "job.environment has RAY_AUTH_MODE"),
            (
                ["job.environment={A: b}", "hyperpod.secrets={A: s/k}"],
                "A is in job.environment and in hyperpod.secrets",
            ),
        ],
    )
    def test_it_says_what_and_what_to_do(self, code: CodePackage, overrides: list[str], says: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(says)) as caught:
            dry_run(code, overrides)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a" * 48, "7b-run"])
    def test_names_that_kuberay_refuses(self, code: CodePackage, name: str) -> None:
        with pytest.raises(ConfigError, match="KubeRay takes names"):
            plan(code, *SETTINGS, name=name)

    def test_names_that_are_made_are_never_too_long(self, code: CodePackage) -> None:
        assert plan(code, *SETTINGS, name=job_name("a-recipe-of-a-very-long-name-indeed-and-longer"))

    def test_a_ray_without_tokens(self, code: CodePackage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("orchestration.submit.hyperpod.manifest.metadata.version", lambda name: "2.51.1")
        with pytest.raises(ConfigError, match=r"Ray 2\.51\.1 has no token authentication"):
            plan(code, *SETTINGS)

    def test_code_that_no_config_map_takes(self, code: CodePackage) -> None:
        (code.folder / "large.py").write_bytes(os.urandom(2**20))
        with pytest.raises(ConfigError, match=r"the code is 10\d\d kB as a \.tar\.xz, and a ConfigMap takes 1000"):
            plan(code, *SETTINGS)


class TestTheRunInThePods:
    def test_paths_are_those_of_the_volume(self, code: CodePackage, tmp_path: Path) -> None:
        run = run_of(manifests(code, *SETTINGS)["ConfigMap"], tmp_path)
        assert (run.ray_address, run.run_dir) == ("auto", "/fsx/rlvr-runs/rlvr-tiny")
        assert (run.rollout_nodes, run.learner_nodes) == (None, None)
        given = [
            "run_dir=/data/me/run",
            "model.name=/data/base",
            "data=gsm8k",
            "data.train_file=s3://bucket/train.jsonl",
        ]
        given += ["data.eval_file=/data/test.jsonl", "hyperpod.fsx_path=/data"]
        run = run_of(manifests(code, *SETTINGS, *given)["ConfigMap"], tmp_path)
        assert (run.run_dir, run.model.name) == ("/data/me/run", "/data/base")
        assert (run.data.train_file, run.data.eval_file) == ("s3://bucket/train.jsonl", "/data/test.jsonl")

    def test_rooms_find_their_nodes(self, code: CodePackage, tmp_path: Path) -> None:
        made = manifests(code, *SETTINGS, *LARGE)
        run = run_of(made["ConfigMap"], tmp_path)
        assert (run.rollout_nodes, run.learner_nodes) == ("rollout", "learner")
        assert run.reward.deployment.model_dump() == {"kind": "actor", "num_cpus": 16.0, "resources": {"reward": 0.001}}
        assert {name: marks(group) for name, group in groups(made["RayJob"]).items()} == {
            "learner": {"learner": 1},
            "rollout": {"rollout": 1},
            "reward": {"reward": 1},
        }

    def test_one_group_has_both_rooms(self, code: CodePackage) -> None:
        (group,) = groups(manifests(code, *SETTINGS)["RayJob"]).values()
        assert marks(group) == {"learner": 1, "rollout": 1}
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 1

    def test_the_reward_services_settings_go_along(self, code: CodePackage, tmp_path: Path) -> None:
        (tmp_path / "service.yaml").write_text("num_workers: 3\n")
        config_map = manifests(code, *SETTINGS, f"reward.settings_file={tmp_path}/service.yaml")["ConfigMap"]
        assert config_map["data"]["service.yaml"] == "num_workers: 3\n"
        assert str(run_of(config_map, tmp_path).reward.settings_file) == "/etc/rlvr/service.yaml"


class TestManifests:
    def test_values_are_not_read_as_a_template(self, code: CodePackage) -> None:
        settings = load_settings("tiny", SETTINGS)
        odd = {"ODD": "${name} $nothing", "HOME": "/home/me"}
        job = JobSpec(name="rlvr-tiny", run=settings.run, code=code, environment=odd)
        ray_job, *_ = job_manifests(job, settings.submit.hyperpod, token="t")
        for pod in pods(ray_job):
            names = [entry["name"] for entry in pod["containers"][0]["env"]]
            assert len(set(names)) == len(names)
            assert odd.items() <= environment(pod).items()

    def test_pods_are_healthy_hosts_not_root_and_get_what_they_ask_for(self, code: CodePackage) -> None:
        made = manifests(code, *SETTINGS, *LARGE)["RayJob"]
        for pod in (*pods(made), made["spec"]["submitterPodTemplate"]["spec"]):
            assert pod["nodeSelector"]["sagemaker.amazonaws.com/node-health-status"] == "Schedulable"
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] == 10001
            assert pod["serviceAccountName"] == "rlvr"
            (container,) = pod["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]

    def test_shared_memory_holds_the_object_store(self, code: CodePackage) -> None:
        cluster = manifests(code, *SETTINGS, *LARGE)["RayJob"]["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (shm,) = (v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
            assert shm["medium"] == "Memory"
            size = int(shm["sizeLimit"].removesuffix("Gi")) * 2**30
            assert int(group["rayStartParams"]["object-store-memory"]) * 2 == size
        head = cluster["headGroupSpec"]["rayStartParams"]
        assert head["runtime-env-agent-port"] == "8266"  # else a head that is slow to start is ended by Ray

    def test_gpus_and_network_adapters(self, code: CodePackage) -> None:
        made = manifests(code, *SETTINGS, *LARGE)["RayJob"]
        resources = {n: g["template"]["spec"]["containers"][0]["resources"]["limits"] for n, g in groups(made).items()}
        assert [resources[n].get("nvidia.com/gpu") for n in ("learner", "rollout", "reward")] == ["8", "8", None]
        assert [resources[n].get("vpc.amazonaws.com/efa") for n in ("learner", "rollout", "reward")] == [
            "4",
            "32",
            None,
        ]
        assert resources["learner"]["memory"] == "960Gi"
        variables = {n: environment(g["template"]["spec"]) for n, g in groups(made).items()}
        assert variables["learner"]["FI_PROVIDER"] == "efa"
        assert "FI_PROVIDER" not in variables["reward"]
        head, *_ = pods(made)
        assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]

    def test_one_host_needs_no_network_adapters(self, code: CodePackage) -> None:
        (group,) = groups(manifests(code, *SETTINGS)["RayJob"]).values()
        assert "vpc.amazonaws.com/efa" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert host_of(GpuGroup(instance_type="ml.p4d.24xlarge", efa=2), "learner").efa == 2

    def test_ray_shows_the_token_of_the_secret_and_only_the_secret_has_it(self, code: CodePackage) -> None:
        made = manifests(code, *SETTINGS, *LARGE)
        assert made["Secret"]["stringData"] == {"auth_token": "secret-of-the-cluster"}
        assert made["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "rlvr-tiny"}
        for pod in pods(made["RayJob"]):
            assert environment(pod)["RAY_AUTH_MODE"] == "token"
            assert environment(pod)["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "rlvr-tiny", "key": "auth_token"}}
            assert environment(pod)["NCCL_DEBUG"] == "WARN"
        assert "secret-of-the-cluster" not in json.dumps([made["RayJob"], made["ConfigMap"]])

    def test_the_queue_lets_it_in(self, code: CodePackage) -> None:
        made = manifests(code, *SETTINGS, *LARGE)["RayJob"]
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert made["spec"]["suspend"]
        assert "suspend" not in manifests(code, *SETTINGS)["RayJob"]["spec"]

    def test_a_dry_run_shows_all_but_the_token_and_the_codes_bytes(self, code: CodePackage) -> None:
        shown = plan(code, *SETTINGS, *LARGE)
        read = list(yaml.safe_load_all(shown.text()))
        assert read == shown.request["manifests"] == json.loads(json.dumps(shown.request))["manifests"]
        ray_job, secret, config_map = read
        assert (ray_job["kind"], secret["kind"], config_map["kind"]) == ("RayJob", "Secret", "ConfigMap")
        assert secret["stringData"] == {"auth_token": "<made when the job is submitted>"}
        assert config_map["binaryData"]["code-0123456789ab.tar.xz"].startswith("<0 kB, sha256 ")
        assert yaml.safe_load(config_map["data"]["run.yaml"])["recipe"] == "tiny"
        assert "&id" not in shown.text()


def crds() -> Path:
    folders = [Path(os.environ.get("RLVR_KUBERAY_CRDS", "")), *(p / "shared" / "kuberay" for p in ROOT.parents)]
    for folder in folders:
        if (folder / "ray.io_rayjobs.yaml").is_file():
            return folder
    pytest.skip("KubeRay's CRDs do not lie beside the repository, and RLVR_KUBERAY_CRDS does not name their folder")


def closed(schema: Any) -> Any:
    """The schema with every object closed that says what it has."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "type" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.fixture(scope="module")
def schema() -> jsonschema.protocols.Validator:
    tree = yaml.load((crds() / "ray.io_rayjobs.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = (v for v in tree["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


class TestKubeRaysSchema:
    @pytest.mark.parametrize("overrides", [[], LARGE], ids=["one group", "everything"])
    def test_our_manifest_is_valid(
        self, code: CodePackage, schema: jsonschema.protocols.Validator, overrides: list[str]
    ) -> None:
        problems = schema.iter_errors(manifests(code, *SETTINGS, *overrides)["RayJob"])
        assert [f"{error.json_path}: {error.message}" for error in problems] == []

    @pytest.mark.parametrize(
        "change",
        [
            lambda job: job["spec"].update(entryPoint="python"),
            lambda job: job["spec"].update(backoffLimit="2"),
            lambda job: job["spec"]["rayClusterSpec"].pop("headGroupSpec"),
            lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="password"),
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(port=6379),
            lambda job: next(iter(groups(job).values())).pop("groupName"),
            lambda job: next(iter(groups(job).values())).update(replica=2),
            lambda job: next(pods(job)).update(serviceaccountname="x"),
            lambda job: next(pods(job))["containers"][0].pop("name"),
            lambda job: next(pods(job))["containers"][0]["env"].append({"name": "A", "values": "b"}),
            lambda job: next(pods(job))["containers"][0]["resources"]["limits"].update(memory="many"),
            lambda job: next(pods(job))["volumes"][2]["emptyDir"].update(size="1Gi"),
            lambda job: next(pods(job))["securityContext"].update(runAsUser="root"),
        ],
    )
    def test_a_mistake_in_it_is_seen(
        self,
        code: CodePackage,
        schema: jsonschema.protocols.Validator,
        change: Callable[[dict[str, Any]], object],
    ) -> None:
        mutated = copy.deepcopy(manifests(code, *SETTINGS, *LARGE)["RayJob"])
        change(mutated)
        assert not schema.is_valid(mutated)


def test_a_job_that_has_ended_stays_as_long_as_the_settings_say(code: CodePackage) -> None:
    ray_job = manifests(code, *SETTINGS, "hyperpod.keep_s=1234", "hyperpod.stop_timeout_s=55")["RayJob"]
    assert ray_job["spec"]["ttlSecondsAfterFinished"] == 1234
    assert {environment(pod).get("RAY_JOB_STOP_WAIT_TIME_S") for pod in pods(ray_job)} == {"55"}


def test_what_a_ray_job_owns_says_so(code: CodePackage) -> None:
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "rlvr-tiny", "uid": "7"}}
    owned = owned_by(manifests(code, *SETTINGS)["Secret"], owner)
    assert owned["metadata"]["ownerReferences"] == [
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "rlvr-tiny", "uid": "7"}
    ]
