"""What others use of the service without asking a server: its commands, and its rewards in their own process.

Light, as `rlvr --help` waits for what is imported here: libraries are loaded by the functions that need them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_service.audit.commands import add_audit_commands, positive
from reward_service.errors import OperatorError, SettingsError, UsageError
from reward_service.keys import DEFAULT_KEYS_FILE, add_key, read_expiry, read_keys, revoke_key

if TYPE_CHECKING:
    from pydantic import ValidationError

    from reward_service.settings import ServiceSettings
    from reward_service.types import ItemResult, Lack, RewardDescription, RewardItem, RewardSpec

COMMANDS = ("serve", "keys", "audit")


def main(words: Sequence[str] | None = None) -> int:
    """Command line of `python -m reward_service`; without a command it serves.

    Returns:
        The exit code: 0 done, 1 failed with a reason or found something wrong, 2 wrong usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words.insert(0, "serve")
    parser = argparse.ArgumentParser(
        prog="python -m reward_service", description="Scores completions over HTTP. Without a command: serve."
    )
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    arguments = parser.parse_args(words)
    try:
        return int(arguments.run(arguments))
    except OperatorError as error:
        print(f"reward service: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except ModuleNotFoundError as error:
        print(f"reward service: {error.name} is not installed here; serving needs rlvr[service]", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def add_commands(commands: Any) -> None:
    """Adds `serve`, `keys` and `audit` to subcommands. The arguments' `run` takes them, gives the exit code and may
    raise OperatorError.
    """
    serve = commands.add_parser("serve", help="serve rewards over HTTP")
    add_serve_arguments(serve)
    serve.set_defaults(run=_serve)
    keys = commands.add_parser("keys", help="API keys: who may use the service")
    _add_keys(keys.add_subparsers(required=True, metavar="COMMAND"))
    audit = commands.add_parser("audit", help="what was decided: look for manipulation, export, explain")
    add_audit_commands(audit.add_subparsers(required=True, metavar="COMMAND"))


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """What `serve` takes, wherever it is started from."""
    parser.add_argument("--host", help="address to listen on; loopback unless there are keys (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0: a free one (default 8300)")
    parser.add_argument("--processes", type=int, help="processes that take requests at that port (default 1)")
    parser.add_argument("--settings", metavar="FILE", help="YAML or JSON file of settings; - reads standard input")
    parser.add_argument("--parent-pid", type=int, help=argparse.SUPPRESS)  # ends when that is no longer the parent
    parser.add_argument(
        "settings_words", nargs="*", metavar="key=value", help="settings to change, e.g. audit.keep_text=true"
    )


def read_settings(options: argparse.Namespace) -> ServiceSettings:
    """The service's settings.

    Args:
        options: what `add_serve_arguments` reads. Words go before the file, and flags before words.

    Raises:
        SettingsError: a file that cannot be read, or a setting that does not fit; the message names it.
    """
    import yaml
    from pydantic import ValidationError

    from reward_service.settings import ServiceSettings, read_yaml

    try:
        text = "{}"
        if options.settings is not None:
            text = sys.stdin.read() if options.settings == "-" else Path(options.settings).read_text(encoding="utf-8")
        given = read_yaml(text) or {}
        if not isinstance(given, dict):
            raise SettingsError(f"settings: {options.settings} is not a table of settings")
        for word in options.settings_words:
            _set(given, word)
        flags = ("host", "port", "processes")
        given |= {name: value for name in flags if (value := getattr(options, name, None)) is not None}
        return ServiceSettings.model_validate(given)
    except ValidationError as error:
        raise SettingsError(f"settings: {_told(error, ServiceSettings.model_fields)}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"settings: {options.settings} is not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings: {error}") from None


def _told(error: ValidationError, names: Collection[str]) -> str:
    """The first finding with the value and, of a name that is none, the one that may be meant."""
    finding = error.errors(include_url=False)[0]
    place, value = ".".join(map(str, finding["loc"])), finding["input"]
    if finding["type"] == "extra_forbidden":
        near = get_close_matches(str(finding["loc"][-1]), names, n=1) if len(finding["loc"]) == 1 else []
        hint = f"; is {near[0]} meant?" if near else "; reward_service/settings.py lists them"
        return f"there is no setting {place!r}{hint}"
    message = finding["msg"].removeprefix("Value error, ")
    if not place or "key" in place or not isinstance(value, str | int | float):
        return f"{place}: {message}" if place else message
    listed = f"; a list is written {place}='[{value}]'" if finding["type"] == "tuple_type" else ""
    return f"{place}={value!r:.100}: {message}{listed}"


def _set(given: dict[str, Any], word: str) -> None:
    """`a.b=1` in a table of tables."""
    import yaml

    from reward_service.settings import put

    path, equals, value = word.partition("=")
    if not equals or not path:
        raise SettingsError(
            f"{word!r} is neither a command (serve, keys, audit) nor a setting, which is key=value, such as port=8301"
        )
    try:
        put(given, path, yaml.safe_load(value))
    except ValueError as error:
        raise SettingsError(f"settings: {str(error)!r} in {word!r} is not a table") from None


def _serve(arguments: argparse.Namespace) -> int:
    from reward_service.serve import serve

    serve(read_settings(arguments), parent_pid=arguments.parent_pid)
    return 0


def _add_keys(commands: Any) -> None:
    add = commands.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="whose key it is; stands in the audit log")
    add.add_argument("--items-per-s", type=float, help="items a second it may have scored (default: no limit)")
    add.add_argument("--burst", type=positive, help="items at once after a pause (default: those of 10 seconds)")
    add.add_argument("--expires", metavar="TIME", help="when it ends: 30d, 12h or 2027-01-31 (default: never)")
    add.set_defaults(run=_keys_add)
    listing = commands.add_parser("list", help="list the keys, without secrets")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=_keys_list)
    revoke = commands.add_parser("revoke", help="revoke a key; a running service knows within a second")
    revoke.add_argument("key", metavar="ID | NAME", help="the key's id or name")
    revoke.set_defaults(run=_keys_revoke)
    for command in (add, listing, revoke):
        command.add_argument(
            "--file", type=Path, default=DEFAULT_KEYS_FILE, help="file of the keys (default: %(default)s)"
        )


def _keys_add(arguments: argparse.Namespace) -> int:
    expires = None if arguments.expires is None else read_expiry(arguments.expires)
    key, text = add_key(
        arguments.file, arguments.name, items_per_s=arguments.items_per_s, burst=arguments.burst, expires=expires
    )
    print(f"key {key.id} of {key.name}; it is shown this once and kept nowhere:", file=sys.stderr, flush=True)
    print(text)
    return 0


def _keys_list(arguments: argparse.Namespace) -> int:
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "created": key.created,
            "revoked": key.revoked,
            "expires": key.expires,
            "state": key.state,
            "items_per_s": key.items_per_s,
            "burst": key.burst,
        }
        for key in read_keys(arguments.file)
    ]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        limit = "no limit" if row["items_per_s"] is None else f"{row['items_per_s']:g} items/s"
        print(f"{row['id']}  {row['name']:<20}  {limit:<16}  created {row['created']}  {row['state']}")
    return 0


def _keys_revoke(arguments: argparse.Namespace) -> int:
    key = revoke_key(arguments.file, arguments.key)
    print(f"revoked key {key.id} of {key.name}")
    return 0


def describe_rewards(settings: ServiceSettings | None = None) -> Mapping[str, RewardDescription]:
    """The rewards of a service with these settings, by name, as GET /v1/rewards lists them.

    Args:
        settings: of the service; None: those of `rlvr reward serve` without arguments.

    Raises:
        ServiceStartError: a reward of the settings cannot be loaded.
    """
    from reward_service.registry import load_rewards
    from reward_service.settings import ServiceSettings
    from reward_service.types import RewardDescription

    return {
        name: RewardDescription(
            name=name,
            description=reward.description,
            low=reward.low,
            high=reward.high,
            params=reward.params.model_json_schema(),
            reference=reward.reference_keys(),
        )
        for name, reward in load_rewards(settings or ServiceSettings()).items()
    }


def find_lacks(
    rewards: Sequence[RewardSpec], item: RewardItem, settings: ServiceSettings | None = None
) -> Sequence[Lack]:
    """What the rewards, with their parameters, need and the item's reference and metadata do not give.

    A reward that does not say what it reads lacks nothing here; `score_one` shows it.

    Args:
        rewards: what would be asked of the service.
        item: one item; its completion does not matter.
        settings: of the service; None: those of `rlvr reward serve` without arguments.

    Raises:
        ServiceStartError: a reward of the settings cannot be loaded.
        ServiceError: there is no such reward, or its parameters do not fit.
    """
    from reward_service.registry import load_rewards
    from reward_service.scoring import make_plan
    from reward_service.settings import ServiceSettings
    from reward_service.types import Lack

    plan = make_plan(rewards, load_rewards(settings or ServiceSettings()))
    keys = [(planned.reward.name, planned.reward.reference_keys(planned.params)) for planned in plan]
    return [Lack(reward=name, key=key) for name, read in keys if read is not None for key in read.missing(item)]


def score_one(rewards: Sequence[RewardSpec], item: RewardItem, settings: ServiceSettings | None = None) -> ItemResult:
    """Scores one item in this process, as the service would: `code` in its sandbox, deadlines aside.

    No judge is asked: it gets null, `unavailable`.

    Args:
        rewards: what would be asked of the service.
        item: the item; it takes the way over JSON, as it would to the service.
        settings: of the service; None: those of `rlvr reward serve` without arguments.

    Returns:
        A score for each reward, or null with the reason: `invalid_reference` where the reference does not fit.

    Raises:
        ServiceStartError: a reward of the settings cannot be loaded.
        ServiceError: there is no such reward, its parameters do not fit, or the item is not JSON.
    """
    import msgspec

    from reward_service.errors import InvalidRequestError
    from reward_service.registry import load_rewards
    from reward_service.rewards.base import Task
    from reward_service.scoring import apply_reward, make_plan, weighted_total
    from reward_service.settings import ServiceSettings
    from reward_service.types import ItemResult, RewardItem

    plan = make_plan(rewards, load_rewards(settings or ServiceSettings()))
    try:
        sent = msgspec.json.decode(msgspec.json.encode(item), type=RewardItem)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the item {item.id!r:.100} cannot be sent as JSON: {error!s:.200}") from None
    task = Task(sent.completion, sent.reference, sent.prompt, sent.metadata)
    scores = {planned.reward.name: apply_reward(planned, task) for planned in plan}
    return ItemResult(id=item.id, total=weighted_total(plan, scores), rewards=scores)
