"""Contact sheets: evaluation videos as rows of frames, to be looked at."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

CELL, MARGIN, LINE = 64, 8, 14
FRAME_MS = 125  # of the small videos


def keep(folder: Path, name: str, videos: dict[str, torch.Tensor]) -> None:
    """Write `name`.png, a contact sheet, and `name`/, each video small and playing (WebP, 00.webp, …) with prompts.json.

    The same prompts and noises every time, so that before and after can stand side by side.
    """
    contact_sheet(folder / f"{name}.png", videos)
    (folder / name).mkdir(exist_ok=True)
    for index, video in enumerate(videos.values()):
        first, *others = _frames(video, len(video))
        file = folder / name / f"{index:02d}.webp"
        first.save(file, save_all=True, append_images=others, duration=FRAME_MS, loop=0, quality=80)
    (folder / name / "prompts.json").write_text(json.dumps(list(videos), indent=1) + "\n")


def contact_sheet(path: Path, videos: dict[str, torch.Tensor], max_frames: int = 9) -> None:
    """One row per text, its caption above its frames. videos: uint8 [F, H, W, 3] each, of the texts that are `shown`."""
    frames = [_frames(video, max_frames) for video in videos.values()]
    width = 2 * MARGIN + max(sum(frame.width + 2 for frame in row) for row in frames)
    height = MARGIN + sum(row[0].height + LINE + MARGIN for row in frames)
    sheet = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for text, row in zip(videos, frames, strict=True):
        pen.text((MARGIN, top), text, fill="black")
        for index, frame in enumerate(row):
            sheet.paste(frame, (MARGIN + index * (frame.width + 2), top + LINE))
        top += row[0].height + LINE + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _frames(video: torch.Tensor, max_frames: int) -> list[Image.Image]:
    """At most `max_frames` frames, evenly spaced, CELL pixels high."""
    index = torch.linspace(0, len(video) - 1, min(max_frames, len(video))).round().long()
    images = [Image.fromarray(frame.numpy()) for frame in video[index].cpu()]
    enlarge = Image.Resampling.NEAREST if images[0].height < CELL else Image.Resampling.LANCZOS
    return [image.resize((round(image.width * CELL / image.height), CELL), enlarge) for image in images]
