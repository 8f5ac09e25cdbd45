"""One optimizer step: who takes part, which rank computes what, and what is added up."""
