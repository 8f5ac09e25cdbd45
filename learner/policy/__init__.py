"""The policy: a frozen base with an adapter, its log-probabilities, and both as files."""
