"""Settings of a job on SageMaker HyperPod (EKS with KubeRay). Loads no heavy library."""

from __future__ import annotations

from pydantic import Field

from orchestration.section import Section


class HyperPodConfig(Section):
    """A RayCluster that is there (`address`), or a KubeRay RayJob that is made for the run."""

    address: str | None = Field(None, description="An existing RayCluster: sagemaker_ray://CLUSTER/NAMESPACE.")
    namespace: str = Field("default", description="Of the RayJob.")
    image: str | None = Field(None, description="The training image, docker/rollout_learner.Dockerfile.")
