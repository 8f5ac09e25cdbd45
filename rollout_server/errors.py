"""What can go wrong in a rollout worker. Constructors take one message, so that every error survives pickling."""

from __future__ import annotations


class RolloutError(RuntimeError):
    """Base of the errors below."""


class EngineStartError(RolloutError):
    """The vLLM engine did not come up."""

    @classmethod
    def timed_out(cls, model_path: str, device: str, limit_s: float) -> EngineStartError:
        """It took longer than `start_timeout_s`."""
        return cls(
            f"vLLM did not start on {model_path!r} ({device}) within {limit_s:g} s; raise rollout.start_timeout_s if "
            "the model is large"
        )


class EngineDeadError(RolloutError):
    """The vLLM engine died; the message says which process, and how."""


class GenerationError(RolloutError):
    """The engine answered, but not with finished completions."""


class RolloutTimeoutError(RolloutError):
    """Generation or publishing did not end within its limit."""


class AdapterCorruptError(RolloutError):
    """The files of an adapter version are damaged, or not those that were sent."""


class AdapterMismatchError(RolloutError):
    """A probe showed that what is served is not what the learner trained."""


class StaleAdapterError(AdapterMismatchError):
    """A probe showed that the version before (or no adapter at all) is still served."""


class FullTensorsError(RolloutError):
    """The whole tensors of an adapter do not fit the served model; nothing was changed."""


class EngineSpoiledError(RolloutError):
    """A publish of whole tensors failed on its way: what the engine holds is no version, and it does not generate."""
