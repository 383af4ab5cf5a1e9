"""MLflow runs: where the server is, one run per registration, its parameters, metrics, data and lineage tags.

Importing this package doesn't import mlflow (3 s); its functions do.
"""

from ava_core.tracking.address import model_url, run_url, tracking_uri

__all__ = ["model_url", "run_url", "tracking_uri"]
