"""Write contact sheets: evaluation videos as rows of frames, for people to look at."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from flash_grpo.records.files import SMALL_VIDEO, SMALL_VIDEOS_PROMPTS

CELL, MARGIN, LINE = 64, 8, 14
FRAME_MS, MOST_FRAMES = 125, 24  # of the small videos; of a longer one as many, evenly spaced, in the same time


def keep(folder: Path, name: str, videos: dict[str, torch.Tensor]) -> None:
    """Write `name`.png, a contact sheet, and the folder `name`/ with each video as an animation (00.webp, …) and prompts.json.

    An animation is CELL pixels high and has at most MOST_FRAMES frames, so that a page can hold many.

    videos: by prompt, the same prompts and noise every time, so that sheets from before and after training can be compared.
    """
    contact_sheet(folder / f"{name}.png", videos)
    (folder / name).mkdir(exist_ok=True)
    for index, video in enumerate(videos.values()):
        first, *others = _frames(video, MOST_FRAMES)
        shown_ms = round(FRAME_MS * len(video) / (1 + len(others)))
        file = folder / name / SMALL_VIDEO.format(index)
        first.save(file, save_all=True, append_images=others, duration=shown_ms, loop=0, quality=80)
    (folder / name / SMALL_VIDEOS_PROMPTS).write_text(json.dumps(list(videos), indent=1) + "\n")


def contact_sheet(path: Path, videos: dict[str, torch.Tensor], max_frames: int = 9) -> None:
    """Write an image with one row per text: the text above frames of its video. videos: uint8 [F, H, W, 3] each, by text."""
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
    """Return at most `max_frames` frames, evenly spaced, CELL pixels high."""
    index = torch.linspace(0, len(video) - 1, min(max_frames, len(video))).round().long()
    images = [Image.fromarray(frame.numpy()) for frame in video[index].cpu()]
    enlarge = Image.Resampling.NEAREST if images[0].height < CELL else Image.Resampling.LANCZOS
    return [image.resize((round(image.width * CELL / image.height), CELL), enlarge) for image in images]
