"""The learning rate falls with the FLOPs that are spent, and survives an interruption."""

import pytest

from flash_grpo.run.settings import ConfigError
from flash_grpo.training.anneal import Anneal


@pytest.mark.parametrize(("pflop", "factor"), [(0, 1), (0.5, 0.55), (1, 0.1), (3, 0.1)])
def test_the_rate_falls_linearly_and_stays(pflop, factor):
    assert Anneal(to=0.1, over_pflop=1.0).factor(pflop) == pytest.approx(factor)
    assert Anneal(to=0.1, over_pflop=4.0, share=0.25).factor(pflop) == pytest.approx(factor)


def test_without_a_horizon_the_rate_is_constant():
    assert Anneal().factor(1e9) == 1


def test_an_iteration_s_rate_is_that_of_what_was_spent_before_it(trainer):
    small = trainer("optim.anneal.to=0.5", "optim.anneal.over_pflop=1e-2", "optim.optimizer.lr=1e-3")
    rates = []
    for iteration in (1, 2, 3):
        expected = 1e-3 * (1 - 0.5 * small.meter.cost.pflop / 1e-2)
        small.iterate(iteration)
        rates.append(small.updater.stepper.optimizer.param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(expected, rel=1e-12)
    assert rates[0] == 1e-3
    assert rates[0] > rates[1] > rates[2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.anneal.to=0.1",), "needs optim.anneal.over_pflop"),
        (("optim.anneal.to=0",), "optim.anneal.to=0"),
        (("optim.anneal.to=1.5",), "optim.anneal.to=1.5"),
        (("optim.anneal.over_pflop=0",), "optim.anneal.over_pflop=0"),
    ],
)
def test_a_fall_that_is_none_is_refused(trainer, overrides, message):
    with pytest.raises(ConfigError, match=message):
        trainer(*overrides)
