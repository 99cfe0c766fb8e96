"""Two experts on two ranks, plain and with a sharded base: as on one rank, also where ranks are at different experts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from experts_program import CASES, go_through

PROGRAM = Path(__file__).with_name("experts_program.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("experts") / "results"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{PROGRAM.parents[2]}:{PROGRAM.parents[1]}"}
    done = subprocess.run(
        [*launch, str(PROGRAM), str(output)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{output}.{rank}") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_both_experts_as_one_does(two_ranks, case):
    alone, (first, last) = go_through(*CASES[case]), (report[case] for report in two_ranks)
    assert first["together"] == last["together"] == ("sharded" in case) and not alone["together"]
    for name in ("transitions", "expert_shares"):
        assert first[name] == last[name] == alone[name]
    assert 0 < sum(shares["transformer"] for shares in alone["expert_shares"]) < 3
    for name in ("loss", "gradient_norm", "base_kl", "reward_mean"):
        assert first[name] == pytest.approx(alone[name], rel=2e-2, abs=1e-5)
    for theirs, ours in zip(first["expert_gradient_norms"], alone["expert_gradient_norms"], strict=True):
        assert theirs == pytest.approx(ours, rel=2e-2)
    torch.testing.assert_close(first["evaluation"], alone["evaluation"], atol=1e-3, rtol=0)
    # Adam's step is lr whatever the gradient's size, so that rounding shows in single weights where it is next to nothing
    theirs, ours = (_learnt(report["parameters"]) for report in (first, alone))
    assert (theirs - ours).norm() < 0.05 * ours.norm()
    assert all(torch.equal(value, last["parameters"][name]) for name, value in first["parameters"].items())
    assert first["drift"] < 1e-4
    if case == "sharded path":
        assert first["waited"] + last["waited"] > 0  # a rank kept up with an expert that it was not at


def _learnt(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every B, which begins at 0, of both experts."""
    return torch.cat([value.flatten() for name, value in parameters.items() if ".lora_B." in name])
