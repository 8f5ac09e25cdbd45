"""The commands `audit verify | export | show`. SQLAlchemy and pyarrow are loaded by the commands that need them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from reward_service.audit.decisions import describe
from reward_service.audit.records import Head, read_key


def add_audit_commands(commands: Any) -> None:
    """Adds `verify`, `export` and `show` to the subcommands of `audit`."""
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
    verify.add_argument("--archive", type=Path, metavar="FOLDER", help="where audit.archive_folder is, if it is set")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)

    export = commands.add_parser("export", help="write the decisions as parquet")
    export.add_argument("path", type=Path, metavar="FILE.parquet", help="the file to write")
    _add_database(export)
    export.add_argument("--run-id", help="only the decisions of this run")
    export.set_defaults(run=_export)

    show = commands.add_parser("show", help="explain decisions: the newest of a run or of one item of it")
    _add_database(show)
    show.add_argument("--run-id", help="the run (default: requests that named none)")
    show.add_argument("--id", dest="item_id", help="the item (default: any)")
    show.add_argument("--limit", type=positive, default=20, help="most decisions to show (default: 20)")
    show.add_argument("--json", action="store_true", help="print one JSON object a line")
    show.set_defaults(run=_show)


def _add_database(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--database",
        help="SQLite file, or postgresql+psycopg://USER@HOST/NAME with the password in PGPASSWORD (default: that of "
        "the setting audit.database)",
    )


def _database(arguments: argparse.Namespace) -> str:
    from reward_service.audit.settings import AuditSettings

    return arguments.database or AuditSettings().database


def _verify(arguments: argparse.Namespace) -> int:
    from reward_service.audit.store import AuditStore
    from reward_service.audit.verify import verify

    key = read_key(arguments.hmac_key_file)
    with closing(AuditStore(_database(arguments), key=key, archive=arguments.archive)) as store:
        found = verify(store, expected=arguments.expect_head)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(found), "head": str(found.head), "intact": not found.findings}))
        return int(bool(found.findings))
    for finding in found.findings:
        print(finding)
    if found.num_findings > len(found.findings):
        print(f"and {found.num_findings - len(found.findings)} more")
    state = f"{found.num_findings} findings" if found.findings else "intact"
    if found.num_absent:
        print(f"the first {found.num_absent} records are not here: removed by keep_days, or kept elsewhere")
    print(
        f"{state}: {found.num_decisions} decisions in {found.num_records} records, chained by {found.algorithm}; "
        f"head {found.head}"
    )
    return int(bool(found.findings))


def _export(arguments: argparse.Namespace) -> int:
    from reward_service.audit.export import export_parquet
    from reward_service.audit.store import AuditStore

    with closing(AuditStore(_database(arguments))) as store:
        number = export_parquet(store, arguments.path, run_id=arguments.run_id)
    print(f"{number} decisions in {arguments.path}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from reward_service.audit.store import AuditStore

    with closing(AuditStore(_database(arguments))) as store:
        found = store.explain(arguments.run_id, arguments.item_id, limit=arguments.limit)
    for one in map(describe, found):
        print(json.dumps(one) if arguments.json else _decision_text(one))
    if not found:
        print("no such decision", file=sys.stderr)
    return int(not found)


def _decision_text(record: dict[str, Any]) -> str:
    lines = [
        f"record {record['seq']}, {record['time']}: item {record['item']}, {record['id']!r}, of run "
        f"{record['run_id']!r}, policy version {record['policy_version']}, for {record['caller']}",
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


def _head(text: str) -> Head:
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a head; it looks like 12:5f3a… with 64 hexadecimal digits")
    return Head(int(match[1]), match[2])


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
