"""Contact sheets: evaluation videos as rows of frames, to be looked at."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

CELL, MARGIN, LINE, MAX_ROWS = 64, 8, 14, 16


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
