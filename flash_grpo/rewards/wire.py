"""Pack what a run and a reward server exchange: frames as safetensors, lossless; scores as JSON. Nothing is unpickled."""

import json
import math

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flash_grpo.algorithm.types import Scores

TOKEN = "FLASH_GRPO_REWARD_TOKEN"  # the environment variable that holds the secret of both sides


def packed_request(video_BFHWC: torch.Tensor, text: list[str]) -> bytes:
    """Pack uint8 videos [B, F, H, W, 3] and B texts."""
    spelled = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
    return save({"video": video_BFHWC.cpu().contiguous(), "text": spelled})


def unpacked_request(body: bytes) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the videos and texts of a request's body; ValueError in one line if it holds anything else."""
    try:
        sent = load(body)
        text = json.loads(bytes(sent["text"].tolist()))
        video = sent["video"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"expected safetensors of video and text ({type(error).__name__}: {error})") from error
    if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video: expected uint8 [B, F, H, W, 3], got {video.dtype} {list(video.shape)}")
    if not isinstance(text, list) or not all(isinstance(line, str) for line in text) or len(text) != len(video):
        raise ValueError(f"text: expected {len(video)} strings, one for each video")
    return video, tuple(text)


def packed_scores(scores: Scores, device_seconds: float) -> bytes:
    """Pack scores as strict JSON; null stands for a score that is not finite."""
    answer = {
        "total": _numbers(scores.total_B),
        "parts": {name: _numbers(part) for name, part in scores.parts.items()},
        "device_seconds": device_seconds,
    }
    return json.dumps(answer, allow_nan=False).encode()


def _numbers(value_B: torch.Tensor) -> list[float | None]:
    """List the values, None for one that is not finite: JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in value_B.double().tolist()]
