"""`rlvr reward audit verify | export | show` and `rlvr reward keys add | list | revoke`.

Only the standard library is loaded here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import RlvrError

if TYPE_CHECKING:
    from reward_service.audit.records import Head
    from reward_service.audit.store import AuditStore

_DATABASE = "reward_audit.sqlite3"  # as in reward_service.audit.settings and reward_service.keys, which load libraries;
_KEYS_FILE = "reward_keys.json"  # a test compares


def add_reward_commands(reward: Any) -> None:
    """Adds `audit` and `keys` to the subcommands of `rlvr reward`."""
    audit = reward.add_parser("audit", help="what was decided: look for manipulation, export, explain")
    _add_audit(audit.add_subparsers(required=True, metavar="COMMAND"))
    keys = reward.add_parser("keys", help="API keys: who may use the service")
    _add_keys(keys.add_subparsers(required=True, metavar="COMMAND"))


def _add_audit(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="find records that were changed, dropped, put in or swapped",
        description="Reads the whole log; exit code 1 if anything is wrong. Prints the head (SEQ:HASH): kept where "
        "nobody who writes to the database can, and given as --expect-head later, it also shows a log that was "
        "shortened or chained anew.",
    )
    _add_database(verify)
    verify.add_argument("--hmac-key-file", type=Path, help="the key of a keyed log (audit.hmac_key_file)")
    verify.add_argument("--expect-head", type=_head, metavar="SEQ:HASH", help="a head printed earlier")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)

    export = commands.add_parser("export", help="write the records as parquet")
    export.add_argument("path", type=Path, metavar="FILE.parquet", help="the file to write")
    _add_database(export)
    export.add_argument("--run-id", help="only the records of this run")
    export.set_defaults(run=_export)

    show = commands.add_parser("show", help="explain decisions: the newest records of a run or of one item of it")
    _add_database(show)
    show.add_argument("--run-id", help="the run (default: requests that named none)")
    show.add_argument("--id", dest="item_id", help="the item (default: any)")
    show.add_argument("--limit", type=_positive, default=20, help="most records to show (default: 20)")
    show.add_argument("--json", action="store_true", help="print one JSON object a line")
    show.set_defaults(run=_show)


def _add_keys(commands: Any) -> None:
    add = commands.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="whose key it is; stands in the audit log")
    add.add_argument("--items-per-s", type=float, help="items a second it may have scored (default: no limit)")
    add.add_argument("--burst", type=_positive, help="items at once after a pause (default: those of 10 seconds)")
    add.set_defaults(run=_keys_add)
    listing = commands.add_parser("list", help="list the keys, without secrets")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=_keys_list)
    revoke = commands.add_parser("revoke", help="revoke a key; a running service knows within a second")
    revoke.add_argument("key", metavar="ID | NAME", help="the key's id or name")
    revoke.set_defaults(run=_keys_revoke)
    for command in (add, listing, revoke):
        command.add_argument("--file", type=Path, default=_KEYS_FILE, help="file of the keys (default: %(default)s)")


def _add_database(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--database",
        default=_DATABASE,
        help="SQLite file, or postgresql+psycopg://USER@HOST/NAME with the password in PGPASSWORD (default: "
        "%(default)s)",
    )


def _verify(arguments: argparse.Namespace) -> int:
    from reward_service.audit.verify import verify

    with _store(arguments.database, key_file=arguments.hmac_key_file) as store:
        found = verify(store, expected=arguments.expect_head)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(found), "head": str(found.head), "intact": not found.findings}))
        return int(bool(found.findings))
    for finding in found.findings:
        print(finding)
    if found.num_findings > len(found.findings):
        print(f"and {found.num_findings - len(found.findings)} more")
    state = f"{found.num_findings} findings" if found.findings else "intact"
    print(f"{state}: {found.num_records} records, chained by {found.algorithm}; head {found.head}")
    return int(bool(found.findings))


def _export(arguments: argparse.Namespace) -> int:
    from reward_service.audit.export import export_parquet

    with _store(arguments.database) as store:
        num_records = export_parquet(store, arguments.path, run_id=arguments.run_id)
    print(f"{num_records} records in {arguments.path}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from reward_service.audit.records import describe

    with _store(arguments.database) as store:
        records = [describe(row) for row in store.explain(arguments.run_id, arguments.item_id, limit=arguments.limit)]
    for record in records:
        print(json.dumps(record) if arguments.json else _record_text(record))
    if not records:
        print("rlvr: no such record", file=sys.stderr)
    return int(not records)


def _record_text(record: dict[str, Any]) -> str:
    lines = [
        f"record {record['seq']}, {record['time']}: item {record['id']!r} of run {record['run_id']!r}, "
        f"policy version {record['policy_version']}, for {record['caller']}",
        f"  total {record['total']}",
    ]
    for name, reward in record["rewards"].items():
        score = reward.get("score")
        said = f"no score ({reward.get('reason')})" if score is None else f"{score:g}"
        version = str(reward.get("version"))[:12]
        lines.append(f"  {name} x {reward.get('weight')}: {said}  {json.dumps(reward.get('details'))}  [{version}]")
    lines += [f"  {name}: {record[name]}" for name in ("prompt", "completion") if record[name] is not None]
    lines.append(f"  completion sha256 {record['completion_sha256']}, hash {record['hash']}")
    return "\n".join(lines)


def _keys_add(arguments: argparse.Namespace) -> int:
    from reward_service.keys import add_key

    with _keys_errors():
        key, text = add_key(arguments.file, arguments.name, items_per_s=arguments.items_per_s, burst=arguments.burst)
    print(f"rlvr: key {key.id} of {key.name}; it is shown this once and kept nowhere:", file=sys.stderr, flush=True)
    print(text)
    return 0


def _keys_list(arguments: argparse.Namespace) -> int:
    from reward_service.keys import read_keys

    with _keys_errors():
        keys = read_keys(arguments.file)
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "created": key.created,
            "revoked": key.revoked,
            "items_per_s": key.items_per_s,
            "burst": key.burst,
        }
        for key in keys
    ]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        limit = "no limit" if row["items_per_s"] is None else f"{row['items_per_s']:g} items/s"
        state = "valid" if row["revoked"] is None else f"revoked {row['revoked']}"
        print(f"{row['id']}  {row['name']:<20}  {limit:<16}  created {row['created']}  {state}")
    return 0


def _keys_revoke(arguments: argparse.Namespace) -> int:
    from reward_service.keys import revoke_key

    with _keys_errors():
        key = revoke_key(arguments.file, arguments.key)
    print(f"revoked key {key.id} of {key.name}")
    return 0


@contextmanager
def _store(database: str, *, key_file: Path | None = None) -> Iterator[AuditStore]:
    from reward_service.audit.errors import AuditError
    from reward_service.audit.records import read_key
    from reward_service.audit.store import AuditStore

    try:
        key = read_key(key_file)
    except (OSError, ValueError) as error:
        raise RlvrError(f"--hmac-key-file: {error}") from error
    try:
        with closing(AuditStore(database, key=key)) as store:
            yield store
    except AuditError as error:
        raise RlvrError(str(error)) from error


@contextmanager
def _keys_errors() -> Iterator[None]:
    from reward_service.keys import KeysError

    try:
        yield
    except KeysError as error:
        raise RlvrError(str(error)) from error


def _head(text: str) -> Head:
    from reward_service.audit.records import Head

    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a head; it looks like 12:5f3a… with 64 hexadecimal digits")
    return Head(int(match[1]), match[2])


def _positive(text: str) -> int:
    if not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
