"""What a server does with requests that are half sent, too many, or not what they should be."""

import json
import math
import socket
import struct
import time

import httpx
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save

from flash_grpo.rewards.brightness import brightness
from flash_grpo.rewards.client import RemoteReward
from flash_grpo.rewards.intake import Intake, NoRoom
from flash_grpo.rewards.wire import MAX_TEXT, packed_request
from flash_grpo.serve import Limits, described

VIDEO = torch.arange(2 * 2 * 4 * 4 * 3).reshape(2, 2, 4, 4, 3).to(torch.uint8)
TEXTS = ("a", "b")
LARGE = torch.zeros(2, 8, 128, 128, 3, dtype=torch.uint8)  # 786 kB


def _half_sent(server, share=0.5, headers=b"", video=LARGE):
    """Open a connection and send a part of a request; 0 sends half of a header."""
    body = packed_request(video, list(TEXTS))
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = b"POST /score HTTP/1.1\r\nHost: x\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head[:20] if not share else head + body[: int(share * len(body))])
    return connection


def _ended(connection):
    """What the server sends until it closes the connection."""
    said = b""
    try:
        while chunk := connection.recv(65536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def _scored(server, **options):
    return RemoteReward(urls=[server.url], give_up_after=5.0, max_wait=15.0, **options)(VIDEO, TEXTS).total_B


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_half_sent_requests_block_nobody(serving, share):
    server = serving(read_seconds=60.0)
    connections = [_half_sent(server, share) for _ in range(12)]  # three times as many as are held at once
    start = time.monotonic()
    torch.testing.assert_close(_scored(server), brightness(VIDEO, TEXTS).total_B)
    assert time.monotonic() - start < 30
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_connection_that_owes_the_rest_of_a_request_is_closed(serving, share):
    server = serving(read_seconds=0.5)
    silent = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    start = time.monotonic()
    assert _ended(_half_sent(server, share)) == b"" and _ended(silent) == b""
    assert time.monotonic() - start < 18


def test_a_connection_that_drips_is_closed(serving):
    connection = _half_sent(serving(read_seconds=0.5))
    start = time.monotonic()
    with pytest.raises(ConnectionError):
        _drip(connection)
    assert time.monotonic() - start < 18


def _drip(connection):
    for _ in range(400):
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "options", [{"token": "secret"}, {"max_megabytes": 0.001}, {"buffered_megabytes": 0.7, "max_megabytes": 0.7}]
)
def test_a_refused_request_is_answered_before_its_body_and_closed_when_it_stalls(serving, options):
    server = serving(read_seconds=0.5, **options)
    start = time.monotonic()
    assert _ended(_half_sent(server)).startswith((b"HTTP/1.1 401", b"HTTP/1.1 413", b"HTTP/1.1 503"))
    assert time.monotonic() - start < 18


def test_requests_beyond_the_memory_are_asked_to_come_again_before_their_body_is_read(serving):
    server = serving(buffered_megabytes=1, read_seconds=60.0)
    first = _half_sent(server, 0.9)
    time.sleep(0.3)
    second, said = _half_sent(server, 0.0001), b""
    while b"megabytes" not in said:
        said += second.recv(65536)
    assert said.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in said and b"server.buffered_megabytes" in said
    time.sleep(1.5)  # the first has stalled now, and gives way
    answer = httpx.post(f"{server.url}/score", content=packed_request(LARGE, list(TEXTS)))
    assert answer.status_code == 200
    first.close()


def test_a_body_that_stalls_gives_way_and_its_memory_is_free_at_once(monkeypatch):
    monkeypatch.setattr("flash_grpo.rewards.intake.STALLED_S", 0.05)
    intake = Intake(100)
    with intake.holding(80) as stalls, intake.holding(60) as small:
        stalls.put(b"x" * 70)
        small.put(b"x" * 20)
        assert not intake.has_room(60)
        time.sleep(0.1)
        assert (
            intake.has_room(60) and stalls.received == 0 and small.received == 20
        )  # the longest, and no more than needed
        with pytest.raises(NoRoom):
            stalls.put(b"x")
    assert intake.has_room(100)


def test_a_whole_body_never_gives_way(monkeypatch):
    monkeypatch.setattr("flash_grpo.rewards.intake.STALLED_S", 0.0)
    intake = Intake(100)
    with intake.holding(80) as whole:
        whole.put(b"x" * 80)
        assert not intake.has_room(60) and bytes(whole.whole) == b"x" * 80


def _spelled(header, data=b""):
    said = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(said)) + said + data


def _saved(video=VIDEO, text=None):
    return save({"video": video, "text": text if text is not None else _text(b'["a", "b"]')})


def _text(said):
    return torch.frombuffer(bytearray(said), dtype=torch.uint8)


U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
STRANGE = {
    "text float": _saved(text=torch.ones(9)),
    "text bfloat16": _saved(text=torch.ones(9, dtype=torch.bfloat16)),
    "text int64": _saved(text=torch.arange(9)),
    "text bool": _saved(text=torch.ones(9, dtype=torch.bool)),
    "text [1, N]": _saved(text=_text(b'["a", "b"]')[None]),
    "text of five dimensions": _saved(text=VIDEO.clone()),
    "text scalar": _saved(text=torch.tensor(1, dtype=torch.uint8)),
    "text empty": _saved(text=torch.zeros(0, dtype=torch.uint8)),
    "text long": _saved(text=torch.full((MAX_TEXT + 1,), 32, dtype=torch.uint8)),
    "text nested": _saved(text=_text(b"[" * MAX_TEXT)),
    "text not UTF-8": _saved(text=_text(b"\xff\xfe")),
    "text object": _saved(text=_text(b'{"a": 1, "b": 2}')),
    "text numbers": _saved(text=_text(b"[1, 2]")),
    "text too few": _saved(text=_text(b'["a"]')),
    "text half a surrogate": _saved(text=_text(b'["a", "\\ud800"]')),
    "video float": _saved(video=VIDEO.float()),
    "video of four dimensions": _saved(video=VIDEO[0]),
    "video of no frames": _saved(video=VIDEO[:, :0]),
    "video of two colours": _saved(video=VIDEO[..., :2].contiguous()),
    "video missing": save({"text": _text(b'["a", "b"]')}),
    "header endless": struct.pack("<Q", 2**63) + b"x" * 100,
    "header long": struct.pack("<Q", 2**18) + b" " * 2**18,
    "header list": _spelled([1]),
    "header nested": _spelled(b"[" * 60000),
    "header of text": _spelled({"video": "x", "text": U8}, b"0000"),
    "offsets beyond": _spelled({"video": {**U8, "data_offsets": [1, 5]}, "text": U8}, b"0000"),
    "offsets backwards": _spelled({"video": {**U8, "data_offsets": [4, 0]}, "text": U8}, b"0000"),
    "offsets negative": _spelled({"video": {**U8, "data_offsets": [-4, 0]}, "text": U8}, b"0000"),
    "offsets of one": _spelled({"video": {**U8, "data_offsets": [4]}, "text": U8}, b"0000"),
    "shape true": _spelled({"video": {**U8, "shape": [True, 4]}, "text": U8}, b"0000"),
    "shape huge": _spelled({"video": {**U8, "shape": [2**62, 2**62]}, "text": U8}, b"0000"),
    "shape none": _spelled({"video": {"dtype": "U8"}, "text": U8}, b"0000"),
    "empty": b"",
    "seven bytes": b"1234567",
}  # fmt: skip


def test_a_request_of_strange_types_or_shapes_is_refused_in_a_moment(serving):
    server = serving(max_megabytes=2)
    for name, body in STRANGE.items():
        start = time.monotonic()
        answer = httpx.post(f"{server.url}/score", content=body, timeout=20)
        assert answer.status_code == 400 and "\n" not in answer.text and len(answer.text) < 300, (name, answer.text)
        assert time.monotonic() - start < 5, name
    assert _scored(server).shape == (2,)


def test_limits_out_of_range_are_refused():
    good = {"max_megabytes": 1, "buffered_megabytes": 4, "read_seconds": 10.0}
    Limits(**good)
    for key, value in (
        ("max_megabytes", 0),
        ("buffered_megabytes", 0.5),
        ("read_seconds", 0),
        ("read_seconds", math.nan),
    ):
        with pytest.raises(ValueError, match=rf"^server\.{key}={value}: must be a"):
            Limits(**{**good, key: value})


def test_a_server_names_its_reward_s_settings_but_not_where_they_lie(config):
    cfg = config("reward=hpsv3")
    elsewhere = OmegaConf.merge(cfg.reward, {"batch": 1, "scorer": {"path": "/data/models/HPSv3/", "device": "cuda"}})
    assert described(elsewhere) == described(cfg.reward)
    assert {"name=hpsv3", "scorer.path=HPSv3", "best=0.3", "scorer._target_=HPSv3"} <= set(described(cfg.reward))
    revised = OmegaConf.merge(cfg.reward, {"scorer": {"revision": "main"}})
    assert set(described(revised)) - set(described(cfg.reward)) == {"scorer.revision=main"}
