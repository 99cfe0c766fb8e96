"""Test videos on disk: their names and what they show."""

import imageio.v3 as imageio
import torch

from flash_grpo.measure.videos import vbench_name, write_mp4


def test_video_names_are_vbenchs_where_the_file_system_allows():
    assert vbench_name("a cat, running", 3) == "a cat, running-3.mp4"
    long, other = "x" * 500 + "a", "x" * 500 + "b"
    assert len(vbench_name("ü" * 300, 0).encode()) <= 255
    assert vbench_name(long, 0) != vbench_name(other, 0)
    assert "/" not in vbench_name("a/b", 0) and vbench_name("a/b", 0) != vbench_name("a_b", 0)


def test_an_mp4_shows_what_was_written(tmp_path):
    ramp = torch.arange(32).reshape(1, 1, 32, 1).expand(5, 30, 32, 3) * 7
    video = (ramp + torch.arange(5).reshape(5, 1, 1, 1) * 5).clamp(max=255).to(torch.uint8)
    write_mp4(tmp_path / "some" / "video.mp4", video)
    read = torch.from_numpy(imageio.imread(tmp_path / "some" / "video.mp4", plugin="FFMPEG"))
    assert read.shape == video.shape
    assert (read.int() - video.int()).abs().float().mean() < 4
