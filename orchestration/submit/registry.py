"""The places that take jobs, by name. Each one's libraries are loaded only when it is used."""

from __future__ import annotations

from orchestration.settings.submit import SubmitConfig
from orchestration.submit.common.job import Backend

PLACES = ("local", "ray", "sagemaker", "hyperpod")


def make_backend(place: str, settings: SubmitConfig) -> Backend:
    """The backend of one of `PLACES`."""
    match place:
        case "local":
            from orchestration.submit.ray.local import LocalBackend

            return LocalBackend(settings)
        case "ray":
            from orchestration.submit.ray.cluster import RayBackend

            return RayBackend(settings)
        case "sagemaker":
            from orchestration.submit.sagemaker.backend import SageMakerBackend

            return SageMakerBackend(settings)
        case _:
            assert place == "hyperpod", place
            from orchestration.submit.hyperpod.backend import HyperPodBackend

            return HyperPodBackend(settings)
