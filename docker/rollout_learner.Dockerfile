# The training image, for Ray, KubeRay, HyperPod and SageMaker: rollout workers, learner ranks and the run's driver.
#
#   docker build --file docker/rollout_learner.Dockerfile --tag ACCOUNT.dkr.ecr.REGION.amazonaws.com/rlvr:1.0 .
#
# It holds what our code needs, and not the code: `rlvr submit` sends that with every job. Python, Ray and bash are on the
# PATH; wget is what KubeRay asks its pods' health with; a compiler and Python's headers are what Triton, FlashInfer and
# DeepSpeed build kernels with at run time.
#
# It runs as user 10001, who owns nothing but /var/lib/rlvr and /tmp/ray. SageMaker's training jobs give their folders,
# /opt/ml, to root and take no other user: build for them with `--build-arg USER_ID=0`.
#
# On SageMaker's own PyTorch base, which has EFA:
#   --build-arg BASE=763104351884.dkr.ecr.REGION.amazonaws.com/pytorch-training:TAG --build-arg EFA_VERSION= \
#   --build-arg PYTHON=python3.12
#
# Its CUDA 13 needs NVIDIA's driver R580 on the host, or R535 and the compatibility libraries that its base has (for GPUs of
# data centres). Beside a newer driver these would be in the way, so they are put into the path only where they are needed:
# by the entry point and every bash (cuda_compat.sh), and by a training job's hosts, which start Python alone.
#
# What NCCL is told about EFA belongs to jobs of several hosts, and comes with them: `rlvr submit` sets FI_PROVIDER,
# FI_EFA_USE_DEVICE_RDMA and NCCL_SOCKET_IFNAME. Here is only what is right everywhere.

# torch of requirements-train.lock is built for CUDA 13.0, and the compiler has to be of the same.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}
SHELL ["/bin/bash", "-e", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive
ARG PYTHON=python3.12
# hadolint ignore=DL3008 # Ubuntu keeps one version of each in a release, and drops it when it is mended
RUN set -- ca-certificates curl gcc g++ gnupg libc6-dev libnuma1 ninja-build tini wget \
 && if ! command -v "${PYTHON}"; then set -- "$@" "${PYTHON}" "${PYTHON}-dev" "${PYTHON}-venv"; fi \
 && apt-get update \
 && apt-get install --yes --no-install-recommends "$@" \
 && rm -rf /var/lib/apt/lists/*

# libfabric and NCCL's plugin for it. The kernel's side is the host's. AWS signs the archive; the fingerprint is that of
# its documentation.
ARG EFA_VERSION=1.48.0
ARG EFA_SIGNED_BY=4E9091BCBB97A96B26B15E59A05480B1DD2D3CCC
WORKDIR /tmp/efa
RUN if [ -n "${EFA_VERSION}" ]; then \
      archive="aws-efa-installer-${EFA_VERSION}.tar.gz"; site=https://efa-installer.amazonaws.com; \
      curl --fail --silent --show-error --location --retry 3 --remote-name-all \
        "${site}/${archive}" "${site}/${archive}.sig" "${site}/aws-efa-installer.key"; \
      export GNUPGHOME=/tmp/efa/gnupg; install --directory --mode=700 "${GNUPGHOME}"; \
      gpg --batch --import aws-efa-installer.key; \
      gpg --batch --status-fd 1 --verify "${archive}.sig" "${archive}" | grep "VALIDSIG.*${EFA_SIGNED_BY}"; \
      tar --extract --gzip --no-same-owner --file "${archive}"; \
      apt-get update; \
      env --chdir=aws-efa-installer ./efa_installer.sh --yes --skip-kmod --skip-limit-conf --no-verify; \
      rm -rf /var/lib/apt/lists/*; \
    fi; \
    rm -rf /tmp/efa/*

WORKDIR /var/lib/rlvr
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements-train.lock /opt/requirements-train.lock
RUN "${PYTHON}" -m venv /opt/rlvr \
 && /opt/rlvr/bin/python -m pip install --no-deps --require-hashes --requirement /opt/requirements-train.lock
COPY docker/ray_healthcheck.py /opt/rlvr/ray_healthcheck.py
COPY docker/cuda_compat.sh docker/ray_head.sh /opt/rlvr/

RUN useradd --uid 10001 --home-dir /var/lib/rlvr --no-create-home --shell /bin/bash rlvr \
 && install --directory --owner=10001 --group=10001 /var/lib/rlvr /tmp/ray
ENV PATH=/opt/rlvr/bin:$PATH \
    LD_LIBRARY_PATH=/opt/amazon/efa/lib:/opt/amazon/ofi-nccl/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    BASH_ENV=/opt/rlvr/cuda_compat.sh \
    HOME=/var/lib/rlvr \
    PYTHONUNBUFFERED=1 \
    NCCL_DEBUG=WARN \
    FI_EFA_USE_HUGE_PAGE=0 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0
ARG USER_ID=10001
USER ${USER_ID}
# Whether Ray's node answers; a container without one is unhealthy, which nobody asks of a training job.
HEALTHCHECK --interval=15s --timeout=6s --start-period=90s --retries=4 \
  CMD ["/opt/rlvr/bin/python", "/opt/rlvr/ray_healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "-g", "--", "/opt/rlvr/cuda_compat.sh"]
# A head for this container alone: Ray runs whatever it is sent, so more than loopback needs a token, as in compose.yaml.
CMD ["/opt/rlvr/ray_head.sh"]
