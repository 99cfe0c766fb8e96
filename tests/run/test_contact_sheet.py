"""The small videos that a run keeps: few frames, little memory, the same time."""

import json

import torch
from PIL import Image

from flash_grpo.run.contact_sheet import CELL, FRAME_MS, MOST_FRAMES, keep


def test_a_long_and_large_video_is_kept_small_and_takes_the_same_time(tmp_path):
    short = torch.randint(256, (9, 16, 16, 3), dtype=torch.uint8)
    long = torch.randint(256, (81, 480, 832, 3), dtype=torch.uint8)
    keep(tmp_path, "end", {"a short one": short, "a long one": long})
    for index, (frames, count) in enumerate(((9, 9), (81, MOST_FRAMES))):
        file = tmp_path / "end" / f"{index:02d}.webp"
        with Image.open(file) as video:
            assert video.n_frames == count and video.height == CELL
            shown = sum((video.seek(frame), video.load(), video.info["duration"])[2] for frame in range(count))
        assert abs(shown - frames * FRAME_MS) <= count
        assert file.stat().st_size < 2**17
    assert json.loads((tmp_path / "end" / "prompts.json").read_text()) == ["a short one", "a long one"]
