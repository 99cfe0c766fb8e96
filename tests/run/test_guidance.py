"""Guidance as three numbers: each phase computes and counts with its own, and ratios compare with the policy that trains."""

import pytest
import torch

from flash_grpo.algorithm.cost import counted
from flash_grpo.records.files import read_records
from flash_grpo.run import guidance
from flash_grpo.run.build import ConfigError
from flash_grpo.training.steps import trained_PG

NO_SIGNS = str.maketrans("", "", "=.")
ONLY_ROLLOUTS = ("rollout.guidance=3", "training.guidance=1")
SEVERAL = ("training.optimizer_steps=2", "training.epochs=2")


def _advantage_PG():
    return torch.tensor([[1.0, -0.5, 0.25, -0.75], [0.5, -1.0, 0.1, 0.4]])


def _gradient(trainer, made):
    """The gradient of the mean loss on these rollouts, and the ratios."""
    steps = trainer.updater.steps(made, _advantage_PG())
    terms = trainer.updater.replayer.loss(steps, made.condition_BMD, torch.ones(len(steps)))
    terms.loss_N.mean().backward()
    return torch.cat([value.grad.flatten() for value in trainer.policy.trainable().values()]), terms.ratio_N


def test_null_is_the_model_s_guidance_and_one_policy_for_all(trainer, config):
    for overrides in ((), ("model.guidance=3",), ("model.guidance=3", "rollout.guidance=3", "training.guidance=3")):
        small = trainer(*overrides)
        assert small.policy is small.updater.replayer.policy
        assert not small.updater.replayer.off_policy
        assert guidance.guided(small.policy, config(*overrides), "evaluation") is small.policy


def test_rollouts_and_training_each_have_the_velocity_of_their_own_guidance(trainer):
    small, guided, plain = trainer(*ONLY_ROLLOUTS), trainer("model.guidance=3"), trainer()
    batch = small.batch(1)
    made = small.rollouts.all(batch)
    assert torch.equal(made.video_BFHWC, guided.rollouts.all(batch).video_BFHWC)
    assert not torch.equal(made.video_BFHWC, plain.rollouts.all(batch).video_BFHWC)
    inputs = made.transitions.x_SCFHW, torch.full((8,), 500), made.condition_BMD
    assert torch.equal(small.updater.replayer.policy.velocity(*inputs), plain.policy.velocity(*inputs))
    assert (small.policy.evaluations_per_velocity, small.updater.replayer.policy.evaluations_per_velocity) == (2, 1)


@pytest.mark.parametrize("preset", ["none", "neighbor_grpo", "awm"])
def test_before_an_update_ratios_are_1_and_the_gradient_is_that_of_the_policy_that_trains(trainer, preset):
    """Without the recomputation the ratios would compare two guidances, and clipping would decide what is trained."""
    small, plain = trainer(f"ablations={preset}", *ONLY_ROLLOUTS), trainer(f"ablations={preset}")
    made = small.rollouts.all(small.batch(1))
    gradient, ratio_N = _gradient(small, made)
    assert torch.equal(ratio_N, torch.ones(8))
    assert gradient.norm() > 0
    small.updater.replayer.off_policy = False
    small.updater.stepper.optimizer.zero_grad(set_to_none=True)
    _, wrong_N = _gradient(small, made)
    if preset == "awm":  # has no other policy's velocity in its rollouts
        assert torch.equal(wrong_N, torch.ones(8))
    else:
        assert (wrong_N - 1).abs().max() > 1e-4
    plain.updater.replayer.off_policy = True
    torch.testing.assert_close(_gradient(plain, made)[0], gradient, atol=0, rtol=0)


@pytest.mark.parametrize(
    "preset", ["none", "full_trajectory", "shared_noise", "finite_difference", "neighbor_grpo", "awm"]
)
@pytest.mark.parametrize("several", [(), SEVERAL])
@pytest.mark.parametrize("guidances", [ONLY_ROLLOUTS, ("rollout.guidance=1", "training.guidance=2")])
def test_each_phase_is_counted_with_its_own_evaluations_per_velocity(trainer, preset, several, guidances):
    small, found = trainer(f"ablations={preset}", *guidances, *several, "training.batch=3"), []
    update = small.updater.update
    small.updater.update = lambda rollouts, advantage_PG: (found.append(advantage_PG), update(rollouts, advantage_PG))[
        1
    ]
    record = small.iterate(1)
    kept_PG, kl = trained_PG(small.method.needs, found[0]), small.method.kl_weight > 0

    def kept(batch):
        return kept_PG[batch.prompt_B, batch.sibling_B]

    counts = counted(small.method, small.layout, 11, small.seed, 1, 64, kept, off_policy=True)
    rollout, training = small.policy.evaluations_per_velocity, small.updater.replayer.policy.evaluations_per_velocity
    assert {rollout, training} == {1, 2}
    assert record.cost.forward_evaluations == counts.forwards(rollout, kl, training)
    assert record.cost.backward_evaluations == counts.backwards(training)
    assert record.cost.pflop == pytest.approx(counts.pflop(rollout, small.policy.flops, kl, training))
    recomputed = bool(several) and preset != "finite_difference"  # which has no ratio
    assert (counts.old_velocities > 0) == recomputed
    assert record.ratio_drift < 1e-4


def test_old_log_probabilities_stay_those_of_before_the_update_in_later_optimizer_steps(trainer):
    small = trainer(*ONLY_ROLLOUTS, "training.epochs=2", "optim.optimizer.lr=1e-3")
    record = small.iterate(1)
    assert record.ratio_drift < 1e-4
    assert record.ratio_max > 1 + 1e-4  # the second epoch's policy has moved


def test_evaluation_has_its_own_guidance(train):
    """At the start, before any training: a model's evaluation with guidance 2, however its phases are guided."""

    def start(*overrides):
        path = train("budget.iterations=1", f"run_name=run{''.join(overrides).translate(NO_SIGNS)}", *overrides)
        return next(record for record in read_records(path) if record["kind"] == "evaluation")

    three = start(*ONLY_ROLLOUTS, "evaluation.guidance=2")
    assert three["prompt_rewards"] == start("model.guidance=2")["prompt_rewards"]
    assert three["prompt_rewards"] != start()["prompt_rewards"]
    assert start("rollout.guidance=2")["prompt_rewards"] == start()["prompt_rewards"]


class Unguided:
    """A model of one's own, with one velocity for all phases."""

    def __init__(self, *, device, lora):
        raise AssertionError("it is refused before it is made")


@pytest.mark.parametrize("phase", guidance.PHASES)
def test_a_model_that_cannot_have_several_guidances_is_refused_before_it_is_loaded(config, phase):
    cfg = config("model=own", f"model._target_={__name__}.Unguided", f"{phase}.guidance=2")
    with pytest.raises(ConfigError, match=rf"^{phase}.guidance=2: .*Unguided has no with_guidance"):
        guidance.check_guidance(cfg)
    guidance.check_guidance(config("model=own", f"model._target_={__name__}.Unguided"))
