# The reward service alone: no torch, no Ray, no vLLM.
#
#   docker build --file docker/reward_service.Dockerfile --tag rlvr-reward .
#
# It listens on all addresses of the container, so it demands API keys and does not start without a file of them. Make
# one in a folder and mount the folder, not the file: changing keys replaces the file, and the service then reads it.
#
#   mkdir keys
#   docker run --rm --user "$(id -u)" --volume "$PWD/keys:/etc/rlvr" --entrypoint rlvr rlvr-reward \
#     reward keys add my-trainer --file /etc/rlvr/reward_keys.json
#   docker run --detach --user "$(id -u)" --volume "$PWD/keys:/etc/rlvr:ro" --publish 8300:8300 rlvr-reward
#
# Words after the image's name are settings, as for `rlvr reward serve`: `num_workers=8 audit.database=audit.sqlite3`,
# or `--settings /etc/rlvr/settings.yaml`. Publish another port rather than set one: the health check asks port 8300.
# What it writes (an audit log) goes to /var/lib/rlvr: mount a volume there to keep it.
#
# The reward `code` runs strangers' programs in bubblewrap, which needs user namespaces and a /proc of its own. Docker
# forbids both by default; the service then says that it has resource limits alone. To allow them, and not to start
# without: --security-opt seccomp=unconfined --security-opt systempaths=unconfined … rlvr-reward sandbox.mode=strict
# (and --security-opt apparmor=unconfined where AppArmor is on).

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/rlvr
COPY requirements-reward.lock ./
# It builds the package, and goes again.
RUN echo "setuptools==78.1.1 --hash=sha256:c3a9c4211ff4c309edb8b8c4f1cbfa7ae324c4ba9f91ff254e3d305b9fd54561" >build.lock
# hadolint ignore=DL3059 # the layers of this stage go nowhere
RUN /opt/rlvr/bin/python -m pip install --no-deps --require-hashes --requirement requirements-reward.lock \
    --requirement build.lock
COPY pyproject.toml README.md LICENSE ./
# The command line reads the settings of all four packages; the libraries of three of them stay outside.
COPY reward_service ./reward_service
COPY orchestration ./orchestration
COPY learner ./learner
COPY rollout_server ./rollout_server
RUN /opt/rlvr/bin/python -m pip install --no-deps --no-build-isolation .
# hadolint ignore=DL3059 # the layers of this stage go nowhere
RUN /opt/rlvr/bin/python -m pip uninstall --yes setuptools pip

FROM python:3.11.14-slim-bookworm
# tini reaps what the sandbox's processes leave behind, and hands SIGTERM on.
# hadolint ignore=DL3008 # Debian keeps one version of each in a release, and drops it when it is mended
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/rlvr --create-home rlvr
COPY --from=build /opt/rlvr /opt/rlvr
COPY docker/healthcheck.py /opt/rlvr/healthcheck.py
ENV PATH=/opt/rlvr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/rlvr
EXPOSE 8300
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=20s --retries=3 \
  CMD ["/opt/rlvr/bin/python", "/opt/rlvr/healthcheck.py"]
ENTRYPOINT ["tini", "--", "rlvr", "reward", "serve", "host=0.0.0.0", "keys_file=/etc/rlvr/reward_keys.json"]
