"""Write a run to Weights & Biases, or offline, to be sent later: `wandb sync STUDY/wandb/offline-run-*`.

Online if WANDB_MODE says so, or if W&B has a key on this machine. The project is the study, the group the method. W&B takes no
step twice, so each record has a step of its own, a multiple of STRIDE, and pictures have those behind it; curves are drawn over
the iteration. Offline, a run's folder is written anew at each call. Online, W&B is asked for the last step that it has; what a
killed run repeats keeps the times of the first try there, because W&B's history cannot be rewritten.
"""

import os
import shutil
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import wandb

from flash_grpo.tracking.pictures import Picture
from flash_grpo.tracking.points import ITERATION, Point, TrackedRun

LOOK = "offline runs: wandb sync {store}/offline-run-*"
STRIDE = 10
EXIT_CODES = {"completed": 0, "failed": 1, "running": 1}  # a run that may go on is marked as preempted


class Tracker:
    """One run in W&B. See `follow.Tracker`."""

    def __init__(self, run: TrackedRun, spent: list[float], store: Path):
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        if mode == "offline":
            for earlier in store.glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(earlier)
        self.run = wandb.init(
            dir=store.parent,  # in which W&B makes a folder `wandb`
            mode=mode,
            id=run.id,
            resume="allow",
            project=run.study,
            name=run.name,
            group=run.group,
            tags=[value[:64] for value in run.tags.values() if value],
            config=run.described,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.run.define_metric(ITERATION)
        self.run.define_metric("*", step_metric=ITERATION)
        self.held, self.shown = (self.run.starting_step + STRIDE - 1) // STRIDE, _shown(self.run)

    def record(self, points: list[Point]) -> None:
        for point in points:
            row = {**point.values, **point.axes, "_timestamp": point.time}
            self.run.log(row, step=STRIDE * point.position, commit=True)

    def show(self, pictures: list[Picture]) -> None:
        for point, some in groupby(pictures, key=lambda picture: picture.point):
            with TemporaryDirectory() as folder:  # W&B copies the files
                media = {picture.name: _media(picture, Path(folder)) for picture in some}
                self.run.log({**media, **point.axes, "_timestamp": point.time})

    def end(self, status: str, why: str) -> None:
        self.run.summary.update({"status": status, "why": why})
        if status == "running":
            self.run.mark_preempting()
        self.run.finish(exit_code=EXIT_CODES[status])


def _media(picture: Picture, folder: Path) -> "wandb.Image | wandb.Video":
    file = folder / f"{picture.hash}.{picture.suffix}"
    file.write_bytes(picture.data)
    kind = wandb.Image if picture.suffix == "png" else wandb.Video
    return kind(str(file), caption=picture.caption or None)


def _shown(run: wandb.Run) -> set[str]:
    """Return the hashes of the pictures that W&B has of a run that it continues."""
    values = [run.summary.get(key) for key in run.summary.keys()]  # noqa: SIM118 -- not a dictionary
    return {str(value["sha256"]) for value in values if hasattr(value, "get") and value.get("sha256")}
