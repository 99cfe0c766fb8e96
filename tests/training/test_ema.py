import pytest
import torch

from flash_grpo.training.ema import EMA


@pytest.mark.parametrize(
    ("phase", "steps", "decays"), [(1, (7, 15), (8 / 17, 16 / 25)), (0, (8, 16), (9 / 18, 17 / 26))]
)
def test_the_average_is_taken_at_the_phase_s_steps_with_a_growing_decay(phase, steps, decays):
    """The release, phase 1, averages after 7 and 15 optimizer steps with decays 8/17 and 16/25."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    average, expected = EMA({"weight": parameter}, decay=0.9, every=8, phase=phase), 0.0
    for step in range(1, 17):
        parameter.data.fill_(step)
        average.update(step)
        if step in steps:
            keep = decays[steps.index(step)]
            expected = keep * expected + (1 - keep) * step
        assert average.state()["weight"].item() == pytest.approx(expected)


def test_the_release_s_recipe_has_the_release_s_phase(config):
    for overrides in (("recipe=release",), ("optim=lora",)):
        assert config(*overrides).optim.ema == {"decay": 0.9, "every": 8, "phase": 1}
