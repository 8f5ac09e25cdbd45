"""Where a training container has what. Each channel of a job is the folder /opt/ml/input/data/CHANNEL on its hosts."""

from __future__ import annotations

from pathlib import PurePosixPath

ML = PurePosixPath("/opt/ml")
CHANNELS_FOLDER = ML / "input/data"
CHECKPOINTS_FOLDER = ML / "checkpoints"
RUN_FOLDER = CHECKPOINTS_FOLDER / "run"
CONFIG, AUTH, MODEL = "config", "auth", "model"
"""Channels: the run's configuration, the cluster's token, the model folder."""
TOKEN_FILE, HOSTS_FILE = "auth_token", "hosts.json"
"""In `auth`, the cluster's token; in `config`, what the hosts are told."""
