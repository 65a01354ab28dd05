"""gRPC of the learner: control, health, reflection when debugging."""

import logging
from collections.abc import Iterator
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from asympo.common.control.door import ControlDoor
from asympo.common.control.settings import ControlSettings
from asympo.common.errors import NoProgress
from asympo.common.foreign.text import printable
from asympo.common.rollout_log import PolicyAnnouncement
from asympo.learner.control import LearnerControl, LearnerState, SaveRefused
from asympo.v1 import checkpoint_pb2
from asympo.v1 import learner_service_pb2 as messages
from asympo.v1.learner_service_pb2_grpc import LearnerServiceServicer, add_LearnerServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE_NAME = "asympo.v1.LearnerService"
VIEWING = (f"/{SERVICE_NAME}/Status", f"/{SERVICE_NAME}/WatchCheckpoints")
"""Calls that change nothing: a viewer may make them."""
MAX_THREADS = 16
MAX_WATCHERS = MAX_THREADS - 4
"""Streams hold a thread each; some stay free for calls."""
SAVE_TIMEOUT_SECONDS = 600.0
_WATCH_SLICE_SECONDS = 1.0

_STATES = {state: f"LEARNER_STATE_{state.name}" for state in LearnerState}


class LearnerRpc(LearnerServiceServicer):
    """Translates between messages and the one core object."""

    def __init__(self, *, learner: LearnerControl) -> None:
        self._learner = learner
        self._num_watchers = 0

    def Status(
        self, request: messages.LearnerServiceStatusRequest, context: grpc.ServicerContext
    ) -> messages.LearnerServiceStatusResponse:
        status = self._learner.status()
        policy = self._learner.policy
        return messages.LearnerServiceStatusResponse(
            state=_STATES[self._learner.state],
            run=status["run"],
            fence=status["fence"],
            step=status["step"],
            total_steps=status["total_steps"],
            objective=status["objective"],
            latest_policy=None if policy is None else _announcement(policy),
            sequence=status["sequence"],
            committed_sequence=status["committed_sequence"],
            backlog=status["backlog"] or 0,
        )

    def Pause(
        self, request: messages.LearnerServicePauseRequest, context: grpc.ServicerContext
    ) -> messages.LearnerServicePauseResponse:
        if not self._learner.is_paused:
            log.info("Paused on request: %s", printable(request.reason) or "no reason given")
        self._learner.pause(after_step=request.after_step)
        return messages.LearnerServicePauseResponse(state=_STATES[self._learner.state])

    def Resume(
        self, request: messages.LearnerServiceResumeRequest, context: grpc.ServicerContext
    ) -> messages.LearnerServiceResumeResponse:
        if self._learner.is_paused:
            log.info("Resumed on request")
        self._learner.resume()
        return messages.LearnerServiceResumeResponse(state=_STATES[self._learner.state])

    def Save(
        self, request: messages.LearnerServiceSaveRequest, context: grpc.ServicerContext
    ) -> messages.LearnerServiceSaveResponse:
        try:
            commit = self._learner.save(retain=request.retain, timeout_seconds=SAVE_TIMEOUT_SECONDS)
        except SaveRefused as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except NoProgress as error:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        return messages.LearnerServiceSaveResponse(
            state_name=commit.state_name, step=commit.step, sequence=commit.sequence
        )

    def WatchCheckpoints(
        self, request: messages.LearnerServiceWatchCheckpointsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.LearnerServiceWatchCheckpointsResponse]:
        if self._num_watchers >= MAX_WATCHERS:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} callers are watching already")
        self._num_watchers += 1
        try:
            known = (
                (request.after.step, request.after.fence, request.after.manifest_digest)
                if request.HasField("after")
                else None
            )
            last: PolicyAnnouncement | None = None
            while context.is_active() and self._learner.state is not LearnerState.STOPPED:
                policy = self._learner.wait_for_policy(last, _WATCH_SLICE_SECONDS)
                if policy is None:
                    continue
                last = policy
                if (policy.step, policy.fence, policy.digest) != known:
                    yield messages.LearnerServiceWatchCheckpointsResponse(announcement=_announcement(policy))
        finally:
            self._num_watchers -= 1


def _announcement(policy: PolicyAnnouncement) -> checkpoint_pb2.PolicyAnnouncement:
    return checkpoint_pb2.PolicyAnnouncement(
        step=policy.step, fence=policy.fence, manifest_digest=policy.digest
    )


class RpcServer:
    """The control server: our service, the standard health service, reflection only when debugging."""

    def __init__(self, *, learner: LearnerControl, settings: ControlSettings) -> None:
        self._door = ControlDoor(settings, viewing=VIEWING)
        pool = futures.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(pool, options=self._door.options, interceptors=self._door.interceptors())
        self._health = health.HealthServicer()
        self.port = 0
        """Bound port, once started; 0 for a unix socket."""
        add_LearnerServiceServicer_to_server(LearnerRpc(learner=learner), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.debug:
            from grpc_reflection.v1alpha import reflection

            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    def start(self) -> None:
        """Binds and serves; BadSetting when the address is taken or a certificate is wrong."""
        self.port = self._door.bind(self._server)
        self.set_serving(False)
        self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """What the health service says of us."""
        kinds = health_pb2.HealthCheckResponse
        for name in ("", SERVICE_NAME):
            self._health.set(name, kinds.SERVING if is_serving else kinds.NOT_SERVING)

    def stop(self) -> None:
        """Ends, giving calls in flight a moment."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace=1.0).wait(5.0)
