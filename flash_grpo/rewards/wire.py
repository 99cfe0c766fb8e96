"""Pack what a run and a reward server exchange: frames as safetensors, lossless; scores as JSON. Nothing is unpickled."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save

from flash_grpo.algorithm.types import Scores

TOKEN = "FLASH_GRPO_REWARD_TOKEN"  # the environment variable that holds the secret of both sides
MAX_HEADER, MAX_TEXT = 2**16, 2**20  # bytes of a request's header, and of its texts as JSON


def token_of_environment() -> str | None:
    """Return the secret of both sides, None if there is none; ValueError if a header cannot carry it."""
    token = os.environ.get(TOKEN) or None
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            f"{TOKEN}: only ASCII letters, digits and signs can be sent, no spaces or line ends; choose another"
        )
    return token


def packed_request(video_BFHWC: torch.Tensor, text: list[str]) -> bytes:
    """Pack uint8 videos [B, F, H, W, 3] and B texts."""
    spelled = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
    return save({"video": video_BFHWC.cpu().contiguous(), "text": spelled})


def unpacked_request(body: bytes | memoryview) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the videos and texts of a request's body; ValueError in one line if it holds anything else.

    The videos stay where they are in the body. The library would copy the body twice and read a header of any size.
    """
    described, data = _header(memoryview(body))
    video = _tensor(described, data, "video", "[B, F, H, W, 3]")
    spelled = _tensor(described, data, "text", f"[at most {MAX_TEXT}]")
    if video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video: expected uint8 [B, F, H, W, 3], got {list(video.shape)}")
    if spelled.ndim != 1 or len(spelled) > MAX_TEXT:
        raise ValueError(f"text: expected uint8 [at most {MAX_TEXT}], got {list(spelled.shape)}")
    return video, _texts(spelled.numpy().tobytes(), len(video))


def _header(body: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return each tensor's entry in the safetensors header, and the bytes after the header; ValueError if there is none."""
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > min(MAX_HEADER, len(body) - 8):
        raise ValueError(f"expected safetensors of video and text, with a header of at most {MAX_HEADER} bytes")
    described = _json(bytes(body[8 : 8 + size]), "the header of the safetensors")
    if not isinstance(described, dict):
        raise ValueError("the header of the safetensors: expected a JSON object")
    return described, body[8 + size :]


def _tensor(described: dict[str, Any], data: memoryview, name: str, expected: str) -> torch.Tensor:
    """Return a view of the uint8 tensor of this name; ValueError if it is missing, empty or of another dtype."""
    entry = described.get(name)
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if dtype != "U8" or not _are_counts(shape) or not _are_counts(offsets) or 0 in shape or len(offsets) != 2:
        raise ValueError(f"{name}: expected uint8 {expected}, not empty, got {dtype!r:.20} {shape!r:.60}")
    begin, end = offsets
    if end - begin != math.prod(shape) or end > len(data):
        raise ValueError(f"{name}: its data_offsets {offsets!r:.60} do not hold {shape!r:.60}")
    return torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin).reshape(shape)


def _are_counts(value: object) -> bool:
    """Return True if this is a list of few whole numbers, none negative."""
    return isinstance(value, list) and 0 < len(value) <= 8 and all(type(item) is int and item >= 0 for item in value)


def _texts(spelled: bytes, count: int) -> tuple[str, ...]:
    text = _json(spelled, "text")
    if not isinstance(text, list) or not all(isinstance(line, str) for line in text) or len(text) != count:
        raise ValueError(f"text: expected {count} strings, one for each video")
    "".join(text).encode()  # UnicodeEncodeError, a ValueError, of half a surrogate pair
    return tuple(text)


def _json(spelled: bytes, what: str) -> Any:
    try:
        return json.loads(spelled)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: expected JSON ({type(error).__name__}: {error!s:.100})") from error


def packed_scores(scores: Scores, device_seconds: float, served: Sequence[str]) -> bytes:
    """Pack scores as strict JSON. served: what the server says of its reward, see `Scores.source`."""
    answer = {
        "total": scores.total_B.tolist(),
        "parts": {name: part_B.tolist() for name, part_B in scores.parts.items()},
        "device_seconds": device_seconds,
        "served": list(served),
    }
    return json.dumps(answer, allow_nan=False).encode()


def unpacked_scores(answer: bytes) -> Scores:
    """Return the scores of a server's answer. Only its form is checked; ValueError, in one line, for another form."""
    said = _json(answer, "the answer")
    if not isinstance(said, dict) or not isinstance(said.get("parts"), dict) or not isinstance(said.get("total"), list):
        raise ValueError("the answer: expected a JSON object of total, parts and device_seconds")
    return Scores(
        total_B=_numbers(said["total"], "total"),
        parts={name: _numbers(values, f"parts[{name!r:.60}]") for name, values in said["parts"].items()},
        device_seconds=said.get("device_seconds"),
        source=_served(said),
    )


def _served(said: dict[str, Any]) -> tuple[str, ...]:
    """Return what the server says of its reward; servers of earlier versions say nothing."""
    served = said.get("served", [])
    if not isinstance(served, list) or not all(isinstance(item, str) for item in served):
        raise ValueError("the answer: expected a list of strings as served")
    return tuple(served)


def _numbers(values: object, where: str) -> torch.Tensor:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"the answer: {where} is {values!r:.60}; expected a list of numbers")
    try:
        return torch.tensor([float(value) for value in values])
    except OverflowError as error:
        raise ValueError(f"the answer: {where} holds a number that is too large") from error
