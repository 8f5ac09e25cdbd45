"""What is refused before AWS is asked, and whether a run fits on the hosts. Pure: no SDK, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestration.errors import ConfigError
from orchestration.settings.config import load_settings
from orchestration.submit.common.instances import EFA_ENVIRONMENT, INSTANCES, has_own_disks
from orchestration.submit.sagemaker.checks import check
from orchestration.submit.sagemaker.fitting import efa_environment, num_gpus

ACCOUNT = (
    "sagemaker.role=arn:aws:iam::123456789012:role/service-role/rlvr",
    "sagemaker.bucket=runs.example",
    "sagemaker.region=us-west-2",
    "sagemaker.image=123456789012.dkr.ecr.us-west-2.amazonaws.com/rlvr/learner:1.0",
)
ONE_P4D = (*ACCOUNT, "sagemaker.instance_type=ml.p4d.24xlarge")


def groups(**kinds: tuple[str, int]) -> str:
    """`sagemaker.instance_groups=[…]` of role=(type, count)."""
    listed = [{"role": role, "instance_type": kind, "instance_count": n} for role, (kind, n) in kinds.items()]
    return f"sagemaker.instance_groups={json.dumps(listed)}"


TWO_GROUPS = (*ACCOUNT, groups(rollout=("ml.g5.12xlarge", 1), learner=("ml.p4d.24xlarge", 1)))

ISOLATED = (*ONE_P4D, "sagemaker.network_isolation=true")
VPC = ("sagemaker.subnets=[subnet-1]", "sagemaker.security_group_ids=[sg-1]")
THREE_GROUPS = groups(learner=("ml.g5.xlarge", 1), rollout=("ml.g5.xlarge", 1), reward=("ml.c5.large", 1))


def checked(settings: Sequence[str], recipe: str = "tiny") -> None:
    both = load_settings(recipe, settings)
    sagemaker = both.submit.sagemaker
    check(sagemaker, both.run, region=sagemaker.region)


@pytest.mark.parametrize(
    "settings",
    [
        ONE_P4D,
        (*ACCOUNT, "sagemaker.instance_type=ml.c5.large", "sagemaker.volume_kms_key=k"),
        (*ONE_P4D, "rollout.num_workers=4", "learner.num_ranks=4"),
        (*ONE_P4D, "sagemaker.spot=true", "sagemaker.max_wait_s=100000"),
        (*ONE_P4D, "sagemaker.keep_alive_s=3600"),
        (*ONE_P4D, "sagemaker.max_runtime_s=2419200"),
        (*ONE_P4D, *VPC),
        (*ONE_P4D, "data=gsm8k", "data.train_file=s3://b-1/x/train.jsonl", "data.eval_file=s3://b-1/x/test.jsonl"),
        (*ONE_P4D, "model.name=s3://b-1/models/qwen"),
        (*ONE_P4D, "model.name=Qwen/Qwen2.5-0.5B"),
        (*ONE_P4D, "reward.url=http://10.0.0.7:8000"),
        (*ACCOUNT, "sagemaker.instance_type=ml.m5.large"),
        (*ISOLATED, "model.name=s3://b-1/models/qwen"),
        (*ONE_P4D, *VPC, "sagemaker.image=registry.corp.example:5000/ml/rlvr:1.0"),
        (*ACCOUNT, "sagemaker.instance_type=ml.g4dn.xlarge", "rollout.dtype=float16", "learner.dtype=float32"),
        (*ACCOUNT, "sagemaker.instance_type=ml.p3.2xlarge", "device=cpu"),
        # 2 hosts of 8: 3 workers of 3 leave 2 GPUs of each host, and a rank takes one
        (*ONE_P4D, "sagemaker.instance_count=2", "rollout.tensor_parallel_size=3", "rollout.num_workers=3"),
        TWO_GROUPS,
        (*TWO_GROUPS, "run_dir=/opt/ml/checkpoints/run", "ray_address=auto", "rollout_nodes=rollout"),
        (*ACCOUNT, groups(learner=("ml.m5.large", 1), rollout=("ml.m5.large", 1), reward=("ml.c5.large", 1))),
    ],
)
def test_what_works_is_let_through(settings: Sequence[str]) -> None:
    checked(settings)


def without(name: str) -> tuple[str, ...]:
    return tuple(word for word in ONE_P4D if not word.startswith(f"sagemaker.{name}="))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (without("role"), "sagemaker.role is not set"),
        ((*ONE_P4D, "sagemaker.role=rlvr"), "'rlvr' is not the ARN of an IAM role"),
        ((*ONE_P4D, "sagemaker.role=arn:aws:iam::123456789012:user/me"), "not the ARN of an IAM role"),
        (without("bucket"), "sagemaker.bucket is not set"),
        ((*ONE_P4D, "sagemaker.bucket=s3://runs"), "'s3://runs' is not a bucket's name"),
        ((*ONE_P4D, "sagemaker.bucket=Runs"), "'Runs' is not a bucket's name"),
        ((*ONE_P4D, "sagemaker.bucket=10.0.0.1"), "'10.0.0.1' is not a bucket's name"),
        (without("image"), "sagemaker.image is not set"),
        ((*ONE_P4D, "sagemaker.image=rlvr:latest"), "'rlvr:latest' is not the whole name of an image"),
        ((*ONE_P4D, "sagemaker.image=https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/a"), "not the whole name of"),
        (
            (*ONE_P4D, "sagemaker.image=123456789012.dkr.ecr.eu-west-1.amazonaws.com/rlvr:1.0"),
            "is in eu-west-1, and the job in us-west-2",
        ),
        (
            (*ONE_P4D, "sagemaker.image=123456789012.dkr.ecr.us-west-2.amazonaws.com.cn/rlvr:1.0"),
            "is in no ECR: that of us-west-2 is ACCOUNT.dkr.ecr.us-west-2.amazonaws.com",
        ),
        ((*ONE_P4D, "sagemaker.region=cn-north-1"), "is not of cn-north-1, whose ARNs begin with arn:aws-cn:"),
        ((*ONE_P4D, "sagemaker.image=registry.corp.example/rlvr:1.0"), "is not in ECR, and a registry of your own"),
        ((*ONE_P4D, "sagemaker.registry_credentials=arn:aws:lambda:x"), "is about a registry of your own"),
        (without("region"), "sagemaker.region is not set"),
        ((*ONE_P4D, "sagemaker.region=us-west-9"), "'us-west-9' is none where this botocore knows SageMaker"),
        ((*ISOLATED, "model.name=Qwen/Qwen2.5-0.5B"), "model.name='Qwen/Qwen2.5-0.5B' is not fetched from the hub"),
        ((*ISOLATED, "reward.url=http://10.0.0.7"), "reward.url='http://10.0.0.7' is not reached"),
        ((*ISOLATED, "sagemaker.secrets={HF_TOKEN: ssm:/hf}"), "sagemaker.secrets cannot be fetched"),
        ((*ACCOUNT, "sagemaker.instance_type=ml.p3.2xlarge"), "has the GPU V100 with compute capability 7.0"),
        ((*ACCOUNT, "sagemaker.instance_type=ml.p2.xlarge"), "has the GPU K80 with compute capability 3.7"),
        ((*ACCOUNT, "sagemaker.instance_type=ml.g4dn.xlarge"), "set rollout.dtype=float16 and learner.dtype=float32"),
        (
            (*ACCOUNT, groups(learner=("ml.p4d.24xlarge", 1), rollout=("ml.p3.16xlarge", 1))),
            "ml.p3.16xlarge has the GPU V100",
        ),
        ((*ONE_P4D, "sagemaker.subnets=[subnet-1]"), "sagemaker.security_group_ids is empty"),
        (ACCOUNT, "sagemaker.instance_type is not set"),
        ((*TWO_GROUPS, "sagemaker.instance_type=ml.p4d.24xlarge"), "both set"),
        ((*TWO_GROUPS, "sagemaker.instance_count=2"), "sagemaker.instance_count=2 belongs to instance_type"),
        ((*ACCOUNT, groups(rollout=("ml.g5.xlarge", 1))), "no group with role=learner"),
        ((*ACCOUNT, groups(learner=("ml.g5.xlarge", 1), reward=("ml.c5.large", 1))), "no group with role=rollout"),
        (
            (
                *ACCOUNT,
                "sagemaker.instance_groups=[{role: learner, instance_type: ml.g5.xlarge}, "
                "{role: rollout, instance_type: ml.g5.xlarge}, {role: rollout, instance_type: ml.g6.xlarge}]",
            ),
            "2 groups with role=rollout",
        ),
        ((*ACCOUNT, "sagemaker.instance_type=ml.trn1.32xlarge"), "no GPU but AWS's own chips"),
        (
            (*ONE_P4D, "sagemaker.kms_key=arn:aws:kms:us-east-1:123456789012:key/k"),
            "is not of us-west-2, where the job",
        ),
        (
            (*ONE_P4D, "sagemaker.training_plan=arn:aws-cn:sagemaker:us-west-2:123456789012:training-plan/p"),
            "is not of",
        ),
        (
            (*ONE_P4D, "sagemaker.training_plan=p", "sagemaker.spot=true", "sagemaker.max_wait_s=100000"),
            "capacity that is reserved, and spot=true capacity that is left",
        ),
        ((*ONE_P4D, "sagemaker.tags={'aws:x': y}"), "names that begin with aws: are AWS's own"),
        ((*ONE_P4D, "sagemaker.volume_kms_key=k"), "ml.p4d.24xlarge has disks of its own, which its hardware encrypts"),
        ((*ONE_P4D, "sagemaker.prefix=a/../b"), "sagemaker.prefix='a/../b'"),
        ((*ONE_P4D, "sagemaker.keep_alive_s=99999"), "keep_alive_s=99999: input should be less than or equal to 3600"),
        ((*ONE_P4D, "sagemaker.keep_alive_s=60", "sagemaker.spot=true"), "exclude each other: warm pools do not"),
        ((*TWO_GROUPS, "sagemaker.keep_alive_s=60"), "do not take heterogeneous clusters"),
        ((*ONE_P4D, "sagemaker.spot=true"), "needs sagemaker.max_wait_s"),
        ((*ONE_P4D, "sagemaker.max_wait_s=100000"), "max_wait_s=100000 is about spot"),
        ((*ONE_P4D, "sagemaker.spot=true", "sagemaker.max_wait_s=60"), "max_wait_s=60 is less than"),
        (
            (*ONE_P4D, "sagemaker.max_runtime_s=2419201"),
            "max_runtime_s=2419201: input should be less than or equal to 2419200",
        ),
        ((*ONE_P4D, "run_dir=runs/mine"), "run_dir='runs/mine' cannot be kept"),
        ((*ONE_P4D, "ray_address=ray://10.0.0.7:10001"), "ray_address='ray://10.0.0.7:10001'"),
        ((*ONE_P4D, "rollout_nodes=gpu", "learner_nodes=gpu"), "rollout_nodes='gpu' is set by"),
        ((*TWO_GROUPS, "placement=colocated"), "placement=colocated shares GPUs"),
        ((*ONE_P4D, "reward.url=http://127.0.0.1:8000"), "'http://127.0.0.1:8000' is this machine"),
        ((*ONE_P4D, "reward.url=http://localhost:8000"), "is this machine"),
        ((*ONE_P4D, "reward.url=http://10.0.0.7", "reward.api_key=k"), "reward.api_key would be stored"),
        ((*ONE_P4D, "reward.url=http://10.0.0.7", "reward.api_key_file=nowhere"), "reward.api_key_file='nowhere'"),
        ((*ONE_P4D, "reward.settings_file=nowhere.yaml"), "'nowhere.yaml' is not a file here"),
        ((*ONE_P4D, "reward.deployment={kind: actor, resources: {reward: 1}}"), "asks for 'reward'"),
        (
            (*ACCOUNT, THREE_GROUPS, "reward.url=http://10.0.0.7"),
            "leaves the reward group without work",
        ),
        ((*ONE_P4D, "data=gsm8k", "data.train_file=nowhere.jsonl"), "data.train_file='nowhere.jsonl' is not a file"),
        ((*ONE_P4D, "data=gsm8k", "data.train_file=s3://b-1/folder/"), "'s3://b-1/folder/' is not an object on S3"),
        ((*ONE_P4D, "model.name=./nowhere"), "model.name='./nowhere' is not a folder here"),
        ((*ONE_P4D, "model.name=s3://b-1"), "model.name='s3://b-1' is not a folder on S3"),
        ((*ONE_P4D, "rollout.num_workers=9"), "does not fit on 1 × ml.p4d.24xlarge (8 GPUs)"),
        ((*ACCOUNT, "sagemaker.instance_type=ml.m5.large", "device=cuda"), "(0 GPUs): device=cuda"),
        # 3 workers of 5 and a rank are the 16 GPUs of 2 hosts, but each host takes one worker
        (
            (*ONE_P4D, "sagemaker.instance_count=2", "rollout.tensor_parallel_size=5", "rollout.num_workers=3"),
            "takes 2 such workers",
        ),
        (
            (*ONE_P4D, "sagemaker.instance_count=2", "rollout.num_workers=4", "learner.num_ranks=12"),
            "12 ranks (placement=auto) would be on several hosts",
        ),
        ((*ONE_P4D, "sagemaker.instance_count=2", "placement=colocated"), "(placement=colocated) would be on several"),
        (
            (*ACCOUNT, groups(learner=("ml.p4d.24xlarge", 2), rollout=("ml.p4d.24xlarge", 1)), "learner.num_ranks=16"),
            "16 ranks (placement=auto) would be on several hosts",
        ),
        ((*TWO_GROUPS, "learner.num_ranks=9"), "learner.num_ranks=9 needs as many GPUs"),
        ((*TWO_GROUPS, "rollout.num_workers=5"), "1 × ml.g5.12xlarge of rollout (12 GPUs)"),
        (
            (*ACCOUNT, groups(learner=("ml.p4d.24xlarge", 1), rollout=("ml.m5.large", 1))),
            "1 × ml.m5.large of rollout has no GPU, and the other hosts have",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings: Sequence[str], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        checked(settings)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no weights"):
        checked((*ONE_P4D, f"model.name={tmp_path}"))


def test_types_with_disks_of_their_own() -> None:
    with_disks = (
        "p4d.24xlarge",
        "p5.48xlarge",
        "g4dn.xlarge",
        "g5.xlarge",
        "g6e.xlarge",
        "p3dn.24xlarge",
        "m5dn.large",
    )
    without_disks = ("p3.2xlarge", "c5.large", "c5n.large", "m6i.large", "r6in.large", "g3.4xlarge")
    assert all(has_own_disks(f"ml.{name}") for name in with_disks)
    assert not any(has_own_disks(f"ml.{name}") for name in without_disks)


@pytest.mark.parametrize(
    ("instance_type", "gpus"),
    [
        ("ml.p4d.24xlarge", 8),
        ("ml.g5.xlarge", 1),
        ("ml.g4dn.12xlarge", 4),
        ("ml.m5.large", 0),
        ("ml.trn1.32xlarge", 0),
        ("ml.p9.48xlarge", None),
    ],
)
def test_gpus_of_a_host(instance_type: str, gpus: int | None) -> None:
    assert num_gpus(instance_type) == gpus


def test_efa_is_set_up_from_two_hosts_on() -> None:
    def environment(*settings: str) -> dict[str, str]:
        return efa_environment(load_settings("tiny", settings).submit.sagemaker)

    p4d = "sagemaker.instance_type=ml.p4d.24xlarge"
    assert environment(p4d) == {}
    assert environment(p4d, "sagemaker.instance_count=2") == EFA_ENVIRONMENT
    assert environment("sagemaker.instance_type=ml.g5.xlarge", "sagemaker.instance_count=2") == {}
    assert environment(groups(learner=("ml.p4d.24xlarge", 1), rollout=("ml.p5.48xlarge", 1))) == EFA_ENVIRONMENT


def test_the_table_of_instances_names_types_that_sagemaker_has() -> None:
    from botocore.session import Session

    shape = Session().get_service_model("sagemaker").shape_for("TrainingInstanceType")
    assert set(INSTANCES) <= set(shape.enum)
