"""A part of another kind, `section._target_=anything`, is refused in one line before anything is on disk."""

import pytest
from omegaconf import DictConfig, OmegaConf
from test_configurations import assert_refused, outcome

from flash_grpo.recompose import composed_outside

OTHERS = ("builtins.dict", "types.SimpleNamespace", "torch.nn.Identity")
WITH = {
    "optim.anneal": ["ablations=short_branches"],
    "rollout.path": ["ablations=short_branches"],
    "method.tree": ["ablations=branchgrpo"],
    "evaluation.held_out": ["reward@evaluation.held_out=fidelity"],
    "evaluation.sampler.solve": ["+evaluation.sampler.solve={_partial_: true}"],
}
"""The overrides by which sections come in that a usual run does not have."""


def _parts(node: DictConfig, prefix: str = "") -> list[str]:
    """The dotted names of all sections that name a `_target_`."""
    found = [prefix[:-1]] if "_target_" in node and prefix else []
    for name, value in OmegaConf.to_container(node, resolve=False).items():
        found += _parts(node[name], f"{prefix}{name}.") if isinstance(value, dict) else []
    return found


PARTS = sorted({*_parts(composed_outside([])), *WITH})


def test_the_parts_are_those_of_every_room():
    assert {"model", "reward", "method.target", "method.advantage", "evaluation.sampler.schedule", "budget"} <= {*PARTS}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_kind_is_refused(part, other):
    plus = "+" if part == "evaluation.sampler.solve" else ""
    code, said, left = outcome([*WITH.get(part, []), f"{plus}{part}._target_={other}"])
    assert code == 2
    assert_refused(said, left)
