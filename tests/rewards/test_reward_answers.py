"""Servers that answer wrongly, slowly or not at all, and what their client does and says."""

import http.server
import json
import re
import threading
import time

import pytest
import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.rewards import waiting
from flash_grpo.rewards.brightness import brightness
from flash_grpo.rewards.client import RemoteReward
from flash_grpo.run.build import ConfigError

VIDEO = torch.arange(2 * 2 * 4 * 4 * 3).reshape(2, 2, 4, 4, 3).to(torch.uint8)
TEXTS = ("a", "b")
RIGHT = {"total": [1.0, 2.0], "parts": {"p": [1.0, 2.0]}, "device_seconds": 0.5, "served": ["name=x"]}


@pytest.fixture
def saying():
    """`saying(body, status)`: the address of a server that always answers POST /score so; a function makes a body each time."""
    servers = []

    def start(body, status=200, headers=()):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                said = body() if callable(body) else body
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def do_GET(self):
                self.send_error(404)

            def log_message(self, *arguments):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _answer(**changed):
    return json.dumps({**RIGHT, **changed}).encode()


WRONG = {
    "not JSON": (b"<html>It works!</html>", "the answer: expected JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "the answer: expected JSON"),
    "nested": (b"[" * 10**5, "the answer: expected JSON .RecursionError"),
    "another JSON": (b"[1, 2]", "expected a JSON object of total, parts and device_seconds"),
    "no total": (b'{"parts": {}, "device_seconds": 1}', "expected a JSON object of total"),
    "fewer scores": (_answer(total=[1.0]), r"total_B is a float32 tensor \[1\]; expected a float tensor \[2\]"),
    "more scores": (_answer(total=[1.0] * 3), r"total_B is a float32 tensor \[3\]"),
    "no scores": (_answer(total=[]), r"total_B is a float32 tensor \[0\]"),
    "fewer of a part": (_answer(parts={"p": [1.0]}), r"parts\['p'\] is a float32 tensor \[1\]"),
    "null": (_answer(total=[1.0, None]), r"total is \[1.0, None\]; expected a list of numbers"),
    "text": (_answer(total=["1.0", "2.0"]), "expected a list of numbers"),
    "true": (_answer(total=[True, False]), "expected a list of numbers"),
    "lists": (_answer(total=[[1.0], [2.0]]), "expected a list of numbers"),
    "NaN": (_answer(total=[1.0, float("nan")]), r"total_B of 'b' \(video 2 of 2\) is nan"),
    "1e999": (_answer().replace(b"1.0", b"1e999"), "is inf"),
    "huge": (_answer(total=[10**400, 1]), "a number that is too large"),
    "NaN part": (_answer(parts={"p": [1.0, float("nan")]}), r"parts\['p'\] of 'b'"),
    "negative cost": (_answer(device_seconds=-1e9), "device_seconds is -1000000000.0"),
    "no cost": (b'{"total": [1, 2], "parts": {"p": [1, 2]}}', "device_seconds is None"),
    "served what": (_answer(served="x"), "expected a list of strings as served"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_counts_as_a_broken_server_and_the_next_is_asked(saying, wrong, caplog):
    body, why = WRONG[wrong]
    bad, good = saying(body), saying(_answer())
    reward = RemoteReward(urls=[bad, good], batch=2)
    for _ in range(2):
        assert reward(VIDEO, TEXTS).total_B.tolist() == [1.0, 2.0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert re.match(f"reward server {bad}: wrong answer: .*{why}.*; the next one is asked$", said[0])


def test_where_every_server_answers_wrongly_the_call_ends_at_once_in_one_line(saying):
    urls = [saying(b"hello"), saying(_answer(device_seconds=-1e9))]
    start = time.monotonic()
    with pytest.raises(
        RewardError, match=rf"^reward server {urls[1]}: wrong answer: its answer: device_seconds"
    ) as end:
        RemoteReward(urls=urls, batch=2)(VIDEO, TEXTS)
    assert time.monotonic() - start < 10 and "\n" not in str(end.value)


def test_whole_numbers_are_scores_too(saying):
    assert RemoteReward(urls=[saying(_answer(total=[1, 2], device_seconds=0))])(VIDEO, TEXTS).total_B.tolist() == [1, 2]


def test_other_parts_than_those_of_the_first_answer_are_wrong(saying, caplog):
    answers = iter([_answer(), *[_answer(parts={"q": [1.0, 2.0]})] * 9])
    changes, good = saying(lambda: next(answers)), saying(_answer())
    reward = RemoteReward(urls=[changes, good], batch=2)
    for _ in range(4):
        assert list(reward(VIDEO, TEXTS).parts) == ["p"]
    assert "wrong answer: parts q, where the first scores had p" in caplog.text


def test_a_server_of_another_model_is_refused_when_it_comes_later(saying, caplog):
    urls = [saying(_answer()), saying(_answer(served=["name=x", "revision=2"]))]
    reward = RemoteReward(urls=urls, batch=2)
    for _ in range(2):
        assert reward(VIDEO, TEXTS).source == ("name=x",)
    assert "wrong answer: scored by revision=2, the first by nothing" in caplog.text


def test_servers_that_name_different_rewards_are_refused_at_once(serving):
    urls = [serving(served=["name=x", f"revision={revision}"]).url for revision in ("1", "2")]
    with pytest.raises(
        ValueError, match=rf"{urls[1]} is not the same as {urls[0]}: scored by revision=2, the first by rev"
    ):
        RemoteReward(urls=urls)


def test_a_run_goes_on_only_with_the_reward_that_it_began_with(serving, train):
    def parts(video, text):
        return Scores(total_B=brightness(video, text).total_B, parts={})

    first, other = (serving(parts, served=[f"revision={revision}"]).url for revision in ("1", "2"))
    chosen = ("reward=remote", "evaluation.every=1", "checkpoint.every=1")
    train(*chosen, f"reward.urls=[{first}]", "budget.iterations=1")
    with pytest.raises(RewardError, match="reward RemoteReward: scored by revision=2, the first by revision=1"):
        train(*chosen, f"reward.urls=[{other}]", "budget.iterations=2")


def test_a_request_does_not_wait_for_ever_for_busy_servers_and_says_for_whom(saying, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SAID_AFTER_S", 0.5)
    url = saying(b"full", 503, [("Retry-After", "1")])
    start = time.monotonic()
    with pytest.raises(
        RewardError, match=rf"^reward server {url}: not scored within 2 s \(Busy.*raise reward\.max_wait"
    ):
        RemoteReward(urls=[url], max_wait=2.0)(VIDEO, TEXTS)
    assert time.monotonic() - start < 10
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert re.match(rf"waiting for reward server {url} until \d\d:\d\d:\d\d \(reward\.max_wait=2\): Busy: ", said[0])


def test_an_answer_without_end_is_given_up(saying, monkeypatch):
    monkeypatch.setattr("flash_grpo.rewards.client.MAX_ANSWER", 2**16)
    with pytest.raises(RewardError, match="an answer of more than 65536 bytes"):
        RemoteReward(urls=[saying(b" " * 2**20)], give_up_after=0.5)(VIDEO, TEXTS)


def test_a_run_without_any_server_says_within_seconds_who_it_waits_for_and_then_gives_up(train, caplog):
    with pytest.raises(RewardError, match="no answer for 5 s"):
        train("reward=remote", "reward.urls=[http://127.0.0.1:9]", "reward.give_up_after=5")
    at_once, then = (record.getMessage() for record in caplog.records if "server" in record.getMessage())
    assert at_once.startswith("no reward server answers yet (http://127.0.0.1:9 ConnectError: ")
    assert "flash_grpo.serve reward=NAME; the run waits for it for 5 s" in at_once
    assert re.match(
        r"waiting for reward server http://127.0.0.1:9 until \d\d:\d\d:\d\d \(reward.give_up_after=5\)", then
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"batch": 0},
        {"max_wait": 0},
        {"max_wait": float("nan")},
        {"give_up_after": -1},
    ],
)
def test_times_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^reward\.{next(iter(wrong))}=\S+: must be a"):
        RemoteReward(urls=["http://127.0.0.1:9"], **wrong)


def test_the_command_line_refuses_them_too(train):
    with pytest.raises(ConfigError, match=r"^reward\.max_wait=-1: must be a positive number"):
        train("reward=remote", "reward.max_wait=-1")
