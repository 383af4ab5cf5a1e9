"""TensorBoard: event files, which `tensorboard --logdir` reads while they grow."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ava_core.tracking.records import row_points
from ava_core.tracking.sinks.sink import Assignment

DT_STRING = 7
"""TensorFlow's number of strings among its types."""


class TensorBoardSink:
    """See `Sink`. A training that goes on writes all events anew: TensorBoard would show what it was cut back from."""

    last_step = last_time = 0

    def __init__(self, given: Assignment) -> None:
        folder = Path(given.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.address = f"tensorboard --logdir {folder}"
        self._writer = EventFileWriter(str(folder))
        self._write_text("run", _described(given))
        self._writer.flush()

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[int]:
        """A scalar per figure."""
        for row in rows:
            self._write(row, time.time())
            yield int(row["step"])
        self._writer.flush()

    def log_system(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """At the times at which they were measured."""
        for row in rows:
            self._write({name: value for name, value in row.items() if name != "time"}, row["time"] / 1000, "system/")
        self._writer.flush()

    def attach(self, name: str, folder: str) -> None:
        """Event files hold no others."""

    def end(self, status: str) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, row: Mapping[str, Any], when: float, prefix: str = "") -> None:
        points = row_points(row)
        values = [Summary.Value(tag=f"{prefix}{point.name}", simple_value=point.value) for point in points]
        self._writer.add_event(Event(wall_time=when, step=int(row["step"]), summary=Summary(value=values)))

    def _write_text(self, tag: str, text: str) -> None:
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        metadata = create_summary_metadata(display_name=tag, description="")
        value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))


def _described(given: Assignment) -> str:
    """Name, notes, tags and parameters in Markdown, as TensorBoard shows texts."""
    tables = [
        "\n".join([f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])
        for head, values in (("tag", given.tags), ("parameter", given.parameters))
    ]
    return "\n\n".join([f"# {given.name}", *filter(None, [given.notes]), *tables])


def open_sink(given: Assignment) -> TensorBoardSink:
    """An event file that begins anew."""
    return TensorBoardSink(given)
