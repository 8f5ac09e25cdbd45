"""Looking for records that were changed, dropped, put in or swapped."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from reward_service.audit.records import GENESIS, Head, Row, Segment, record_hash
from reward_service.audit.store import AuditStore, Snapshot

MAX_FINDINGS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a log looks like."""

    num_records: int
    num_decisions: int
    """Items of these records."""
    num_absent: int
    """Records at the beginning that retention removed, or that are kept elsewhere."""
    head: Head | None
    """The last record there is, to be kept elsewhere: who holds it sees later whether the log was shortened."""
    algorithm: str
    findings: tuple[str, ...]
    """What is wrong, the first MAX_FINDINGS; nothing is, if it is empty."""
    num_findings: int


def verify(store: AuditStore, *, expected: Head | None = None) -> Verification:
    """Reads the whole log once, in bounded memory. `expected` is a head seen earlier, which has to be part of it.

    Not covered: somebody who may write to the database can drop the last records and set the head back, and without an
    HMAC key can chain everything again. An `expected` head, kept where that person cannot write, shows both.
    """
    findings: list[str] = []
    num_findings = 0
    walk = _Walk(key=store.key, expected=expected)
    with store.snapshot() as snapshot:
        heads = snapshot.heads()
        for finding in _all_findings(walk, snapshot, heads, store):
            num_findings += 1
            if len(findings) < MAX_FINDINGS:
                findings.append(finding)
    return Verification(
        num_records=walk.num_records,
        num_decisions=walk.num_decisions,
        num_absent=walk.num_absent,
        head=walk.last,
        algorithm=store.algorithm,
        findings=tuple(findings),
        num_findings=num_findings,
    )


def _all_findings(walk: _Walk, snapshot: Snapshot, heads: list[tuple[Head, str]], store: AuditStore) -> Iterator[str]:
    algorithm = store.algorithm
    if len(heads) == 1 and heads[0][1] != algorithm:
        yield (
            f"the log is chained by {heads[0][1]} and is verified by {algorithm}: "
            f"{'give its HMAC key' if heads[0][1].startswith('hmac') else 'it was not written with this HMAC key'}"
        )
    for segment in snapshot.segments():
        yield from _segment_findings(walk, segment, store)
    for row in snapshot.records():
        yield from walk.step(row)
    yield from walk.end([head for head, _ in heads])
    if (finding := snapshot.sessions_finding()) is not None:
        yield finding


def _segment_findings(walk: _Walk, segment: Segment, store: AuditStore) -> Iterator[str]:
    """Walks through what was moved to a file, and past what is not here."""
    if segment.sealed(store.key).seal != segment.seal:
        yield f"the segment up to record {segment.last_seq}: changed; it does not have its seal"
    if segment.first_seq != walk.last.seq + 1:
        yield f"{_span(walk.last.seq + 1, segment.first_seq - 1)} missing before a segment"
    path = store.archive / segment.file
    if segment.file and not path.is_file():
        yield f"{_span(segment.first_seq, segment.last_seq)} missing with the file {path}"
    elif segment.file:
        with closing(AuditStore(str(path), key=store.key)) as moved, moved.snapshot() as snapshot:
            for row in snapshot.records():
                yield from walk.step(row)
        if walk.last.seq < segment.last_seq:
            yield f"{_span(walk.last.seq + 1, segment.last_seq)} missing at the end of the file {path}"
    walk.pass_over(segment)


class _Walk:
    """Goes from record to record; what it holds does not grow."""

    def __init__(self, *, key: bytes | None, expected: Head | None) -> None:
        self.num_records = self.num_decisions = 0
        self.num_absent = 0
        self.last = Head(0, GENESIS)
        self._key = key
        self._expected = expected
        self._expected_seen = expected is None or expected == self.last

    def pass_over(self, segment: Segment) -> None:
        """Goes on behind a segment, whether its records were seen or not."""
        end = Head(segment.last_seq, segment.last_hash)
        self.num_absent += max(0, segment.last_seq - self.last.seq)
        self._expected_seen |= end == self._expected
        self.last = end

    def step(self, row: Row) -> Iterator[str]:
        seq, stored = row["seq"], row["hash"]
        self.num_records += 1
        self.num_decisions += row["num_items"] if isinstance(row["num_items"], int) else 0
        if seq <= self.last.seq:
            yield f"record {seq}: put in; a sequence number of at least {self.last.seq + 1} belongs here"
            return
        if seq > self.last.seq + 1:
            yield f"{_span(self.last.seq + 1, seq - 1)} missing"
        elif row["prev_hash"] != self.last.hash:
            yield f"record {seq}: does not follow record {seq - 1}; one of the two was changed or replaced"
        if not isinstance(stored, str) or not hmac.compare_digest(
            record_hash(row, self._key).encode(), stored.encode("utf-8", "surrogateescape")
        ):
            yield f"record {seq}: changed; its content does not have the hash that is stored with it"
        if self._expected is not None and seq == self._expected.seq:
            self._expected_seen = True
            if stored != self._expected.hash:
                yield f"record {seq}: not the one that was expected there (hash {self._expected.hash})"
        self.last = Head(seq, str(stored))

    def end(self, heads: list[Head]) -> Iterator[str]:
        if len(heads) != 1:
            yield f"the head: there are {len(heads)} rows, and there has to be one"
        for head in heads[:1]:
            if head.seq > self.last.seq:
                yield f"{_span(self.last.seq + 1, head.seq)} missing at the end"
            elif head.seq < self.last.seq:
                yield f"{_span(head.seq + 1, self.last.seq)} put in behind the head"
            elif head.hash != self.last.hash:
                yield f"record {self.last.seq}: replaced; the head names another hash"
        if not self._expected_seen and self._expected is not None and self._expected.seq <= self.num_absent:
            yield f"record {self._expected.seq}: no longer here, so that it cannot be compared; keep a newer head"
        elif not self._expected_seen and self._expected is not None:
            yield f"record {self._expected.seq}: missing, and was the head once (hash {self._expected.hash})"


def _span(first: int, last: int) -> str:
    return f"record {first}:" if first == last else f"records {first} to {last}:"
