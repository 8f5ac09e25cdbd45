from rlvr_sums.taskset import SumsTaskset

__all__ = ["SumsTaskset"]
