"""How a run would go on other machines: the flow in virtual time, measured or stated rates, and the best split."""
