"""The run folder as a ledger: each step is there whole or not at all, and nothing that was there is lost."""
