"""The part of a Kubernetes API server that a TrainJob needs, over HTTP, for the real `kubeflow` SDK to talk to.

Requests are held against the models of Kubeflow Trainer's API (`kubeflow_trainer_api`), and against the rules of its
admission webhook that matter here; what they don't allow is refused as the server would. What the controller and the
kubelet do is up to a test: pods start, lines are logged, the job ends when it says so.
"""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

NAMESPACE = "team"
GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{GROUP}/namespaces/{NAMESPACE}/trainjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"


class FakeCluster:
    """Attributes:
    jobs: TrainJobs by name.
    created: bodies of all requests that created one, in order.
    deleted: names of the TrainJobs that were deleted, in order.
    requests: method and path of all requests.
    on_create: called with the name, in a thread of its own, as a controller would begin to work.
    faults: HTTP statuses to answer the next requests of TrainJobs with.
    lingering: deleted jobs stay, with a deletionTimestamp, for so many requests.
    """

    def __init__(self, runtime):
        self.runtimes = {runtime["metadata"]["name"]: runtime}
        self.jobs, self.created, self.deleted, self.requests = {}, [], [], []
        self.pods, self.logs, self.events = {}, {}, []
        self.on_create = lambda name: None
        self.faults = []
        self.lingering = 0
        self.changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, path):
        entry = {"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "contexts": [entry],
                    "clusters": [{"name": "fake", "cluster": {"server": self.address}}],
                    "users": [{"name": "fake", "user": {}}],
                }
            )
        )
        return path

    def close(self):
        with self.changed:
            for log in self.logs.values():
                log["open"] = False
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    # What a controller and a kubelet do.

    def start_pods(self, name, phase="Running"):
        job = self.jobs[name]
        image = self.runtimes[job["spec"]["runtimeRef"]["name"]]
        image = image["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        for role, index in [("launcher", 0), *(("node", i) for i in range(job["spec"]["trainer"]["numNodes"] - 1))]:
            pod = f"{name}-{role}-0-{index}"
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/replicatedjob-name": role,
                "batch.kubernetes.io/job-completion-index": str(index),
            }
            container = {"name": "node", "image": image["containers"][0]["image"]}
            container["resources"] = job["spec"]["trainer"]["resourcesPerNode"]
            self.pods[pod] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": _now()},
                "spec": {"containers": [container]},
                "status": {"phase": phase},
            }
            with self.changed:
                self.logs.setdefault(pod, {"lines": [], "open": True})

    def log(self, name, *lines):
        with self.changed:
            self.logs[f"{name}-launcher-0-0"]["lines"] += lines
            self.changed.notify_all()

    def cut_log(self, name):
        """Close the connections that follow the log, as a proxy or a kubelet does after some hours."""
        with self.changed:
            self.logs[f"{name}-launcher-0-0"]["cut"] = True
            self.changed.notify_all()

    def end(self, name, condition="Complete", reason="AllJobsCompleted", message="", exit_codes=None):
        """End the job; `exit_codes` by pod: (code, reason)."""
        for pod, (code, why) in (exit_codes or {}).items():
            end = {"terminated": {"exitCode": code, "reason": why}}
            status = {"name": "node", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": end}
            self.pods[pod]["status"] = {"phase": "Failed", "containerStatuses": [status]}
        with self.changed:
            for pod, log in self.logs.items():
                if pod.startswith(name):
                    log["open"] = False
            self.changed.notify_all()
        entry = {"type": condition, "status": "True", "reason": reason, "message": message}
        self.jobs[name]["status"] = {"conditions": [{**entry, "lastTransitionTime": _now()}]}

    def event(self, pod, reason, message):
        self.events.append(
            {
                "metadata": {"name": f"{pod}.{len(self.events)}", "namespace": NAMESPACE},
                "involvedObject": {"kind": "Pod", "name": pod, "namespace": NAMESPACE},
                "reason": reason,
                "message": message,
                "firstTimestamp": _now(),
            }
        )

    # What the API server does.

    def create(self, body):
        faults = refusals(body, self.runtimes)
        if faults:
            return 422, _failure(422, "Invalid", f"TrainJob is invalid: {'; '.join(faults)}")
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, _failure(409, "AlreadyExists", f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.created.append(body)
        stored = json.loads(json.dumps(body))
        stored["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": _now(), "uid": "u"}
        self.jobs[name] = stored
        threading.Thread(target=self.on_create, args=(name,), daemon=True).start()
        return 201, stored

    def read(self, name):
        if name not in self.jobs:
            return 404, _failure(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
        job = self.jobs[name]
        if "deletionTimestamp" in job["metadata"]:
            self.lingering -= 1
            if self.lingering <= 0:
                self._forget(name)
        return 200, job

    def delete(self, name):
        if name not in self.jobs:
            return 404, _failure(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
        self.deleted.append(name)
        self.jobs[name]["metadata"]["deletionTimestamp"] = _now()
        if self.lingering <= 0:
            self._forget(name)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _forget(self, name):
        del self.jobs[name]
        with self.changed:
            for pod in [pod for pod in self.pods if pod.startswith(name)]:
                del self.pods[pod]
                self.logs.pop(pod)["open"] = False
            self.changed.notify_all()


def refusals(body, runtimes):
    """What the API and Kubeflow Trainer's webhook don't allow in a TrainJob, one line each."""
    faults = []
    read = models.TrainerV1alpha1TrainJob.from_dict(body).to_dict()
    if read != body:
        faults.append(f"fields that TrainJob doesn't have: {_differences(body, read)}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", body["metadata"]["name"]):
        faults.append(f"metadata.name: {body['metadata']['name']}")
    for key, value in body["metadata"].get("labels", {}).items():
        if not re.fullmatch(r"([-a-z0-9.]+/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", key) or len(value) > 63:
            faults.append(f"metadata.labels: {key}={value}")
    runtime = runtimes.get(body["spec"]["runtimeRef"]["name"])
    if runtime is None or runtime["kind"] != body["spec"]["runtimeRef"]["kind"]:
        return [*faults, "spec.runtimeRef: must refer to an existing runtime"]
    for amount in body["spec"]["trainer"].get("resourcesPerNode", {}).get("limits", {}).values():
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?([mkMGTPE]|[KMGTPE]i)?", amount):
            faults.append(f"spec.trainer.resourcesPerNode: {amount}")
    jobs = {job["name"]: job for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]}
    for patch in body["spec"].get("runtimePatches", []):
        for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            faults += _patch_faults(job, jobs)
    return faults


def _patch_faults(patch, jobs):
    if patch["name"] not in jobs:
        yield f"runtimePatches: the runtime has no job {patch['name']}"
        return
    own = jobs[patch["name"]]["template"]["spec"]["template"]["spec"]
    names = {container["name"] for container in own["containers"]}
    spec = patch["template"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in [*spec.get("volumes", []), *own.get("volumes", [])]}
    for container in spec.get("containers", []):
        if container["name"] not in names:
            yield f"runtimePatches: {patch['name']} has no container {container['name']}"
        if container.get("env"):
            yield f"runtimePatches: must not have envs for the container {container['name']}"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"runtimePatches: there is no volume {mount['name']}"


def _differences(given, read):
    if isinstance(given, dict) and isinstance(read, dict):
        return {k: _differences(v, read.get(k)) for k, v in given.items() if v != read.get(k)}
    return given


def _failure(code, reason, message):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            path, query = self._note()
            name = path.rpartition("/")[2]
            if path.startswith(JOBS):
                self._answer(*(self._fault() or cluster.read(name)))
            elif path in (f"{GROUP}/namespaces/{NAMESPACE}/trainingruntimes/{name}",) and name in cluster.runtimes:
                self._answer(200, cluster.runtimes[name])
            elif path == f"{CORE}/pods":
                wanted = re.search(r"jobset-name=([^,]+)", query["labelSelector"][0])[1]
                pods = [pod for pod_name, pod in cluster.pods.items() if pod_name.startswith(wanted)]
                self._answer(200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods})
            elif path == f"{CORE}/events":
                items = list(cluster.events)
                self._answer(200, {"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": items})
            elif match := re.fullmatch(rf"{CORE}/pods/([^/]+)/log", path):
                self._stream(match[1], query)
            else:
                self._answer(404, _failure(404, "NotFound", f"{path} not found"))

        def do_POST(self):
            path, _ = self._note()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*(self._fault() or (cluster.create(body) if path == JOBS else (404, {}))))

        def do_DELETE(self):
            path, _ = self._note()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(*(self._fault() or cluster.delete(path.rpartition("/")[2])))

        def _note(self):
            parts = urlsplit(self.path)
            cluster.requests.append((self.command, parts.path))
            return parts.path, parse_qs(parts.query)

        def _fault(self):
            status = cluster.faults.pop(0) if cluster.faults else None
            return (status, _failure(status, "Fault", f"made to fail with {status}")) if status else None

        def _answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, pod, query):
            assert query["container"] == ["node"]
            log = cluster.logs[pod]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0
            while True:
                with cluster.changed:
                    cluster.changed.wait_for(
                        lambda sent=sent: len(log["lines"]) > sent or not log["open"] or log.get("cut"), timeout=250
                    )
                    lines = log["lines"][sent:]
                    over = not log["open"] or log.pop("cut", False)
                for line in lines:
                    data = f"{line}\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                sent += len(lines)
                if over:
                    self.wfile.write(b"0\r\n\r\n")
                    return

    return Handler
