"""A reward server and its client, over a real connection on loopback."""

import os
import signal
import threading
import time

import httpx
import pytest
import tenacity
import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.records.files import read_records
from flash_grpo.rewards.brightness import brightness
from flash_grpo.rewards.client import RemoteReward
from flash_grpo.rewards.waiting import PATIENCE, Waiting
from flash_grpo.rewards.wire import TOKEN, packed_request, unpacked_request
from flash_grpo.run import checkpoint, loop, stop
from flash_grpo.serve import required_token
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training.rollouts import RolloutMaker

VIDEO = torch.arange(3 * 2 * 4 * 4 * 3).reshape(3, 2, 4, 4, 3).to(torch.uint8)
TEXTS = ("a", "zwei ü", "c")


def test_scores_are_those_of_the_reward_whatever_the_batch_and_the_number_of_servers(serving):
    urls = [serving().url, serving().url]
    for batch in (1, 2, 8):
        scores = RemoteReward(urls=urls, batch=batch)(VIDEO, TEXTS)
        torch.testing.assert_close(scores.total_B, brightness(VIDEO, TEXTS).total_B)
        torch.testing.assert_close(scores.parts["brightness"], scores.total_B)
        assert scores.device_seconds > 0


def test_texts_travel(serving):
    heard = []

    def reward(video, text):
        heard.append(text)
        return brightness(video, text)

    RemoteReward(urls=[serving(reward).url])(VIDEO, TEXTS)
    assert heard == [TEXTS]


def test_a_scorer_s_non_finite_score_is_refused_at_the_server_and_its_video_is_named(serving):
    def reward(video, text):
        return Scores(total_B=torch.tensor([1.0, float("nan"), float("inf")]), parts={})

    with pytest.raises(
        RewardError, match=r"422 the scorer failed: .*total_B of 'zwei ü' \(video 2 of 3\) is nan; 2 of 3"
    ):
        RemoteReward(urls=[serving(reward).url])(VIDEO, TEXTS)


def test_health_tells_what_is_served(serving):
    told = httpx.get(f"{serving(served=['name=x']).url}/health").json()
    assert told == {"reward": "tested", "device": "cpu", "busy": False, "served": ["name=x"]}


def test_a_token_is_asked_for(serving, monkeypatch):
    url = serving(token="secret").url
    monkeypatch.delenv(TOKEN, raising=False)
    for wrong in (None, "other"):
        if wrong:
            monkeypatch.setenv(TOKEN, wrong)
        with pytest.raises(RewardError, match="401 wrong or missing token"):
            RemoteReward(urls=[url])(VIDEO, TEXTS)
    monkeypatch.setenv(TOKEN, "secret")
    assert len(RemoteReward(urls=[url])(VIDEO, TEXTS).total_B) == 3


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines", "two words", "tab\t"])
def test_a_token_that_no_header_can_carry_is_refused_on_both_sides_and_not_shown(monkeypatch, token):
    monkeypatch.setenv(TOKEN, token)
    for ask in (lambda: RemoteReward(urls=["http://127.0.0.1:9"]), lambda: required_token("127.0.0.1")):
        with pytest.raises(ValueError, match=f"^{TOKEN}: only ASCII letters") as refusal:
            ask()
        assert token not in str(refusal.value)


def test_a_server_that_others_can_reach_needs_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert required_token("127.0.0.1") is None and required_token("::1") is None and required_token("localhost") is None
    for host in ("0.0.0.0", "::", "10.0.0.1", "node17"):
        with pytest.raises(ValueError, match=f"set {TOKEN}"):
            required_token(host)
    monkeypatch.setenv(TOKEN, "secret")
    assert required_token("0.0.0.0") == "secret"


def test_a_too_large_request_is_refused(serving):
    answer = httpx.post(f"{serving(max_megabytes=1e-4).url}/score", content=packed_request(VIDEO, list(TEXTS)))
    assert answer.status_code == 413 and "server.max_megabytes" in answer.text


def test_a_request_that_does_not_tell_its_length_is_refused(serving):
    body = packed_request(VIDEO, list(TEXTS))
    assert httpx.post(f"{serving().url}/score", content=iter([body[:50], body[50:]])).status_code == 411


def test_a_malformed_request_is_refused_with_a_reason(serving):
    url = f"{serving().url}/score"
    import pickle

    for body in (b"", b"nonsense", pickle.dumps({"video": 1}), packed_request(VIDEO.float(), list(TEXTS))):
        assert httpx.post(url, content=body).status_code == 400
    assert (
        httpx.post(url, content=packed_request(VIDEO, ["one"])).text == "text: expected 3 strings, one for each video"
    )
    assert httpx.get(url).status_code == 405


def test_a_scorer_that_fails_is_not_asked_again(serving):
    def fails(video, text):
        raise RuntimeError("out of memory")

    with pytest.raises(RewardError, match="422 the scorer failed: RuntimeError: out of memory"):
        RemoteReward(urls=[serving(fails).url])(VIDEO, TEXTS)


def test_frames_are_lossless():
    video, text = unpacked_request(memoryview(bytearray(packed_request(VIDEO, list(TEXTS)))))
    assert torch.equal(video, VIDEO) and text == TEXTS


def test_a_server_that_stays_away_ends_the_call_with_a_clear_error(serving):
    server = serving()
    server.kill()
    start = time.monotonic()
    with pytest.raises(
        RewardError, match=r"no answer for 1 s \(ConnectError.*give the same command to continue the run"
    ):
        RemoteReward(urls=[server.url], give_up_after=1.0)(VIDEO, TEXTS)
    assert time.monotonic() - start < 5


def test_another_server_scores_while_one_is_away(serving):
    away, there = serving(), serving()
    away.kill()
    start = time.monotonic()
    scores = RemoteReward(urls=[away.url, there.url], batch=1, give_up_after=30.0)(VIDEO, TEXTS)
    torch.testing.assert_close(scores.total_B, brightness(VIDEO, TEXTS).total_B)
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(("rank", "expected_calls"), [("0", [1, 0, 0]), ("1", [0, 1, 0]), ("5", [0, 0, 1])])
def test_each_rank_begins_with_another_server(serving, monkeypatch, rank, expected_calls):
    calls = [0, 0, 0]

    def counting(index):
        def reward(video, text):
            calls[index] += 1
            return brightness(video, text)

        return reward

    monkeypatch.setenv("RANK", rank)
    RemoteReward(urls=[serving(counting(index)).url for index in range(3)], batch=3)(VIDEO, TEXTS)
    assert calls == expected_calls


def test_a_server_is_asked_again_soon_and_then_ever_more_slowly():
    def waits(attempt):
        state = tenacity.RetryCallState(None, None, (), {})
        state.attempt_number = attempt
        return [PATIENCE(state) for _ in range(50)]

    assert 0.2 <= min(waits(1)) <= max(waits(1)) <= 1.2
    assert 3.2 <= min(waits(5)) <= max(waits(5)) <= 4.2
    assert 30 <= min(waits(20)) <= max(waits(20)) <= 31


def test_a_failed_request_is_reported_while_others_are_still_tried(serving):
    def fails_or_takes_long(video, text):
        if text == TEXTS[:1]:
            raise RuntimeError("out of memory")
        time.sleep(4)
        return brightness(video, text)

    pending = RemoteReward(urls=[serving(fails_or_takes_long).url], batch=1).ask(VIDEO[:2], TEXTS[:2])
    start = time.monotonic()
    while not pending.ready():
        time.sleep(0.01)
    with pytest.raises(RewardError, match="out of memory"):
        pending.get()
    assert time.monotonic() - start < 3.5


def _reward_of(url, give_up_after):
    return [
        "reward=remote",
        f"reward.urls=[{url}]",
        f"reward.give_up_after={give_up_after}",
        "budget.iterations=3",
        "evaluation.every=1",
        "checkpoint.every=1",
    ]


def test_killing_the_server_in_mid_run_loses_nothing(serving, config, train, tmp_path):
    whole = train("run_name=whole", "budget.iterations=3", "evaluation.every=1")
    calls, servers = [], []

    def dies_once(video, text):
        calls.append(len(text))
        if len(calls) == 4:
            threading.Thread(target=_restart, args=(servers[0],)).start()
            time.sleep(0.3)
        return ShapesReward()(video, text)

    servers.append(serving(dies_once))
    interrupted = train("run_name=served", *_reward_of(servers[0].url, 30))
    for name in ("reward_mean", "loss"):
        values = [[record.get(name) for record in read_records(directory)] for directory in (whole, interrupted)]
        assert values[0] == values[1]
    states = [checkpoint.newest(directory)["parameters"] for directory in (whole, interrupted)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _restart(server):
    server.kill()
    time.sleep(0.3)
    server.start()


def test_a_server_that_never_returns_ends_the_run_and_no_rollout_is_made_again(serving, train, tmp_path, monkeypatch):
    calls, servers, made, make = [], [], [], RolloutMaker.make

    def dies_for_good(video, text):
        calls.append(len(text))
        if len(calls) == 12:
            threading.Thread(target=servers[0].kill).start()
            time.sleep(0.3)
        return ShapesReward()(video, text)

    def noted(self, route, *more):
        batch = route.batch
        made.append((batch.iteration, tuple(batch.sibling_B.tolist()), tuple(batch.prompt_B.tolist())))
        return make(self, route, *more)

    monkeypatch.setattr(RolloutMaker, "make", noted)
    servers.append(serving(dies_for_good))
    overrides = _reward_of(servers[0].url, 2)
    with pytest.raises(RewardError, match="no answer"):
        train(*overrides)
    directory = tmp_path / "default" / "small"
    done, _ = checkpoint.complete(directory)[-1].name.split("+")
    assert [record["kind"] for record in read_records(directory)][-1] == "failure"
    servers[0].start()
    train(*overrides)
    assert len(made) == len(set(made))
    iterations = [record["iteration"] for record in read_records(directory) if record["kind"] == "iteration"]
    assert int(done) < 3 and iterations == [1, 2, 3]
    assert loop.read_manifest(directory).status == "completed"


def test_the_servers_score_while_the_next_rollouts_are_made(serving, train, monkeypatch):
    small_groups = ("rollout.batch=2", "rollout.layout.num_prompts=4", "rollout.layout.group_size=2")
    whole = train("run_name=whole", *small_groups)
    rollouts, scorings, make = [], [], RolloutMaker.make

    def noted(self, batch, *more):
        start = time.monotonic()
        made = make(self, batch, *more)
        rollouts.append((start, time.monotonic()))
        return made

    def slow(video, text):
        start = time.monotonic()
        time.sleep(0.2)
        scorings.append((start, time.monotonic()))
        return ShapesReward()(video, text)

    monkeypatch.setattr(RolloutMaker, "make", noted)
    served = train("run_name=served", *small_groups, *_reward_of(serving(slow).url, 30), "budget.iterations=2")
    meanwhile = [made for made in rollouts if any(start < made[1] and made[0] < end for start, end in scorings)]
    rewards = [
        [record["reward_mean"] for record in read_records(directory) if record["kind"] == "iteration"]
        for directory in (whole, served)
    ]
    assert len(meanwhile) >= 4
    assert rewards[0] == rewards[1]


def test_a_server_that_fails_leaves_its_videos_to_another(serving):
    def broken(video, text):
        raise RuntimeError("CUDA error")

    urls = [serving(broken).url, serving().url]
    scores = RemoteReward(urls=urls, batch=1)(VIDEO, TEXTS)
    torch.testing.assert_close(scores.total_B, brightness(VIDEO, TEXTS).total_B)


def test_many_clients_of_one_slow_server_all_get_their_scores_and_nothing_is_scored_twice(serving):
    """More than the server lets wait, and longer than the client waits for an answer or without one."""
    calls = []

    def slow(video, text):
        calls.append(text)
        time.sleep(0.1)
        return brightness(video, text)

    server = serving(slow)
    clients = [RemoteReward(urls=[server.url], timeout=5.0, give_up_after=3.0) for _ in range(40)]
    pending = [client.ask(VIDEO[:1], TEXTS[:1]) for client in clients]
    assert all(float(answer.get().total_B) == float(brightness(VIDEO[:1], TEXTS[:1]).total_B) for answer in pending)
    assert len(calls) == 40


@pytest.mark.parametrize("url", ["node7:8700", "http://node7:port", "ftp://node7", "http://"])
def test_a_malformed_address_is_refused_at_once(url):
    with pytest.raises(ValueError, match=r"reward\.urls: "):
        RemoteReward(urls=[url])


def test_a_proxy_in_the_environment_is_not_used(serving, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    torch.testing.assert_close(
        RemoteReward(urls=[serving().url], give_up_after=2.0)(VIDEO, TEXTS).total_B, brightness(VIDEO, TEXTS).total_B
    )


def test_the_servers_seconds_are_part_of_the_cost_and_of_an_evaluation_s_seconds(serving, train):
    def costly(video, text):
        return Scores(total_B=ShapesReward()(video, text).total_B, parts={}, device_seconds=1000.0)

    directory = train(*_reward_of(serving(costly).url, 30), "budget.iterations=2", "rollout.batch=4", "reward.batch=2")
    records = {(record["kind"], record["iteration"]): record for record in read_records(directory)}
    training = [records["iteration", iteration]["cost"]["device_seconds"] for iteration in (1, 2)]
    assert training == pytest.approx([4000, 8000], abs=200)  # eight videos an iteration, two in a request
    assert records["evaluation", 2]["cost"]["device_seconds"] == training[1]
    evaluations = [records["evaluation", iteration]["evaluation_seconds"] for iteration in (0, 2)]
    assert evaluations == pytest.approx([16000, 32000], abs=200)  # 32 videos each


def test_a_run_that_waits_for_a_dead_server_leaves_when_asked_and_keeps_its_rollouts(serving, train, monkeypatch):
    server, said = serving(), []
    overrides = _reward_of(server.url, 600)
    train(*overrides, "budget.iterations=1")
    server.kill()

    def asked_to_stop(self, request, error, pause):
        if self.servers == server.url and not said:  # not of a client that an earlier test has left waiting
            said.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Waiting, "say", asked_to_stop)
        with pytest.raises(stop.Interrupted, match="middle"):
            train(*overrides)
    assert time.monotonic() - said[0] < 10
    server.start()
    directory = train(*overrides)
    assert [record["iteration"] for record in read_records(directory) if record["kind"] == "iteration"] == [1, 2, 3]
