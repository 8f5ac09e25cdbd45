"""Episodes: a model and an environment in turns, token in, token out."""
