"""A SageMaker training job without SageMaker: takes the request, makes the hosts, runs what the request says.

Each host has a network, mount, UTS and PID namespace of its own: its /opt/ml, /tmp, /opt, /dev/shm and host name, an
`eth0` on a bridge that all hosts share, and the container's entry point as process 1. Nothing of it is left in the
machine's own namespaces. Needs root.

Not emulated: GPUs, EFA, IAM, the image (this interpreter serves as its Python), a limit on memory or processors.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.waiting import until

NETWORK = "10.177.0"
_BRIDGE = "ip link set lo up; ip link add jobs type bridge; ip link set jobs up; touch {ready}; exec sleep infinity"
_HOST = """
set -e
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip address add {ip}/24 dev eth0
ip link set eth0 up
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs -o size=1g tmpfs /dev/shm
{keep}
mount --rbind {folder}/opt /opt
mount --rbind {folder}/tmp /tmp
cd /
exec env -i {environment} {command}
"""


def namespaces_missing() -> str | None:
    """Why hosts cannot be emulated on this machine; None: they can."""
    if missing := [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed"
    probe = "ip link add v0 type veth peer name v1 && ip link add br0 type bridge && mount -t tmpfs tmpfs /opt"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


@dataclass(slots=True)
class Host:
    """One host of the job; `process` ends with it."""

    name: str
    group: str
    instance_type: str
    ip: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def ml(self) -> Path:
        return self.folder / "opt/ml"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def failure(self) -> str | None:
        file = self.ml / "output/failure"
        return file.read_text() if file.exists() else None

    def files(self, under: str) -> list[str]:
        """What lies in a folder of /opt/ml, as relative paths."""
        root = self.ml / under
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def send(self, number: signal.Signals) -> None:
        """A signal to process 1 of the host, as the platform sends it."""
        assert self.process is not None, "start() comes first"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)


@dataclass(slots=True)
class EmulatedJob:
    """The hosts of a job, made from the parameters of `CreateTrainingJob`.

    Args:
        channels: content of each channel, by its name.
        checkpoints: what the checkpoint folder of every host begins with, as SageMaker brings it back from S3.
        environment: beside the request's, for all hosts.
        keep: folders that hosts see although they lie under /tmp or /opt.
    """

    request: Mapping[str, Any]
    channels: Mapping[str, Path]
    folder: Path
    checkpoints: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[Path, ...] = ()
    hosts: dict[str, Host] = field(default_factory=dict)
    _bridge: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedJob:
        self._make_hosts()
        for host in self.hosts.values():
            self._lay_out(host)
        ready = self.folder / "bridge"
        command = ["unshare", "--net", "sh", "-ec", _BRIDGE.format(ready=ready)]
        self._bridge = subprocess.Popen(command)
        until(ready.exists, 10)
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*(host.process for host in self.hosts.values()), self._bridge]:
            if process is not None:
                process.kill()  # --kill-child: the host's process 1 goes with it, and all of the host with that
                process.wait(30)

    def start(self, *names: str) -> None:
        """Start all hosts, or only those named."""
        for name in names or self.hosts:
            self._start(self.hosts[name])

    def wait(self, timeout_s: float) -> dict[str, int]:
        """Exit status of every started host; raises TimeoutExpired when one is still there after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        started = {name: host.process for name, host in self.hosts.items() if host.process is not None}
        return {name: process.wait(max(0.1, deadline - time.monotonic())) for name, process in started.items()}

    def wait_for_line(self, host: str, pattern: str, timeout_s: float) -> None:
        """Until the host has printed something that matches; raises AssertionError with its log when it does not."""
        log = self.hosts[host]
        until(
            lambda: re.search(pattern, log.log),
            timeout_s,
            poll_s=0.1,
            told=lambda: f"did {host} print {pattern!r}:\n{log.log[-3000:]}",
        )

    def metrics(self) -> dict[str, list[float]]:
        """What the request's metric definitions find in the logs of all hosts."""
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions") or ()
        lines = [line for host in self.hosts.values() for line in host.log.splitlines()]
        found = {d["Name"]: [m[1] for line in lines for m in re.finditer(d["Regex"], line)] for d in definitions}
        return {name: [float(value) for value in values] for name, values in found.items()}

    def _make_hosts(self) -> None:
        resources = self.request["ResourceConfig"]
        groups = resources.get("InstanceGroups") or [{**resources, "InstanceGroupName": "homogeneousCluster"}]
        for group in groups:
            for _ in range(group["InstanceCount"]):
                number = len(self.hosts) + 1
                host = Host(
                    name=f"algo-{number}",
                    group=group["InstanceGroupName"],
                    instance_type=group["InstanceType"],
                    ip=f"{NETWORK}.{number}",
                    folder=self.folder / f"algo-{number}",
                )
                self.hosts[host.name] = host

    def _lay_out(self, host: Host) -> None:
        for name in ("input/config", "input/data", "model", "output/data"):
            (host.ml / name).mkdir(parents=True)
        (host.folder / "tmp").mkdir()
        (host.folder / "log").touch()
        names = "".join(f"{other.ip} {other.name}\n" for other in self.hosts.values())
        (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        if self.checkpoints is None:
            (host.ml / "checkpoints").mkdir()
        else:
            shutil.copytree(self.checkpoints, host.ml / "checkpoints")
        inputs = {}
        for channel in self.request["InputDataConfig"]:
            source = channel["DataSource"]["S3DataSource"]
            if host.group in (source.get("InstanceGroupNames") or [host.group]):
                name = channel["ChannelName"]
                shutil.copytree(self.channels[name], host.ml / "input/data" / name)
                inputs[name] = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
        config = host.ml / "input/config"
        (config / "inputdataconfig.json").write_text(json.dumps(inputs))
        (config / "hyperparameters.json").write_text(json.dumps(self.request.get("HyperParameters") or {}))
        (config / "resourceconfig.json").write_text(json.dumps(self._resource_config(host)))

    def _resource_config(self, host: Host) -> dict[str, Any]:
        groups: dict[str, list[Host]] = {}
        for other in self.hosts.values():
            groups.setdefault(other.group, []).append(other)
        return {
            "current_host": host.name,
            "current_instance_type": host.instance_type,
            "current_group_name": host.group,
            "hosts": sorted(self.hosts),  # as text: algo-10 before algo-2
            "instance_groups": [
                {
                    "instance_group_name": name,
                    "instance_type": members[0].instance_type,
                    "hosts": sorted(member.name for member in members),
                }
                for name, members in groups.items()
            ],
            "network_interface_name": "eth0",
        }

    def _start(self, host: Host) -> None:
        algorithm = self.request["AlgorithmSpecification"]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp/home",
            "LANG": "C.UTF-8",
            **(self.request.get("Environment") or {}),
            **self.environment,
            "TRAINING_JOB_NAME": self.request["TrainingJobName"],
        }
        keep = [path.resolve() for path in (*self.keep, Path(sys.prefix), Path(sys.base_prefix))]
        script = _HOST.format(
            ip=host.ip,
            name=host.name,
            folder=shlex.quote(str(host.folder)),
            keep="\n".join(
                f"mkdir -p {place} && mount --bind {shlex.quote(str(path))} {place}"
                for path in keep
                if path.parts[1] in ("tmp", "opt")
                for place in [shlex.quote(f"{host.folder}{path}")]
            ),
            environment=" ".join(shlex.quote(f"{name}={value}") for name, value in environment.items()),
            command=shlex.join([*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]),
        )
        spaces = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        with (host.folder / "log").open("ab") as log:
            host.process = subprocess.Popen(
                ["unshare", *spaces, "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._plug_in(host)

    def _plug_in(self, host: Host) -> None:
        """Give the host its eth0, the other end of which is on the bridge."""
        assert host.process is not None
        assert self._bridge is not None
        net = Path(f"/proc/{host.process.pid}/ns/net")
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(net) != own, 10)
        plug = f"v{host.ip.rpartition('.')[2]}"
        add = f"ip link add {plug} type veth peer name eth0 netns {host.process.pid}"
        enter = ["nsenter", "--target", str(self._bridge.pid), "--net", "sh", "-ec"]
        subprocess.run(
            [*enter, f"{add}; ip link set {plug} master jobs; ip link set {plug} up"], check=True, timeout=10
        )
