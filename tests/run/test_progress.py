"""How much of its budget a run has spent."""

import pytest

from flash_grpo.records.schema import Cost
from flash_grpo.run.progress import Budget


def test_a_share_of_the_budget_ends_the_run_earlier_by_each_bound():
    for bound in ({"iterations": 10}, {"pflop": 1.0}, {"device_hours": 0.1}):
        some = {"iterations": None, "device_hours": None, "pflop": None} | bound
        cost = Cost(pflop=0.1, device_seconds=36.0)
        assert Budget(**some).spent(1, cost) == pytest.approx(0.1)
        assert Budget(**some, share=0.1).spent(1, cost) == pytest.approx(1)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), "word"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"^budget.share="):
        Budget(iterations=1, device_hours=None, pflop=None, share=share)
