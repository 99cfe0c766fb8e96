"""Write a run for TensorBoard: `tensorboard --logdir runs/STUDY/tensorboard`. Numbers are stored as float32.

A run is a folder METHOD-NOISE/RUN, so that its name tells method and SDE; the HParams page groups by them too. The step is the
iteration, the relative time the device-seconds of a rank. The folder is written anew at each call, so nothing is there twice.
"""

import json
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.image.metadata import create_summary_metadata as as_image
from tensorboard.plugins.text.metadata import create_summary_metadata as as_text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from flash_grpo.tracking.pictures import Picture
from flash_grpo.tracking.points import Point, TrackedRun, flattened

LOOK = "tensorboard --logdir {store}"
SUFFIX = ".flash_grpo"  # of the event files that are ours, and may be deleted
ENDS = {"completed": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "running": "STATUS_RUNNING"}


class Tracker:
    """One run as a folder of event files. See `follow.Tracker`."""

    def __init__(self, run: TrackedRun, spent: list[float], store: Path):
        self.held, self.shown, self.time = 0, set[str](), run.began
        folder = store / "-".join(filter(None, (run.group, run.noise))).replace("/", "_") / run.name
        for earlier in folder.glob(f"*{SUFFIX}"):
            earlier.unlink()
        self.writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
        # a TensorBoard that shows the deleted files forgets what it has read of them
        self.writer.add_event(Event(session_log=SessionLog(status=SessionLog.START), step=0, wall_time=run.began))
        self._write([_session_start(run), _text("config", json.dumps(run.described, indent=1))], 0, run.began)
        self.writer.flush()

    def record(self, points: list[Point]) -> None:
        for point in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
            self._write(values, point.iteration, point.time)
        self.writer.flush()

    def show(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            width, height = picture.size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=picture.data)
            value = Summary.Value(tag=picture.name, image=image, metadata=as_image("", picture.caption))
            self._write([value], picture.point.iteration, picture.point.time)
        self.writer.flush()

    def end(self, status: str, why: str) -> None:
        ending = SessionEndInfo(status=ENDS[status], end_time_secs=self.time)
        data = HParamsPluginData(session_end_info=ending)
        said = [_text("status", f"{status}: {why}" if why else status), _hparams(hparams.SESSION_END_INFO_TAG, data)]
        self._write(said, 0, self.time)
        self.writer.close()

    def _write(self, values: list[Any], step: int, time: float) -> None:
        self.time = max(self.time, time)
        self.writer.add_event(Event(summary=Summary(value=values), step=step, wall_time=time))


def _text(tag: str, text: str) -> Any:
    tensor = TensorProto(dtype=DT_STRING, string_val=[f"```\n{text}\n```".encode()])
    return Summary.Value(tag=tag, tensor=tensor, metadata=as_text(tag, ""))


def _session_start(run: TrackedRun) -> Any:
    """Return what the HParams page shows of a run: what it is grouped by, and every number of its configuration."""
    info = SessionStartInfo(group_name=run.name, start_time_secs=run.began)
    for name, text in run.tags.items():
        info.hparams[name].string_value = text
    for name, value in flattened(run.config, "config"):
        info.hparams[name.replace("/", ".").removeprefix("config.")].number_value = value
    return _hparams(hparams.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def _hparams(tag: str, data: Any) -> Any:
    return Summary.Value(tag=tag, metadata=hparams.create_summary_metadata(data), tensor=hparams.NULL_TENSOR)
