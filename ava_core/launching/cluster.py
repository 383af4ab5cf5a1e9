"""A TrainJob from its start to its end, through the `kubeflow` SDK: started or found, watched, explained, removed.

With `submission` the only module that imports `kubeflow` and `kubernetes`, and not before there is a job to start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ava_core.config.train_job import TrainJobConfig
from ava_core.errors import AvaError, ConfigError, first_line, one_line
from ava_core.launching import api_errors
from ava_core.launching.log_stream import LogStream, Shown
from ava_core.launching.submission import container, options_of
from ava_core.launching.trainjob import TrainJob
from ava_core.progress import Progress

if TYPE_CHECKING:
    from kubeflow.trainer import Runtime

log = logging.getLogger(__name__)
COMPLETE, FAILED = "Complete", "Failed"
LAUNCHER_STEP = "node-0"
"""What the SDK calls the launcher of an MPI runtime."""
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
"""How long the cluster may be out of reach before this process gives up, and leaves the job to itself."""
REMOVAL_SECONDS = 120.0
"""How long the pods of a job may take to end before its successor is started."""
DEADLINE_SLACK_SECONDS = 60.0
"""The controller stops a job at its deadline; that much later this process does, if that hasn't happened."""


class Unreachable(AvaError):
    """The cluster doesn't answer any more; the job goes on without us."""


@dataclass(frozen=True)
class _State:
    """A TrainJob as the cluster has it: the condition that ended it (None while it runs), and its reason."""

    ended: str | None
    reason: str
    deleting: bool


class Cluster:
    """The cluster that the current kubeconfig, or the service account of this pod, leads to.

    Args:
        settings: runtime, namespace and time limit.

    Raises:
        ConfigError: the SDK isn't installed, or there is no cluster to talk to.
    """

    def __init__(self, settings: TrainJobConfig) -> None:
        self._settings = settings
        try:
            from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
            from kubernetes.config import ConfigException
        except ImportError as error:
            raise ConfigError(
                f"train.launcher = trainjob: needs the package {error.name}: install `ava-moe[cluster]`"
            ) from error
        logging.getLogger("kubeflow").setLevel(logging.ERROR)
        try:
            self._client = TrainerClient(KubernetesBackendConfig(namespace=settings.namespace))
        except (ConfigException, OSError) as error:
            raise ConfigError(
                f"train.launcher = trainjob: no cluster: {first_line(error)}: set KUBECONFIG, or start this in a pod"
            ) from error
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # the client has set it; we say ourselves what goes wrong
        self._backend: Any = self._client.backend
        self.namespace: str = self._backend.namespace.strip()

    def run(self, job: TrainJob, progress: Progress) -> None:
        """Start the job, or find the running one of its name; show its log until it ends; remove it, however it ended.

        Raises:
            ConfigError: the cluster refuses the job, or the training in it refused its configuration.
            AvaError: the job failed, took too long or was deleted.
            Unreachable: the cluster doesn't answer; the job stays, and the same command finds it again.
        """
        try:
            self._start(job)
            self._watch(job, progress)
        except Unreachable:
            raise
        except BaseException:
            self._remove(job.name)
            raise
        self._remove(job.name)

    def _start(self, job: TrainJob) -> None:
        state = self._ask(job.name)
        if state is not None and (state.ended or state.deleting):
            log.info("train: removing what is left of the TrainJob %s", self._shown(job))
            self._remove(job.name)
            self._await_removal(job.name)
        elif state is not None:
            log.info("train: the TrainJob %s is running already: following it", self._shown(job))
            return
        runtime = self._runtime()
        try:
            self._client.train(runtime=runtime, trainer=container(job, runtime), options=options_of(job))
        except RuntimeError as error:
            if api_errors.status(error) != 409:
                raise self._refused(job, error) from error
            log.info("train: the TrainJob %s has just been started by someone else: following it", self._shown(job))
            return
        nodes = job.kubernetes.train_job.nodes
        log.info("train: started the TrainJob %s on %d machines (%s)", self._shown(job), nodes, runtime.trainer.image)

    def _watch(self, job: TrainJob, progress: Progress) -> None:
        timeout = self._settings.timeout_minutes * 60 + DEADLINE_SLACK_SECONDS
        deadline = time.monotonic() + timeout
        events: set[str] = set()
        with Shown(progress) as shown:
            stream = LogStream(lambda: self._log_lines(job.name))
            while True:
                for line in stream.lines(POLL_SECONDS):
                    shown.show(line)
                state = self._state(job.name)
                if state is None:
                    raise AvaError(f"the TrainJob {self._shown(job)} was deleted by someone else: run the same command")
                if state.ended:
                    for line in stream.rest():
                        shown.show(line)
                if state.ended == COMPLETE:
                    return
                if state.ended:
                    raise self._failure(job, state, shown)
                if time.monotonic() > deadline:
                    raise AvaError(
                        f"the TrainJob {self._shown(job)} didn't end within kubernetes.train_job.timeout_minutes ="
                        f" {self._settings.timeout_minutes}: it was stopped; run the same command to go on"
                    )
                if not shown.count:
                    self._show_events(job.name, events)

    def _log_lines(self, name: str) -> Iterator[str]:
        """Lines of the launcher's log as they come; none before it runs."""
        return self._client.get_job_logs(name, step=LAUNCHER_STEP, follow=True)

    def _show_events(self, name: str, seen: set[str]) -> None:
        """Why the machines aren't there yet: no node is free, an image can't be fetched."""
        with suppress(Exception):  # it is only for people, and not everyone may list events
            for event in self._client.get_job_events(name):
                line = one_line(f"{event.involved_object_name}: {event.reason}: {event.message}")
                if line not in seen:
                    seen.add(line)
                    log.info("cluster: %s", line)

    def _runtime(self) -> Runtime:
        name = self._settings.runtime
        try:
            return self._client.get_runtime(name)
        except (RuntimeError, TimeoutError) as error:
            if api_errors.status(error) == 404:
                raise ConfigError(
                    f"kubernetes.train_job.runtime = {name}: there is none in the namespace {self.namespace}: apply"
                    " what `python -m ava_core.launching.runtime --image IMAGE` prints"
                ) from error
            raise AvaError(f"the cluster doesn't give the runtime {name}: {api_errors.detail(error)}") from error

    def _state(self, name: str) -> _State | None:
        """As `_ask`, also of a cluster that is away for a while.

        Raises:
            Unreachable: no answer for `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._ask(name)
            except Unreachable as error:
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"{error}, for {PATIENCE_SECONDS:.0f} s: the TrainJob {self.namespace}/{name} goes on; the same"
                        " command follows it again"
                    ) from error
                log.warning("%s: trying again", error)
                time.sleep(POLL_SECONDS)

    def _ask(self, name: str) -> _State | None:
        """The job as the cluster has it; None if there is none of this name.

        Raises:
            Unreachable: there was no answer, or one that says nothing about the job.
            AvaError: this may not be asked.
        """
        try:
            found = self._backend.custom_api.get_namespaced_custom_object(*self._resource(), name, _request_timeout=30)
        except Exception as error:
            if api_errors.status(error) == 404:
                return None
            if api_errors.status(error) in (400, 401, 403):
                raise AvaError(
                    f"the cluster doesn't show TrainJobs of {self.namespace}: {api_errors.detail(error)}"
                ) from error
            if not api_errors.is_from_api(error):
                raise
            raise Unreachable(f"the cluster doesn't answer ({api_errors.detail(error)})") from error
        return _read(found)

    def _remove(self, name: str) -> None:
        """Delete the job; it is gone when its pods are."""
        try:
            self._backend.custom_api.delete_namespaced_custom_object(
                *self._resource(), name, propagation_policy="Foreground", _request_timeout=30
            )
        except Exception as error:
            if api_errors.status(error) == 404:
                return
            log.warning(
                "the TrainJob %s/%s could not be removed (%s): kubectl delete trainjob %s -n %s",
                *(self.namespace, name, api_errors.detail(error), name, self.namespace),
            )

    def _await_removal(self, name: str) -> None:
        deadline = time.monotonic() + REMOVAL_SECONDS
        while self._state(name) is not None:
            if time.monotonic() > deadline:
                raise AvaError(
                    f"the TrainJob {self.namespace}/{name} of an earlier attempt doesn't end: look at"
                    f" `kubectl get pods -n {self.namespace}`"
                )
            time.sleep(POLL_SECONDS / 2)

    def _refused(self, job: TrainJob, error: Exception) -> AvaError:
        kind = ConfigError if api_errors.status(error) in (400, 422) else AvaError
        return kind(f"the cluster doesn't take the TrainJob {self._shown(job)}: {api_errors.detail(error)}")

    def _failure(self, job: TrainJob, state: _State, shown: Shown) -> AvaError:
        """One line: the cluster's reason, the containers that ended badly, the end of the launcher's log."""
        ended = self._bad_ends(job.name)
        kind = ConfigError if any(code == ConfigError.exit_code for _, code in ended) else AvaError
        parts = [f"the TrainJob {self._shown(job)} failed", state.reason, *(text for text, _ in ended)]
        if shown.tail():
            parts.append(f"its log ends: {shown.tail()}")
        return kind(one_line("; ".join(filter(None, parts))))

    def _bad_ends(self, name: str) -> list[tuple[str, int]]:
        """Container by container: what it ended with, and its exit code."""
        from kubeflow.trainer.constants import constants

        ends = []
        with suppress(Exception):  # the failure is told without it as well
            selector = constants.POD_LABEL_SELECTOR.format(trainjob_name=name)
            pods = self._backend.core_api.list_namespaced_pod(self.namespace, label_selector=selector)
            for pod in pods.items:
                if pod.status.reason:  # evicted, or its node was lost
                    ends.append((f"{pod.metadata.name}: {pod.status.reason}", 1))
                for container in pod.status.container_statuses or []:
                    end = container.state.terminated
                    if end is not None and end.exit_code:
                        reason = f" ({end.reason})" if end.reason not in (None, "Error") else ""
                        ends.append((f"{pod.metadata.name}: exit code {end.exit_code}{reason}", end.exit_code))
        return ends

    def _resource(self) -> tuple[str, str, str, str]:
        from kubeflow.trainer.constants import constants

        return constants.GROUP, constants.VERSION, self.namespace, constants.TRAINJOB_PLURAL

    def _shown(self, job: TrainJob) -> str:
        return f"{self.namespace}/{job.name}"


def _read(found: dict[str, Any]) -> _State:
    conditions = found.get("status", {}).get("conditions", [])
    for condition in conditions:
        if condition.get("type") in (COMPLETE, FAILED) and condition.get("status") == "True":
            reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return _State(condition["type"], reason, "deletionTimestamp" in found["metadata"])
    return _State(None, "", "deletionTimestamp" in found["metadata"])
