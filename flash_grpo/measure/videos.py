"""Videos on disk: mp4 under VBench's names, and VBench's verdict on them read back."""

import hashlib
import json
from pathlib import Path

import imageio.v3 as imageio
import torch

LONGEST = 180  # bytes of a prompt in a file name; VBench's own prompts are shorter
FPS = 16  # Wan2.1


def vbench_name(text: str, index: int) -> str:
    """`PROMPT-INDEX.mp4`. What a file system cannot hold is replaced, and told apart by a hash; the manifest has it whole."""
    name = text.replace("/", "_").replace("\0", "_")
    if name != text or len(name.encode()) > LONGEST:
        cut = name.encode()[: LONGEST - 9].decode(errors="ignore")
        name = f"{cut}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{name}-{index}.mp4"


def write_mp4(path: Path, video_FHWC: torch.Tensor, fps: int = FPS) -> None:
    """H.264 of uint8 [F, H, W, 3], nearly lossless, so that judges do not judge the codec."""
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


def read_vbench(path: Path) -> dict[str, float]:
    """Percent by dimension from VBench's `*_eval_results.json`: {dimension: [score, videos]}."""
    try:
        found = json.loads(path.read_text())
        scores = {name: float(value[0] if isinstance(value, list) else value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: not VBench's results ({type(error).__name__}: {error})") from error
    return {name: 100 * score for name, score in scores.items()}
