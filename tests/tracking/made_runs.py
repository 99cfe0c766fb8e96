"""Runs made of records alone, and what a tracker should hold of them. Needs no tracker."""

import dataclasses
import io
import struct
from pathlib import Path

from PIL import Image

from flash_grpo.records.files import RecordWriter, write_manifest
from flash_grpo.records.schema import Cost, EvalRecord, FailureRecord, IterationRecord, ProgramStart, RunManifest
from flash_grpo.tracking.points import read_points, read_run

NUMBERS = {item.name: 0.5 for item in dataclasses.fields(IterationRecord) if item.type in ("float", float)}
PROMPTS = (
    "a red circle",
    "a red circle, a very long way from a blue square, both of them moving to the left of a green star",
)


def manifest(directory: Path, status: str = "running", first: str = "2026-11-27T10:00:00+0000", **more) -> RunManifest:
    """Write the run's run.json."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"method": "flash", "model": "tiny", "seed": 3, "config_hash": "c", "schedule": {}, "schedule_hash": ""}
    config = {"schedule": {"noise": "flow", "num_steps": 20}, "optim": {"optimizer": {"lr": 1e-4}}, "track": None}
    about = {"git": {"commit": "abc"}, "packages": {"torch": "2"}, "hardware": {"device": "cpu"}, "world_size": 2}
    known = {**facts, **about, "config": config, "run_name": directory.name, "study": directory.parent.name, **more}
    made = RunManifest(**known, status=status, starts=[ProgramStart(time=first, host="elsewhere", pid=1)])
    write_manifest(directory, made)
    return made


def iteration(number: int, seconds: float) -> IterationRecord:
    """A record whose numbers differ from those of any other."""
    numbers = {**NUMBERS, "reward_mean": number + 0.25, "loss": float("nan")}  # written as null
    cost = Cost(device_seconds=seconds, pflop=number / 1000, forward_evaluations=number * 100)
    parts = {"colour": number / 8, "a/b, strange": 1.0}
    whole = {"optimizer_steps": number, "transitions": 64 * number, "steps": [0.25, 0.75], "reward_parts": parts}
    place = {"iteration": number, "cost": cost, "seconds": {"update": 0.5}, "evaluation_seconds": 1.0}
    return IterationRecord(**{**numbers, **whole, **place})


def evaluation(number: int, seconds: float) -> EvalRecord:
    rewards = {prompt: number + index / 16 for index, prompt in enumerate(PROMPTS)}
    cost = Cost(device_seconds=seconds, pflop=number / 1000)
    place = {"iteration": number, "optimizer_steps": number, "cost": cost, "evaluation_seconds": 1.5}
    return EvalRecord(**place, reward_mean=2.0 + number, reward_sem=None, reward_parts={}, prompt_rewards=rewards, n=2)


def records(last: int, second: float = 1.0, first: int = 0) -> list:
    """The records of iterations `first` + 1 to `last`, each `second` long, with an evaluation before and after each fourth."""
    made = [evaluation(0, 0.0)] if first == 0 else []
    for number in range(first + 1, last + 1):
        seconds = first + (number - first) * second
        made += [iteration(number, seconds), *([evaluation(number, seconds)] if number % 4 == 0 else [])]
    return made


def append(directory: Path, made: list, length: int | None = None) -> int:
    """Append records, after cutting the file back to `length` bytes. Return how long it is."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "records.jsonl"
    writer = RecordWriter(directory, length if length is not None else file.stat().st_size if file.exists() else 0)
    for record in made:
        writer.append(record)
    return writer.length


def failure(number: int) -> FailureRecord:
    return FailureRecord(iteration=number, reason="it broke")


def sheet(directory: Path, name: str, colour: str) -> None:
    """Write a contact sheet and one video, as a run does."""
    folder = directory / "samples" / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(folder.with_suffix(".png"))
    frames = [Image.new("RGB", (16, 16), colour), Image.new("RGB", (16, 16), "white")]
    frames[0].save(folder / "00.webp", save_all=True, append_images=frames[1:], duration=125)
    (folder / "prompts.json").write_text(f'["{PROMPTS[0]}"]')


def wanted(directory: Path) -> dict[tuple[str, int], float]:
    """What a tracker whose steps are iterations should hold: the value of each name at each iteration."""
    points = read_points(read_run(directory))
    found = [((name, point.iteration), value) for point in points for name, value in point.values.items()]
    assert len(found) == len(dict(found)) > 0
    return dict(found)


def whole(data: bytes) -> tuple[int, int]:
    """The size of an image, after reading all of it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.size


def as_float32(values: dict) -> dict:
    """The values as TensorBoard stores them."""
    return {key: struct.unpack("f", struct.pack("f", value))[0] for key, value in values.items()}
