"""Processes that begin with everything imported: a server that has imported once forks itself for whoever asks.

Forking is safe here because nobody has begun a thread: the server does nothing but import, accept and fork, and it
refuses to fork should an import have left a thread behind.
"""
