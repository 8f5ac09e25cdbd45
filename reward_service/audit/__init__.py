"""The audit log: every decision of the service in a database, chained by hashes, written by a process of its own."""
