"""The arguments of the service, and the settings they come to. Light: `rlvr --help` waits for what is imported here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from reward_service.errors import ServiceStartError

if TYPE_CHECKING:
    from reward_service.settings import ServiceSettings


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """What `rlvr reward serve` takes too."""
    parser.add_argument("--host", help="address to listen on; loopback unless there are keys (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0: a free one (default 8300)")
    parser.add_argument("--settings", metavar="FILE", help="YAML or JSON file of settings; - reads standard input")
    parser.add_argument(
        "settings_words", nargs="*", metavar="key=value", help="settings to change, e.g. audit.keep_text=true"
    )


def read_settings(options: argparse.Namespace) -> ServiceSettings:
    """Settings of the file, then the words, then the flags. ServiceStartError names what is wrong."""
    from pydantic import ValidationError

    from reward_service.scoring import describe
    from reward_service.settings import ServiceSettings

    try:
        text = "{}"
        if options.settings is not None:
            text = sys.stdin.read() if options.settings == "-" else Path(options.settings).read_text(encoding="utf-8")
        given = yaml.safe_load(text) or {}
        if not isinstance(given, dict):
            raise ServiceStartError(f"settings: {options.settings} is not a table of settings")
        for word in options.settings_words:
            _set(given, word)
        given |= {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
        return ServiceSettings.model_validate(given)
    except ValidationError as error:
        raise ServiceStartError(f"settings: {describe(error)}") from None
    except yaml.YAMLError as error:
        raise ServiceStartError(f"settings: {options.settings} is not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceStartError(f"cannot read the settings: {error}") from None


def _set(given: dict[str, Any], word: str) -> None:
    """`a.b=1` in a table of tables."""
    path, equals, value = word.partition("=")
    if not equals or not path:
        raise ServiceStartError(f"{word!r} is not a setting; write key=value, such as port=8301")
    *folders, last = path.split(".")
    table = given
    for folder in folders:
        inner = table.setdefault(folder, {})
        if inner is None:
            inner = table[folder] = {}
        if not isinstance(inner, dict):
            raise ServiceStartError(f"settings: {folder!r} in {word!r} is not a table")
        table = inner
    table[last] = yaml.safe_load(value)
