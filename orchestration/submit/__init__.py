"""Submitting a run: to this machine, to a Ray cluster, to a SageMaker training job, to HyperPod.

A run configuration becomes a `JobSpec` (`common/job.py`). A `Backend`, one a place (`ray/`, `sagemaker/`, `hyperpod/`),
turns that into what its place takes, sends it, and answers for it afterwards; `registry.py` knows them by name. What
was submitted is written down by `common/book.py`.
"""
