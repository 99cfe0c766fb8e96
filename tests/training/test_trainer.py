"""An iteration, with the tiny world's real transformer: whatever the method, its update is the one that it names."""

import dataclasses
import inspect
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.cost import pflop
from flash_grpo.algorithm.denoise import DivergedError, denoise
from flash_grpo.algorithm.noise import noise_keys
from flash_grpo.algorithm.sde import ode_step
from flash_grpo.algorithm.types import Scores
from flash_grpo.algorithm.weighting import inverse_lambda
from flash_grpo.records import schema
from flash_grpo.records.files import as_json
from flash_grpo.run import compose
from flash_grpo.tiny_world.reward import ShapesReward

ROOT = Path(__file__).resolve().parents[2]
ALL_METHODS = [
    *(f"method={path.stem}" for path in sorted(Path(compose.CONF, "method").glob("[!o]*.yaml"))),  # own: test_library
    *(
        f"recipe={path.stem}" for path in sorted(Path(compose.CONF, "recipe").glob("[!w]*.yaml"))
    ),  # wan21: test_real_run
    *(f"ablations={path.stem}" for path in sorted((ROOT / "ablations").glob("*.yaml"))),
    "schedule.noise=flow",
    "method.plan.draw=stratified",
    "model.guidance=4.5",
]
WITHIN = {  # the small schedule and the small groups
    "ablations=short_branches": ("method.plan.last_step=8", "optim.anneal.to=1"),
    "ablations=branchgrpo": ("method.tree.steps=[0,3]",),
}


def _rollout_by_mask(trainer, mask_BT):
    batch = trainer.batch(1)
    keys = noise_keys(batch, 0, "independent")
    made = denoise(trainer.policy, trainer.policy.encode(batch.text), keys, trainer.schedule, mask_BT)
    return made.latent_BCFHW, made.transitions


@pytest.fixture(scope="module")
def computed():
    """What `two_iterations` has computed, by configuration."""
    return {}


@pytest.fixture(scope="module", params=ALL_METHODS)
def two_iterations(request, config, trainer, computed):
    """Of every method: the trainer and its records. In the second one the policy is no longer the base."""
    within = WITHIN.get(request.param, ())
    chosen = (request.param, *within, "rollout.batch=3", "training.batch=20", "optim.optimizer.lr=1e-3")
    key = str(config(*chosen))  # some names stand for the same
    if key not in computed:
        small = trainer(*chosen)
        with warnings.catch_warnings(action="ignore"):  # few transitions may be at one step by chance
            computed[key] = small, [small.iterate(iteration) for iteration in (1, 2)]
    return computed[key]


def test_every_ratio_is_1_before_the_first_optimizer_step(two_iterations):
    for record in two_iterations[1]:
        assert record.transitions >= 8
        assert 0 <= record.ratio_drift < 1e-5


def test_a_method_trains_its_mask_and_no_other_step(two_iterations):
    small, records = two_iterations
    for record in records:
        mask_BT = small.method.plan(small.batch(record.iteration), len(small.schedule), small.seed)
        assert record.transitions == mask_BT.sum()
        assert record.steps == pytest.approx((mask_BT.sum(0) / mask_BT.sum()).tolist())


@pytest.mark.parametrize("optimizer_steps", [1, 2])
def test_weights_are_proportional_to_1_over_lambda_with_mean_1_over_each_optimizer_step(trainer, optimizer_steps):
    small = trainer(
        "ablations=no_iso_temporal", f"training.optimizer_steps={optimizer_steps}", "rollout.layout.num_prompts=4"
    )
    rollouts = small.rollouts.all(small.batch(1))
    trained = small.update(rollouts, torch.ones(4, 4))
    weight_ON, step_ON = (part.reshape(optimizer_steps, -1) for part in (trained.weight_N, trained.step_N))
    ratio_ON = weight_ON / inverse_lambda(small.schedule)[step_ON]
    torch.testing.assert_close(weight_ON.mean(1), torch.ones(optimizer_steps))
    torch.testing.assert_close(ratio_ON, ratio_ON[:, :1].expand_as(ratio_ON))
    assert weight_ON.std() > 0.05
    assert small.updater.stepper.optimizer_steps == optimizer_steps


def test_every_epoch_trains_on_the_same_rollouts_again_and_the_ratio_clip_works(trainer):
    small = trainer("training.epochs=3", "training.optimizer_steps=2", "optim.optimizer.lr=1e-2")
    record = small.iterate(1)
    assert (record.optimizer_steps, record.transitions) == (6, 3 * 8)
    assert 0 <= record.ratio_drift < 1e-5  # of the first optimizer step: nothing has been trained before it
    assert 0 < record.clip_fraction < 1
    assert record.approx_kl > 1e-9
    once = trainer("training.optimizer_steps=2", "optim.optimizer.lr=1e-2").iterate(1)
    assert once.cost.backward_evaluations * 3 == record.cost.backward_evaluations
    assert once.reward_mean == record.reward_mean


def test_shares_of_drawn_rollouts_hold_part_of_each_group(trainer):
    small = trainer("training.optimizer_steps=2", "training.shares=rollouts")
    assert torch.bincount(small.batch(1).optimizer_step_B).tolist() == [4, 4]
    assert small.iterate(1).transitions == 8


def test_rectification_warns_when_all_steps_are_equal_and_it_has_no_effect(trainer):
    one_step = trainer("method.plan.first_step=4", "method.plan.last_step=4")
    with pytest.warns(UserWarning, match="rectification has no effect"):
        record = one_step.iterate(1)
    assert (record.weight_min, record.weight_max) == pytest.approx((1, 1))


@pytest.mark.parametrize("choice", ["ablations=no_iso_temporal", "ablations=no_rectification"])
def test_rectification_does_not_warn_where_it_has_an_effect_or_is_not_asked_for(trainer, choice):
    small = trainer(choice, *(["method.plan.last_step=0"] if choice.endswith("no_rectification") else []))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small.iterate(1)
    assert not [str(warning.message) for warning in caught]


def test_a_rollout_whose_row_is_not_masked_is_the_pure_ode_bitwise(trainer):
    small = trainer()
    none_BT = torch.zeros(8, 11, dtype=torch.bool)
    some_BT = none_BT.clone()
    some_BT[2, 4] = some_BT[3, 5:8] = some_BT[7] = True
    ode, empty = _rollout_by_mask(small, none_BT)
    mixed, taken = _rollout_by_mask(small, some_BT)
    deterministic_B = ~some_BT.any(1)
    assert len(empty) == 0
    assert len(taken) == 1 + 3 + 11
    assert torch.equal(mixed[deterministic_B], ode[deterministic_B])
    assert (mixed[~deterministic_B] != ode[~deterministic_B]).flatten(1).any(1).all()


@torch.no_grad()
def test_a_one_step_rollout_is_the_ode_bitwise_before_and_after_its_stochastic_step(trainer):
    small, step = trainer(), 4
    mask_BT = torch.zeros(8, 11, dtype=torch.bool)
    mask_BT[:, step] = True
    last, taken = _rollout_by_mask(small, mask_BT)
    batch = small.batch(1)
    condition = small.policy.encode(batch.text)

    def ode(x, steps):
        for index in steps:
            v = small.policy.velocity(x, small.schedule.timestep_T[index].expand(len(x)), condition)
            x = ode_step(x, v, small.schedule.dt_T[index])
        return x

    keys = noise_keys(batch, 0, "independent").initial_B
    noise = torch.stack([keyed.normal(small.policy.latent_shape, *key) for key in keys])
    assert torch.equal(taken.x_SCFHW, ode(noise, range(step)))
    assert torch.equal(last, ode(taken.x_next_NCFHW, range(step + 1, 11)))


def test_micro_batches_change_nothing_but_float_noise(trainer):
    def two(*overrides):
        small = trainer("ablations=no_iso_temporal", "training.optimizer_steps=2", *overrides)
        return [small.iterate(iteration) for iteration in (1, 2)], small.policy.trainable()

    (whole, whole_weights), (parts, parts_weights) = two(), two("rollout.batch=3", "training.batch=3")
    for whole_record, parts_record in zip(whole, parts, strict=True):
        assert parts_record.reward_mean == pytest.approx(whole_record.reward_mean, abs=1e-4)
        assert parts_record.gradient_norm == pytest.approx(whole_record.gradient_norm, rel=1e-4)
        assert (parts_record.steps, parts_record.cost.pflop) == (whole_record.steps, whole_record.cost.pflop)
    for name, value in whole_weights.items():
        assert (parts_weights[name] - value).abs().mean() < 1e-6, name  # four optimizer steps moved it by about 4e-4


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_follows_the_trained_weights_with_the_release_decay(trainer, every):
    small = trainer(f"optim.ema.every={every}", "optim.ema.decay=0.3", "optim.optimizer.lr=1e-3")
    name, parameter = next(iter(small.policy.trainable().items()))
    expected = parameter.detach().clone()
    for step in range(1, 5):
        small.iterate(step)
        if step % every == 0:
            keep = min((1 + step) / (10 + step), 0.3)
            expected = keep * expected + (1 - keep) * parameter.detach()
        torch.testing.assert_close(small.updater.stepper.ema.shadow[name], expected)
    assert not torch.allclose(expected, parameter)


def test_the_average_is_in_the_model_only_while_it_is_applied(trainer):
    small = trainer("optim.optimizer.lr=1e-3")
    small.iterate(1)
    parameters = small.policy.trainable()
    trained = {name: value.detach().clone() for name, value in parameters.items()}
    with small.updater.stepper.ema.applied():
        assert all(torch.equal(value, small.updater.stepper.ema.shadow[name]) for name, value in parameters.items())
        assert any((value != trained[name]).any() for name, value in parameters.items())
    assert all(torch.equal(value, trained[name]) for name, value in parameters.items())


def test_kl_to_the_base_is_zero_at_the_start_then_positive_and_held_down_by_its_weight(trainer):
    def drift(weight):
        small = trainer(f"method.kl_weight={weight}", "optim.optimizer.lr=1e-3")
        return [small.iterate(iteration).base_kl for iteration in (1, 2, 3)]

    free, held = drift(1e-9), drift(1000)
    assert free[0] == pytest.approx(0, abs=1e-10)
    assert min(free[1:]) > 1e-6
    assert held[2] < 0.5 * free[2]


@pytest.mark.parametrize(
    ("choice", "trained", "forwards"),
    [
        ("method=flash", 8, 8 * 11 + 8),
        ("method=full", 80, 8 * 11 + 80),
        ("model.guidance=2.0", 8, 2 * (8 * 11 + 8)),
        ("method.kl_weight=0.1", 8, 8 * 11 + 8 + 8),
    ],
)
def test_the_cost_counts_every_forward_and_backward_of_the_transformer(trainer, choice, trained, forwards):
    small = trainer(choice)
    calls = []
    forward = small.policy.transformer.forward
    small.policy.transformer.forward = lambda x, *rest, **more: (calls.append(len(x)), forward(x, *rest, **more))[1]
    record = small.iterate(1)
    backwards = trained * small.policy.evaluations_per_velocity
    base = 8 if "kl_weight" in choice else 0
    assert record.transitions == trained
    assert (record.cost.forward_evaluations, record.cost.backward_evaluations) == (forwards, backwards)
    assert sum(calls) == forwards - base
    assert record.cost.pflop == pytest.approx(pflop(small.policy.flops, forwards, backwards))


def test_an_iteration_whose_rewards_are_all_equal_trains_nothing(trainer, monkeypatch):
    monkeypatch.setattr(
        ShapesReward, "__call__", lambda self, video, text: Scores(total_B=torch.ones(len(text)), parts={})
    )
    small = trainer()
    before = {name: value.detach().clone() for name, value in small.policy.trainable().items()}
    record = small.iterate(1)
    written = json.loads(as_json(record))
    assert (written["transitions"], written["groups_without_spread"], written["gradient_norm"]) == (0, 1, 0)
    assert (written["optimizer_steps"], written["weight_min"], written["ratio_drift"]) == (0, None, None)
    assert all(torch.equal(value, before[name]) for name, value in small.policy.trainable().items())


def test_other_seeds_have_other_rewards_from_the_first_iteration_on(trainer):
    first = [trainer(f"seed={seed}").iterate(1).reward_mean for seed in (0, 0, 1, 2)]
    assert first[0] == first[1]
    assert len(set(first)) == 3


def test_seed_and_iteration_choose_prompts_steps_and_noise(trainer):
    def chosen(seed, iteration):
        small, made = trainer("ablations=no_iso_temporal", f"seed={seed}"), []
        make = small.rollouts.make
        small.rollouts.make = lambda *work: made.append(make(*work)) or made[-1]
        small.iterate(iteration)
        taken = made[0].transitions
        return made[0].batch.text, tuple(taken.step_N.tolist()), float(taken.x_SCFHW[0].flatten()[0])

    for values in zip(chosen(0, 1), chosen(0, 2), chosen(1, 1), strict=True):
        assert len(set(values)) == 3


def test_siblings_start_alike_only_where_the_method_shares_their_noise(trainer):
    def starts(choice):
        small = trainer(choice)
        return set(noise_keys(small.batch(1), small.seed, small.method.initial_noise).initial_B)

    assert len(starts("ablations=none")) == 8
    assert len(starts("ablations=shared_noise")) == 2


@pytest.mark.parametrize(
    "record",
    [value for value in vars(schema).values() if dataclasses.is_dataclass(value)],
    ids=lambda record: record.__name__,
)
def test_every_field_of_a_record_is_documented(record):
    below = re.findall(
        r'^    (\w+): .*\n    """', inspect.getsource(record), re.MULTILINE
    )  # a docstring under the field
    words = {*re.findall(r"\w+", inspect.getdoc(record)), *below}
    undocumented = {field.name for field in dataclasses.fields(record)} - words - {"kind"}
    assert not undocumented


def test_a_policy_that_has_diverged_is_not_scored_as_black_videos(trainer):
    small = trainer("optim.optimizer.lr=1e30")
    small.iterate(1)
    with pytest.raises(DivergedError, match=r"not finite; lower optim\.optimizer\.lr"):
        small.iterate(2)
