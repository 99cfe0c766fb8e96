"""Whatever a server is sent, or answers, is taken as it should be or refused in one line; nothing else is raised."""

import json
from random import Random

import torch
from damage import damaged_bytes, damaged_json
from hypothesis import given
from hypothesis import strategies as st

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.scoring import checked_scores
from flash_grpo.rewards.wire import packed_request, unpacked_request, unpacked_scores

SEEDS = st.integers(0, 2**32)
TEXT = ("a", "b")
ANSWER = {"total": [1.0, 2.0], "parts": {"p": [0.5, 1e3]}, "device_seconds": 0.25, "served": ["name=x"]}
REQUEST = packed_request(torch.arange(96).reshape(2, 2, 2, 4, 3).to(torch.uint8), list(TEXT))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _is_one_line(message: str) -> None:
    assert "\n" not in message and len(message) < 400


def _answered(answer: bytes) -> None:
    try:
        scores = checked_scores(unpacked_scores(answer), TEXT, "its answer")
    except (ValueError, RewardError) as error:
        _is_one_line(str(error))
        return
    values = [scores.total_B, *scores.parts.values()]
    assert all(value.dtype == torch.float32 and value.shape == (2,) and value.isfinite().all() for value in values)
    assert 0 <= scores.device_seconds < float("inf")


@given(SEEDS)
def test_a_damaged_answer_is_scores_or_refused(seed):
    chance = Random(seed)
    for damaged in (damaged_bytes, damaged_json):
        _answered(damaged(chance, json.dumps(ANSWER).encode()))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ANSWER, JSON)))
def test_an_answer_of_any_json_is_scores_or_refused(changed):
    _answered(json.dumps({**ANSWER, **changed}).encode())


@given(st.binary() | SEEDS.map(lambda seed: damaged_bytes(Random(seed), REQUEST)))
def test_a_damaged_request_is_videos_and_texts_or_refused(body):
    try:
        video, text = unpacked_request(memoryview(bytearray(body)))
    except ValueError as error:
        _is_one_line(str(error))
        return
    assert video.dtype == torch.uint8 and video.ndim == 5 and video.shape[-1] == 3
    assert len(video) == len(text) > 0
