"""One file a reward; each is a pure function of (completion, reference, params)."""
