"""The few calls of Kubernetes that a RayJob needs, with a limit on each and its errors in words."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from orchestration.errors import SubmitError, UnreachableError, one_line
from orchestration.submit.hyperpod.manifest import TOKEN_KEY, Manifest
from orchestration.submit.ray.jobs import DASHBOARD_PORT

_RAY_JOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
_LOGIN = "`aws eks update-kubeconfig --name CLUSTER` writes it"


class NotThereError(SubmitError):
    """Kubernetes has no such object (any more)."""


class KubernetesApi:
    """One namespace. Every method raises SubmitError, in one sentence with the remedy."""

    def __init__(self, *, context: str | None, namespace: str, timeout_s: float) -> None:
        from kubernetes import client, config

        self._namespace, self._timeout_s = namespace, timeout_s
        self._limit = {"_request_timeout": timeout_s}
        self._ray_jobs = {**_RAY_JOBS, "namespace": namespace, **self._limit}
        self._configuration = client.Configuration()
        self._configuration.retries = False  # of urllib3: three more tries would be three more time-outs
        self._configuration.safe_chars_for_path_param = "/:"  # of what a service is asked through its proxy
        try:
            config.load_kube_config(context=context, client_configuration=self._configuration)
        except (config.ConfigException, OSError) as error:
            raise SubmitError(f"no kubeconfig that can be used ({one_line(error)}); {_LOGIN}") from error
        api = client.ApiClient(self._configuration)
        self._core, self._objects = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._heard: dict[str, tuple[bytes, float]] = {}
        """Of each pod, the stamp of the last line that was read, and when."""

    def create(self, manifest: Manifest) -> dict[str, Any]:
        """The object as Kubernetes has it now, its `uid` among the rest."""
        kind = manifest["kind"]
        with self._explained(f"create the {kind}", name=manifest["metadata"]["name"]):
            if kind == "RayJob":
                return dict(self._objects.create_namespaced_custom_object(**self._ray_jobs, body=manifest))
            core = self._core
            create = {"Secret": core.create_namespaced_secret, "ConfigMap": core.create_namespaced_config_map}[kind]
            return dict(create(self._namespace, manifest, **self._limit).to_dict())

    def ray_job(self, name: str) -> dict[str, Any]:
        """Raises NotThereError when it was deleted."""
        with self._explained("read the RayJob", name=name):
            return dict(self._objects.get_namespaced_custom_object(**self._ray_jobs, name=name))

    def delete_ray_job(self, name: str) -> None:
        """With all that it owns. What is gone already is no error."""
        with suppress(NotThereError), self._explained("delete the RayJob", name=name):
            self._objects.delete_namespaced_custom_object(**self._ray_jobs, name=name)

    def stop_in_ray(self, service: str, job_id: str, *, secret: str) -> None:
        """Ask Ray itself, through the API server, to end a job: the driver gets SIGTERM and time to save.

        Args:
            service: the Kubernetes service of the cluster's dashboard.
            secret: name of the Secret with the cluster's token.
        """
        from kubernetes import client

        with self._explained("read the Secret", name=secret):
            found = self._core.read_namespaced_secret(secret, self._namespace, **self._limit)
        token = base64.b64decode(found.data[TOKEN_KEY]).decode()
        # The API server keeps `Authorization` for itself; Ray takes its token under this name as well.
        core = client.CoreV1Api(client.ApiClient(self._configuration, "X-Ray-Authorization", f"Bearer {token}"))
        with self._explained(f"reach the service {service} through the API server (services/proxy)", name=job_id):
            core.connect_post_namespaced_service_proxy_with_path(
                f"{service}:{DASHBOARD_PORT}", self._namespace, f"api/jobs/{job_id}/stop", **self._limit
            )

    def submitter_pods(self, name: str) -> list[str]:
        """Names of the pods that have handed a RayJob to Ray and print its log; the newest last."""
        with self._explained("list the pods", name=name):
            selected = {"label_selector": f"job-name={name}", **self._limit}
            pods = self._core.list_namespaced_pod(self._namespace, **selected).items
        begun = [pod for pod in pods if pod.status.phase != "Pending"]
        return [pod.metadata.name for pod in sorted(begun, key=lambda pod: pod.metadata.creation_timestamp)]

    def pod_log(self, pod: str, *, follow: bool) -> Iterator[str]:
        """Its lines since the last call; with `follow` until its container ends, or prints nothing for a while."""
        from urllib3.exceptions import ReadTimeoutError

        latest, heard = self._heard.get(pod, (b"", 0.0))
        since = {"since_seconds": math.ceil(time.monotonic() - heard) + 1} if latest else {}
        with self._explained("read the log of the pod", name=pod):
            answer = self._core.read_namespaced_pod_log(
                pod, self._namespace, follow=follow, timestamps=True, _preload_content=False, **since, **self._limit
            )
            try:
                for line in answer:  # of urllib3, which keeps what is left of one for the next piece
                    stamp, _, text = line.partition(b" ")
                    if stamp > latest:  # what was asked for twice comes once
                        latest = stamp
                        self._heard[pod] = stamp, time.monotonic()
                        yield text.decode(errors="replace")
            except ReadTimeoutError:
                if not follow:
                    raise
            finally:
                answer.release_conn()

    @contextmanager
    def _explained(self, doing: str, *, name: str = "") -> Iterator[None]:
        """Turns what the client raises into SubmitError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError, NewConnectionError, SSLError, TimeoutError

        what = f"{doing} {name}".strip()
        try:
            yield
        except ApiException as error:
            raise self._refusal(error, what) from error
        except SSLError as error:
            raise SubmitError(f"the certificate of Kubernetes is not trusted ({one_line(error)}); {_LOGIN}") from error
        except (HTTPError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):  # which is one to urllib3
                raise UnreachableError(
                    f"Kubernetes did not answer within {self._timeout_s:g} s when asked to {what}; raise "
                    f"hyperpod.timeout_s, and look by `kubectl -n {self._namespace} get rayjobs` what there is"
                ) from error
            raise UnreachableError(
                f"Kubernetes does not answer at {self._configuration.host} ({one_line(error)}); is the cluster up, "
                f"and the kubeconfig its own? {_LOGIN}"
            ) from error

    def _refusal(self, error: Any, what: str) -> SubmitError:
        status, reason = error.status, _message(error.body) or error.reason
        where = f"namespace {self._namespace!r}"
        match status:
            case 401:
                return SubmitError(
                    f"Kubernetes does not know you any more ({reason}); log in to AWS again, and {_LOGIN}"
                )
            case 403:
                return SubmitError(
                    f"you may not {what} in {where} ({reason}); ask who runs the cluster for that permission"
                )
            case 404 if "page not found" in (error.body or "") or "resource" in reason:
                return SubmitError(
                    "Kubernetes knows no RayJobs: KubeRay 1.6 or later is not installed on this cluster, or the "
                    "kubeconfig's context is another one; set hyperpod.context"
                )
            case 404:
                return NotThereError(f"cannot {what} in {where}: {reason}; is hyperpod.namespace right?")
            case 409:
                return SubmitError(f"cannot {what} in {where}: there is one of that name; choose another job.name")
            case _:
                kind = UnreachableError if status in (429, *range(500, 600)) else SubmitError
                return kind(f"Kubernetes refused to {what} in {where}, with {status}: {reason}")


def _message(body: str | bytes | None) -> str:
    """What the API server says in its Status object, or in plain text."""
    try:
        status = json.loads(body or "")
    except ValueError:
        return one_line(body.decode(errors="replace") if isinstance(body, bytes) else body or "")
    return one_line(status.get("message", "") if isinstance(status, Mapping) else status)
