"""An actor's text on the actors page, kept current.

Ray asks an actor for its `repr` once, when it has been made, and the dashboard keeps what Ray told it then. It takes
over what is told later on the same channel too, and that is where this tells it. To those who call the actor such news
is that it lives where it lived. None of this is Ray's public interface: what goes wrong here is passed over.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from grpc import RpcError

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
"""The page asks every four seconds."""
_TIMEOUT_S = 5.0


class ActorText:
    """Of the actor that makes it, in its own process; in a process that is no actor it does nothing."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._actor_id, self._address = context.get_actor_id(), str(context.gcs_address)
        self._text = ""
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, text: str) -> None:
        """Have it shown soon; never waits, never raises."""
        if self._actor_id is None or text == self._text:
            return
        self._text = text
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="actor-text", daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        pause, tell = threading.Event(), None
        while self._changed.wait():
            self._changed.clear()
            try:
                tell = tell or _Teller(self._address, bytes.fromhex(self._actor_id or ""))
                tell(self._text)
            except RpcError:  # a head that is busy: the next text is told again
                tell = None
            except Exception:
                logger.debug("the actor's text is not shown any more", exc_info=True)
                return
            pause.wait(PERIOD_S)


class _Teller:
    def __init__(self, gcs_address: str, actor_id: bytes) -> None:
        from ray._private.gcs_utils import create_gcs_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, pubsub_pb2

        channel = create_gcs_channel(gcs_address)
        actors = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        request = gcs_service_pb2.GetActorInfoRequest(actor_id=actor_id)
        known = actors.GetActorInfo(request, timeout=_TIMEOUT_S).actor_table_data
        self._message = pubsub_pb2.PubMessage(
            channel_type=pubsub_pb2.GCS_ACTOR_CHANNEL, key_id=actor_id, actor_message=known
        )
        # Only this service takes an actor's channel: at the one for logs and errors, such a message ends the GCS.
        self._service: Any = gcs_service_pb2_grpc.ControlPlanePubSubGcsServiceStub(channel)
        self._request = gcs_service_pb2.GcsPublishRequest

    def __call__(self, text: str) -> None:
        self._message.actor_message.repr_name = text
        self._service.GcsPublish(self._request(pub_messages=[self._message]), timeout=_TIMEOUT_S)
