"""Read back what trackers hold of a run, with their own readers where they have one."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

from made_runs import whole

from flash_grpo.tracking.points import TrackedRun

Values = list[tuple[tuple[str, int], float]]  # of each name at each iteration, so often as it is there
Pictures = list[tuple[str, int]]  # names, with the iteration of each time that one is there


def of_tensorboard(store: Path, run: TrackedRun) -> tuple[Values, Pictures]:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

    folder = store / f"{run.group}-{run.noise}" / run.name
    if not folder.is_dir():
        return [], []
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()
    values = [((tag, event.step), event.value) for tag in tags["scalars"] for event in events.Scalars(tag)]
    pictures = [(tag, event) for tag in tags["images"] for event in events.Images(tag)]
    assert all(whole(event.encoded_image_string) == (event.width, event.height) for _, event in pictures)
    return values, [(tag, event.step) for tag, event in pictures]


def of_trackio(store: Path, run: TrackedRun) -> tuple[Values, Pictures]:
    values, pictures = [], []
    with sqlite3.connect(store / f"{run.study}.db") as database:
        rows = database.execute("select step, metrics from metrics where run_id = ? order by id", (run.id,)).fetchall()
    for step, text in rows:
        row = json.loads(text)
        assert row.pop("x/iteration") == step
        for name, value in row.items():
            if isinstance(value, dict):
                assert whole((store / "media" / value["file_path"]).read_bytes())
                pictures.append((name, step))
            elif not name.startswith("x/"):
                values.append(((name, step), value))
    return values, pictures


def of_mlflow(store: Path, run: TrackedRun) -> tuple[Values, Pictures]:
    with sqlite3.connect(store / "mlflow.db") as database:
        (id, artifacts), *others = database.execute(
            "select run_uuid, artifact_uri from runs join tags using (run_uuid) "
            "where tags.key = 'flash_grpo.id' and tags.value = ? and lifecycle_stage = 'active'",
            (run.id,),
        ).fetchall()
        found = database.execute("select key, step, value from metrics where run_uuid = ?", (id,)).fetchall()
    assert not others
    files = sorted(Path(artifacts.removeprefix("file://")).rglob("*.*[fg]"))  # gif, png
    assert all(whole(file.read_bytes()) for file in files)
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    return [((name, step), value) for name, step, value in found if name != "position"], [(name, -1) for name in names]


def of_wandb(store: Path, run: TrackedRun) -> tuple[Values, Pictures]:
    from wandb.proto.wandb_internal_pb2 import Record

    (folder,) = store.glob(f"offline-run-*-{run.id}")
    values, pictures, steps = [], [], []
    for data in _leveldb_log((folder / f"run-{run.id}.wandb").read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        row = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        iteration = row["x/iteration",]
        steps.append(row["_step",])
        for (name, *part), value in row.items():
            if part == ["path"]:
                assert whole((folder / "files" / value).read_bytes())
                pictures.append((name, iteration))
            elif not part and name[0] != "_" and not name.startswith("x/"):
                values.append(((name, iteration), value))
    assert steps == sorted(set(steps))
    return values, pictures


def _leveldb_log(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, as W&B writes it: blocks of 32 KiB, after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
