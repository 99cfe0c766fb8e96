"""The soak of the reward server, scaled down; `make soak` goes through the whole."""

from reward_soak import Soak


def test_slow_senders_neither_fill_the_memory_nor_keep_honest_clients_waiting():
    measured = Soak(slow=60, requests=100, clients=4, megabytes=4, buffered=128).run()
    assert measured["served"] == 100
    assert measured["memory_rise_mb"] <= measured["allowed_rise_mb"], measured
    assert measured["longest_time_without_an_answer_s"] < 15, measured
