"""Submitting a run: to this machine, to a Ray cluster, to a SageMaker training job, to HyperPod.

A run configuration becomes a `JobSpec` (`job.py`); a `Backend`, one file each, turns that into what its place takes,
sends it, and answers for it afterwards. What was submitted is written down by `book.py`.
"""
