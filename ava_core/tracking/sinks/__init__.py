"""Where the figures of a training go while it runs: a module per tracker, with `open_sink`."""

from ava_core.tracking.sinks.sink import MLFLOW, TRACKERS, Assignment, Sink, open_sink, require_installed

__all__ = ["MLFLOW", "TRACKERS", "Assignment", "Sink", "open_sink", "require_installed"]
