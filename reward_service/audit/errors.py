"""Errors of the audit log that answer no request."""

from __future__ import annotations


class AuditError(Exception):
    """The log cannot be opened, read or written; the message is one sentence with the remedy."""
