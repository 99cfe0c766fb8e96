"""Read a run's contact sheets and videos for trackers, once they are whole."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from flash_grpo.tracking.points import Point, TrackedRun

FIRST = "start"  # the sheet of the first evaluation; others are of the last one


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A contact sheet, or a small video, as the bytes of an image file.

    name: samples/end of a sheet, samples.end/03 of a video. suffix: png; gif for a video, which every tracker plays.
    point: the evaluation that it shows. caption: the prompt of a video.
    """

    name: str
    suffix: str
    data: bytes
    point: Point
    caption: str = ""

    @property
    def hash(self) -> str:
        """Return the sha256 of the bytes: the same picture, made again after a kill, is not shown twice."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        return Image.open(io.BytesIO(self.data)).size


def picture_files(directory: Path) -> list[Path]:
    """Return a run's contact sheets and videos."""
    sheets = sorted((directory / "samples").glob("*.png"))
    return [file for sheet in sheets for file in (sheet, *sorted(sheet.with_suffix("").glob("*.webp")))]


def read_pictures(run: TrackedRun, points: list[Point]) -> list[Picture]:
    """Return the pictures that belong to evaluations among `points`; one that is still being written is left for later.

    Sheets other than the first evaluation's are those of the last one, so they wait for the run's completion.
    """
    evaluations = [point for point in points if point.kind == "evaluation"]
    found = []
    for file in picture_files(run.directory) if evaluations else []:
        sheet = file.stem if file.suffix == ".png" else file.parent.name
        if sheet == FIRST or run.status == "completed":
            found.append(_picture(file, sheet, evaluations[0 if sheet == FIRST else -1]))
    return [picture for picture in found if picture]


def _picture(file: Path, sheet: str, point: Point) -> Picture | None:
    """Read one file; None if it is not whole yet."""
    try:
        if file.suffix == ".png":
            Image.open(file).load()
            return Picture(name=f"samples/{sheet}", suffix="png", data=file.read_bytes(), point=point)
        name = f"samples.{sheet}/{file.stem}"
        return Picture(name=name, suffix="gif", data=_as_gif(file), point=point, caption=_prompt(file))
    except (UnidentifiedImageError, OSError, SyntaxError):  # Pillow raises these for a file that is cut short
        return None


def _as_gif(file: Path) -> bytes:
    """Return an animation as GIF: few trackers play WebP."""
    written, video = io.BytesIO(), Image.open(file)
    video.save(written, "GIF", save_all=True, loop=0, duration=video.info.get("duration", 125))
    return written.getvalue()


def _prompt(file: Path) -> str:
    """Return the prompt of a video, by its number in prompts.json; '' if that cannot be read."""
    try:
        return str(json.loads((file.parent / "prompts.json").read_text())[int(file.stem)])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
