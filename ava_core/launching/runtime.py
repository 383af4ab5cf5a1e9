"""The training runtime that the TrainJob refers to, as a manifest for `kubectl apply -f -`.

    python -m ava_core.launching.runtime --image REGISTRY/ava-moe@sha256:... --namespace kubeflow

Kubeflow Trainer has a cluster-wide runtime `deepspeed-distributed`. A TrainJob's image reaches only the launcher of an
MPI runtime, not its nodes (kubeflow/trainer#4030), so the nodes would run Trainer's own image. This is the same runtime
for one namespace, where it takes precedence, with Ava's image, user and ssh folder in both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ava_core.launching.mpi import SSH_FOLDER, SSH_PORT

NAME = "deepspeed-distributed"
USER, GROUP = 10001, 0
"""Those of Ava's image."""


def node_command(ssh: Path = SSH_FOLDER, port: int = SSH_PORT) -> list[str]:
    """sshd on a node: in the foreground, without root, open to the job's own key alone, which is also the host's."""
    settings = {
        "HostKey": ssh / "id_rsa",
        "AuthorizedKeysFile": ssh / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",  # the mounted files belong to root and can be read by the group
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    return ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(port), *options]


def manifest(image: str, name: str = NAME, namespace: str | None = None) -> dict[str, Any]:
    """The TrainingRuntime, a Kubernetes object.

    Args:
        image: of launcher and nodes; by digest, so that all of them run the same.
        name: as in kubernetes.train_job.runtime.
        namespace: of the TrainJobs that may use it; None: where kubectl applies it.
    """
    node = _job("node", image, {"command": node_command(), "readinessProbe": {"tcpSocket": {"port": SSH_PORT}}})
    launcher = _job("launcher", image, {})
    launcher["dependsOn"] = [{"name": "node", "status": "Ready"}]
    launcher["template"]["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {
            "name": name,
            **({"namespace": namespace} if namespace else {}),
            "labels": {"trainer.kubeflow.org/framework": "deepspeed"},
        },
        "spec": {
            "mlPolicy": {
                "numNodes": 1,
                "mpi": {
                    "numProcPerNode": 1,  # `mpi` writes a hostfile of its own, with the slots that are wanted
                    "mpiImplementation": "OpenMPI",
                    "sshAuthMountPath": str(SSH_FOLDER),
                    "runLauncherAsNode": True,
                },
            },
            "template": {
                "spec": {
                    "network": {"publishNotReadyAddresses": True},
                    "successPolicy": {"operator": "All", "targetReplicatedJobs": ["launcher"]},
                    "replicatedJobs": [node, launcher],
                }
            },
        },
    }


def _job(name: str, image: str, container: dict[str, Any]) -> dict[str, Any]:
    """A replicated job; a failure is final, for the step starts the whole job again, from its last checkpoint."""
    return {
        "name": name,
        "template": {
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "securityContext": {
                            "runAsNonRoot": True,
                            "fsGroup": GROUP,
                            "fsGroupChangePolicy": "OnRootMismatch",
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "volumes": [
                            {"name": "tmp", "emptyDir": {}},
                            # Ranks of a machine talk through it, DeepSpeed's and NCCL's; the default is 64 MiB.
                            {"name": "shm", "emptyDir": {"medium": "Memory"}},
                        ],
                        "containers": [
                            {
                                "name": "node",
                                "image": image,
                                "securityContext": {
                                    "runAsUser": USER,
                                    "runAsGroup": GROUP,
                                    "allowPrivilegeEscalation": False,
                                    "readOnlyRootFilesystem": True,
                                    "capabilities": {"drop": ["ALL"]},
                                },
                                "volumeMounts": [
                                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                                    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
                                ],
                                **container,
                            }
                        ],
                    }
                },
            }
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m ava_core.launching.runtime", description="Print the runtime of Ava's TrainJobs."
    )
    parser.add_argument("--image", required=True, help="Ava's image, for launcher and nodes, by digest")
    parser.add_argument(
        "--name",
        default=NAME,
        help="name of the TrainingRuntime, as in kubernetes.train_job.runtime (default: %(default)s)",
    )
    parser.add_argument("--namespace", help="namespace of the TrainingRuntime (default: where kubectl applies it)")
    options = parser.parse_args(arguments)
    yaml.safe_dump(manifest(options.image, options.name, options.namespace), sys.stdout, sort_keys=False)


if __name__ == "__main__":
    main()
