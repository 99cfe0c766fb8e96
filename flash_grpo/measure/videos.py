"""Write videos as mp4 under the names that VBench expects."""

import hashlib
from pathlib import Path

import imageio.v3 as imageio
import torch

LONGEST = 180  # bytes of a prompt in a file name; VBench's own prompts are shorter
FPS = 16  # Wan2.1


def vbench_name(text: str, index: int) -> str:
    """Return the file name `PROMPT-INDEX.mp4` of a prompt's video.

    A prompt that a file system cannot hold is shortened and gets a hash, so that two such prompts never share a name; the
    manifest holds it in full.
    """
    name = text.replace("/", "_").replace("\0", "_")
    if name != text or len(name.encode()) > LONGEST:
        cut = name.encode()[: LONGEST - 9].decode(errors="ignore")
        name = f"{cut}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{name}-{index}.mp4"


def write_mp4(path: Path, video_FHWC: torch.Tensor, fps: int = FPS) -> None:
    """Write uint8 frames [F, H, W, 3] as H.264, nearly lossless, so that compression does not change the scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(
        path,
        video_FHWC.cpu().numpy(),
        plugin="FFMPEG",
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "10", "-threads", "1"],
    )
