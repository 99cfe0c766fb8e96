"""What a reward may return, and how everything else is refused before it is trained on."""

from functools import partial

import pytest
import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.scoring import CheckedReward, ask, checked_scores
from flash_grpo.algorithm.types import Scores
from flash_grpo.rewards.composite import CompositeReward

VIDEO = torch.zeros(3, 2, 4, 4, 3, dtype=torch.uint8)
TEXT = ("a", "b", "c")
GOOD = torch.tensor([0.5, 1.5, -2.0])


class Returning:
    """A reward that returns what it was given."""

    def __init__(self, *returned):
        self.returned = list(returned)

    def __call__(self, video, text):
        return self.returned.pop(0) if len(self.returned) > 1 else self.returned[0]


def _of(total, **more):
    return Scores(total_B=total, **{"parts": {}, **more})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_float_scores_of_any_width_become_float32_in_memory_of_their_own(dtype):
    given = GOOD.to(dtype)
    scores = ask(Returning(_of(given, parts={"p": given})), VIDEO, TEXT).get()
    for value in (scores.total_B, scores.parts["p"]):
        assert value.dtype == torch.float32 and torch.equal(value, GOOD)
        assert value.data_ptr() != given.data_ptr()  # a reward may use its buffer again


def test_scores_carry_no_graph_into_training():
    assert not ask(Returning(_of(GOOD.clone().requires_grad_())), VIDEO, TEXT).get().total_B.requires_grad


BAD = {
    "None": (None, r"returned None; expected Scores\(total_B=float tensor \[3\]"),
    "tensor": (GOOD, r"returned a float32 tensor \[3\]; expected Scores"),
    "number": (1.0, "returned a float; expected Scores"),
    "int64": (_of(torch.ones(3, dtype=torch.int64)), r"total_B is a int64 tensor \[3\]; expected a float tensor \[3\]"),
    "bool": (_of(torch.ones(3, dtype=torch.bool)), "total_B is a bool tensor"),
    "complex": (_of(torch.ones(3, dtype=torch.complex64)), "total_B is a complex64 tensor"),
    "list": (_of([1.0, 2.0, 3.0]), r"total_B is a list; expected a float tensor \[3\]"),
    "array": (_of(GOOD.numpy()), "total_B is a ndarray"),
    "[B, 1]": (_of(GOOD[:, None]), r"total_B is a float32 tensor \[3, 1\]"),
    "[1]": (_of(GOOD[:1]), r"total_B is a float32 tensor \[1\]"),
    "scalar": (_of(GOOD.mean()), r"total_B is a float32 tensor \[\]"),
    "sparse": (_of(GOOD.to_sparse()), "total_B is a float32 tensor"),
    "meta": (_of(GOOD.to("meta")), "total_B is a float32 tensor"),
    "NaN": (_of(torch.tensor([1.0, float("nan"), 2.0])), r"of 'b' \(video 2 of 3\) is nan; 1 of 3 are not finite"),
    "infinite": (_of(torch.tensor([-float("inf"), 1.0, 2.0])), r"of 'a' \(video 1 of 3\) is -inf"),
    "too large": (_of(torch.tensor([1e300, 1.0, 2.0], dtype=torch.float64)), "is inf"),
    "part of another shape": (_of(GOOD, parts={"p": GOOD[:2]}), r"parts\['p'\] is a float32 tensor \[2\]"),
    "part that is None": (_of(GOOD, parts={"p": None}), r"parts\['p'\] is None"),
    "part that is NaN": (_of(GOOD, parts={"p": GOOD * float("nan")}), r"parts\['p'\] of 'a' .* is nan"),
    "parts in a list": (_of(GOOD, parts=[GOOD]), "parts is a list; expected a mapping"),
    "parts without a name": (_of(GOOD, parts={1: GOOD}), "parts is a dict; expected a mapping from names"),
    "negative cost": (_of(GOOD, device_seconds=-1e9), "device_seconds is -1000000000.0; expected seconds"),
    "infinite cost": (_of(GOOD, device_seconds=float("inf")), "device_seconds is inf"),
    "NaN cost": (_of(GOOD, device_seconds=float("nan")), "device_seconds is nan"),
    "endless cost": (_of(GOOD, device_seconds=10**400), "device_seconds is 1000"),
    "no cost": (_of(GOOD, device_seconds=None), "device_seconds is None"),
    "cost in a tensor": (_of(GOOD, device_seconds=torch.ones(1)), r"device_seconds is tensor\(\[1.\]\)"),
    "no source": (_of(GOOD, source=None), "source is None"),
}


@pytest.mark.parametrize("bad", BAD)
def test_anything_else_is_refused_in_one_line_that_names_the_reward_and_what_it_returned(bad):
    returned, message = BAD[bad]
    asked = ask(Returning(returned), VIDEO, TEXT)
    assert asked.ready()
    with pytest.raises(RewardError, match=f"^reward Returning: .*{message}") as refusal:
        asked.get()
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_the_parts_are_the_same_each_time_and_stand_in_one_order():
    first, swapped = {"p": GOOD, "q": GOOD + 1}, {"q": GOOD + 1, "p": GOOD}
    reward = CheckedReward(Returning(_of(GOOD, parts=first), _of(GOOD, parts=swapped), _of(GOOD, parts={"p": GOOD})))
    for _ in range(2):
        assert list(reward(VIDEO, TEXT).parts) == ["p", "q"]
    with pytest.raises(RewardError, match="reward Returning: parts p, where the first scores had p, q"):
        reward(VIDEO, TEXT)


def test_the_scorer_is_the_same_each_time():
    served = [_of(GOOD, source=("name=hpsv3", f"revision={revision}")) for revision in ("1", "1", "2")]
    reward = CheckedReward(Returning(*served))
    assert reward(VIDEO, TEXT).source == reward(VIDEO, TEXT).source
    with pytest.raises(RewardError, match="scored by revision=2, the first by revision=1; a reward must be the same"):
        reward(VIDEO, TEXT)


def test_names_from_elsewhere_make_one_line_of_bounded_length():
    reward = CheckedReward(Returning(_of(GOOD), _of(GOOD, parts={"new\nline" * 500: GOOD})))
    reward(VIDEO, TEXT)
    with pytest.raises(RewardError, match="parts new line") as refusal:
        reward(VIDEO, TEXT)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_function_and_a_partial_are_named_too():
    def mine(video, text, more=0):
        return None

    for reward in (mine, partial(mine, more=1)):
        with pytest.raises(RewardError, match=r"^reward .*mine: returned None"):
            ask(reward, VIDEO, TEXT).get()


def test_a_composite_names_the_one_of_its_rewards_that_is_wrong():
    rewards = {"good": lambda video, text: _of(GOOD), "bad": Returning(_of(GOOD[:1]))}
    with pytest.raises(RewardError, match=r"^reward Returning: total_B is a float32 tensor \[1\]"):
        CompositeReward(rewards=rewards, weights={"good": 1.0, "bad": 1.0})(VIDEO, TEXT)


def test_checked_scores_keep_what_else_they_say():
    scores = checked_scores(_of(GOOD, device_seconds=3, source=("x=1",)), TEXT, "reward R")
    assert (scores.device_seconds, scores.source) == (3.0, ("x=1",))
