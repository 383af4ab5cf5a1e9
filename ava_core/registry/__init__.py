"""The MLflow model registry: a version per evaluated model, the gate before `champion`, and the way back to a folder.

Importing this package doesn't import mlflow (3 s); its functions do.
"""

from ava_core.registry.download import download_model
from ava_core.registry.versions import Version, list_versions

__all__ = ["Version", "download_model", "list_versions"]
