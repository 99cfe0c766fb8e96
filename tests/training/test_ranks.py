"""Two ranks on the CPU, started by torchrun, against one rank with other micro-batches: the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_program import go_through
from untimed import untimed

from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("ranks_program.py")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The directory of the run on one rank, and the notes of its rollouts."""
    folder = tmp_path_factory.mktemp("one")
    return folder / "ranks/run", go_through(folder, "rollout.batch=3", "training.batch=3")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The directory of the run on two ranks, and what each rank has to tell."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # flash_grpo, and conftest
    command = [*launch, str(PROGRAM), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "ranks/run", [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_ranks_share_the_rollouts_of_one_and_make_the_same(one_rank, two_ranks):
    alone, (first, second) = one_rank[1], (report["notes"] for report in two_ranks[1])
    assert len(alone) == 4 * 2 * 4
    assert len(first) == len(second) == len(alone) / 2
    assert (first | second).keys() == alone.keys()
    for rollout, note in alone.items():
        theirs = (first | second)[rollout]
        assert (theirs["text"], theirs["steps"]) == (note["text"], note["steps"])
        torch.testing.assert_close(theirs["latent"], note["latent"], atol=5e-4, rtol=0)
        assert theirs["advantage"] == pytest.approx(note["advantage"], abs=2e-3)


def test_two_ranks_write_the_records_of_one_to_floating_point_noise(one_rank, two_ranks):
    alone, together = (list(read_records(directory)) for directory, _ in (one_rank, two_ranks))
    order = [[(record["kind"], record["iteration"]) for record in records] for records in (alone, together)]
    assert order[0] == order[1]
    for theirs, ours in zip(together, alone, strict=True):
        assert theirs["reward_mean"] == pytest.approx(ours["reward_mean"], abs=3e-4)
        assert theirs["reward_parts"] == pytest.approx(ours["reward_parts"], abs=3e-4)
        assert untimed(theirs)["cost"] == untimed(ours)["cost"]
        if theirs["kind"] == "evaluation":
            assert theirs["prompt_rewards"] == pytest.approx(ours["prompt_rewards"], abs=3e-3)
            assert theirs["held_out"] == pytest.approx(ours["held_out"], abs=3e-4)
            assert theirs["held_out_prompts"] == pytest.approx(ours["held_out_prompts"], abs=3e-3)
        else:
            same = ("steps", "transitions", "optimizer_steps")
            near = ("gradient_norm", "weight_min", "weight_max", "advantage_abs_mean", "within_group_std", "reward_std")
            assert [theirs[name] for name in same] == [ours[name] for name in same]
            assert [theirs[name] for name in near] == pytest.approx([ours[name] for name in near], rel=1e-3)
            assert theirs["base_kl"] == pytest.approx(ours["base_kl"], rel=1e-2, abs=1e-9)
            assert theirs["ratio_drift"] < 1e-5


def test_the_manifest_counts_the_ranks_and_their_starts(two_ranks):
    manifest = read_manifest(two_ranks[0])
    assert (manifest.world_size, manifest.hardware["devices"], manifest.status) == (2, 2, "completed")
    assert [start.iteration for start in manifest.starts] == [0, 1, 2]
    assert manifest.starts[2].pieces > manifest.starts[1].pieces


def test_two_ranks_keep_a_best_checkpoint(two_ranks):
    best = read_manifest(two_ranks[0]).best
    evaluations = [record for record in read_records(two_ranks[0]) if record["kind"] == "evaluation"]
    assert best.value == max(record["held_out"] for record in evaluations)
    assert f"{best.iteration:06d}" in [path.name for path in checkpoint.complete(two_ranks[0])]


def test_results_that_one_rank_finds_damaged_are_used_by_none(two_ranks):
    damaged = two_ranks[0].with_name("damaged")
    [before, after] = read_manifest(damaged).starts
    assert (before.set_aside, after.iteration) == ([], 2)
    assert [note.partition(": its checksum")[0] for note in after.set_aside] == [
        f"000002+001: {damaged}/checkpoints/000002+001/rank001.pt"
    ]
    records, wanted = (
        [untimed(record) for record in read_records(directory) if record["kind"] == "iteration"]
        for directory in (damaged, two_ranks[0])
    )
    assert records == wanted and len(records) == 4
    ended, expected = (checkpoint.newest(directory)["parameters"] for directory in (damaged, two_ranks[0]))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_a_reward_that_fails_on_one_rank_ends_all_of_them_and_what_was_done_is_saved(two_ranks):
    failures = [ranks["failed"] for ranks in two_ranks[1]]
    assert failures[0] == (["no answer (rank 1 of 2)", ""] * 2, ["000000+001", "000000+001"])
    assert failures[1] == (["no answer", ""] * 2, ["000000+001", "000000+001"])


def test_rubbish_of_a_reward_on_one_rank_ends_all_of_them_with_the_same_reason(two_ranks):
    none, parts = zip(*(ranks["rubbish"] for ranks in two_ranks[1]), strict=True)
    assert none[1].startswith("reward ShapesReward: returned None; expected Scores")
    assert none[0] == f"{none[1]} (rank 1 of 2)"
    differs = "on rank 1 parts other, where the first scores had colour, motion, smoothness (rank 0)"
    assert parts == (f"the reward differs between ranks: {differs}",) * 2


def test_rollouts_that_do_not_fill_the_ranks_are_refused_before_any_work(two_ranks):
    directory, ranks = two_ranks
    for report in ranks:
        assert "rollout.layout.num_prompts=1 x rollout.layout.group_size=3" in report["refusal"]
        assert "do not fill 2 ranks evenly" in report["refusal"]
    assert not directory.with_name("refused").exists()
