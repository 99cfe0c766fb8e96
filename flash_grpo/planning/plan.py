"""Plan the runs of a command line: what each computes, costs and needs. Reads prompts and sizes; starts and writes nothing."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.algorithm.cost import Counts
from flash_grpo.planning.allocation import Allocation, allocation
from flash_grpo.planning.counts import Iterations, iterations_of, spread_of_total, times
from flash_grpo.planning.devices import chosen_device
from flash_grpo.planning.measured import Measured
from flash_grpo.planning.model import Model, model_of, settings_of
from flash_grpo.planning.needed import Needs, needs_of
from flash_grpo.planning.points import Arm, Asked, asked
from flash_grpo.planning.scoring import scoring_of, servers_needed
from flash_grpo.planning.spending import Evaluations, Spent, Work, spent, wall_of_iteration
from flash_grpo.planning.unit_prices import unit_prices
from flash_grpo.policies.source import pipeline_folder
from flash_grpo.records.prices import load_prices
from flash_grpo.run import build
from flash_grpo.run.settings import NOT_GIVEN, check, stand_in_for_prompts

USUAL_REWARD = "hpsv3"  # the release's


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What one run computes and costs. spread: standard deviations of `counts`, 0 where the plans are drawn.

    seconds: device-seconds of an iteration, by phase. iteration_wall, evaluation_wall: seconds. training_hours,
    evaluation_hours: device-hours that are charged, waiting included. wall_hours: until it is done, if it never waits in a
    queue.
    """

    run: str
    iterations: int
    evaluations: int
    counts: Counts
    spread: Counts
    forwards: float
    forwards_spread: float
    backwards: float
    recomputes: float
    pflop: float
    pflop_all: float
    evaluation_pflop: float
    seconds: dict[str, float]
    iteration_wall: float
    evaluation_wall: float
    training_hours: float
    evaluation_hours: float
    starts: int

    @property
    def hours(self) -> float:
        return self.training_hours + self.evaluation_hours

    def wall_hours(self, ranks: int) -> float:
        return self.hours / ranks


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """Runs that differ in their seed alone. servers: reward servers that keep up; 0 where the ranks score."""

    runs: list[RunPlan]
    model: Model
    work: Work
    evaluation: Evaluations
    servers: int
    cfg: DictConfig
    needs: Needs

    @property
    def name(self) -> str:
        """Return a name for all its runs: the first one's, without its folder and its seed."""
        return self.runs[0].run.rpartition("/")[2].rpartition("-seed")[0]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command line would start. notes: what a reader must know, a line each. price: of a device-hour."""

    asked: Asked
    allocation: Allocation
    arms: list[ArmPlan]
    price: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunPlan]:
        return [run for arm in self.arms for run in arm.runs]


def plan_of(overrides: list[str], multirun: bool, measured: Measured | None = None) -> Plan:
    """Plan the runs of a command line; ConfigError where one could not begin because its settings do not fit.

    measured: prices, in place of those that are assumed, for the runs that they are of.
    """
    what = asked(overrides, multirun)
    first = what.arms[0].cfg
    device, why = chosen_device(first.planning.device, what.launcher, first.device)
    where = allocation(what.launcher, device, why)
    arms = [_arm(arm, where, measured if measured and measured.is_of(arm.cfg) else None) for arm in what.arms]
    notes = list(dict.fromkeys(line for arm in arms for line in _notes(arm)))
    return Plan(asked=what, allocation=where, arms=arms, price=first.planning.gpu_hour_price, notes=notes)


def _arm(arm: Arm, where: Allocation, measured: Measured | None) -> ArmPlan:
    cfg, name = arm.cfg, str(OmegaConf.select(arm.cfg, "hydra.runtime.choices.model"))
    stand_in_for_prompts(cfg)
    check(cfg)
    build.build_evaluation(cfg)  # refuses what its numbers may not be
    model = model_of(cfg, name)
    known = load_prices().models.get(name)
    scoring, held_out = scoring_of(cfg.reward, cfg, known.reward if known else USUAL_REWARD), cfg.evaluation.held_out
    kl, prices = cfg.method.kl_weight > 0, measured.prices if measured else unit_prices(model, where.device)
    if measured:
        scoring, cfg.planning.disk_speed = measured.scoring(scoring), measured.disk_speed
    work = Work(model=model, prices=prices, scoring=scoring, kl=kl)
    sampler, (train, test) = cfg.evaluation.sampler, _prompts(cfg)
    evaluation = Evaluations(
        prompts=test,
        noises=sampler.noises_per_prompt,
        velocities=sampler.schedule.num_steps + 2,
        held_out_seconds=0.0 if held_out is None else scoring_of(held_out, cfg, USUAL_REWARD).seconds,
    )
    iterations = iterations_of(cfg, where.ranks)
    planned = partial(_run, cfg=cfg, work=work, evaluation=evaluation, where=where, iterations=iterations)
    drawn = cfg.planning.drawn
    same = None if drawn else spent(cfg, work, iterations.expected())
    runs = [
        planned(run, same or spent(cfg, work, iterations.drawn(seed)))
        for run, seed in zip(arm.runs, arm.seeds, strict=True)
    ]
    mean = iterations.mean
    making = mean.rollout_velocities / mean.videos * work.velocity + work.prices.decode.seconds
    servers = servers_needed(where.ranks, scoring.seconds, making) if scoring.servers else 0
    trained_on = max(run.iterations for run in runs) * cfg.rollout.layout.num_prompts
    texts = test + (trained_on if train is None else min(train, trained_on))
    needs = needs_of(cfg, work, iterations, where, texts)
    return ArmPlan(runs=runs, model=model, work=work, evaluation=evaluation, servers=servers, cfg=cfg, needs=needs)


def _run(
    run: str,
    bought: Spent,
    cfg: DictConfig,
    work: Work,
    evaluation: Evaluations,
    where: Allocation,
    iterations: Iterations,
) -> RunPlan:
    model, counts, each = work.model, bought.counts, times(bought.counts, 1 / bought.iterations)
    wall, evaluation_wall = wall_of_iteration(work, each, where.ranks), evaluation.wall(work, where.ranks)
    training, evaluating = bought.iterations * wall / 3600, bought.evaluations * evaluation_wall / 3600
    backwards = counts.backwards(model.training_evaluations)
    pflop, none = work.pflop(counts), times(iterations.spread, 0)
    spread = none if cfg.planning.drawn else spread_of_total(iterations.spread, bought.iterations)
    return RunPlan(
        run=run,
        iterations=bought.iterations,
        evaluations=bought.evaluations,
        counts=counts,
        spread=spread,
        forwards=work.forwards(counts),
        forwards_spread=work.forwards(spread),
        backwards=backwards,
        recomputes=backwards if model.checkpointing else 0,
        pflop=pflop,
        pflop_all=pflop + 1e-15 * counts.videos * model.flops.decode,
        evaluation_pflop=bought.evaluations * evaluation.pflop(work),
        seconds=work.phases(each),
        iteration_wall=wall,
        evaluation_wall=evaluation_wall,
        training_hours=where.ranks * training,
        evaluation_hours=where.ranks * evaluating,
        starts=math.ceil((training + evaluating) / (where.minutes / 60)) if where.minutes else 1,
    )


def _prompts(cfg: DictConfig) -> tuple[int | None, int]:
    """Return how many prompts are trained on and held out; without files None, and `planning.test_prompts`."""
    if NOT_GIVEN in (cfg.prompts.get("train"), cfg.prompts.get("test")):
        return None, cfg.planning.test_prompts
    prompts: Any = build.build(cfg.prompts, "prompts", Prompts)
    return len(set(prompts.train)), len(prompts.test)


def _notes(arm: ArmPlan) -> list[str]:
    """Say what is assumed, and what is not there yet, of an arm."""
    lines, cfg = [f"{arm.name}: {line}" for line in arm.needs.lacking], arm.cfg
    if cfg.prompts.get("test") == NOT_GIVEN:
        lines.append(
            f"prompts.test is not given: {arm.evaluation.prompts} held-out prompts are counted (planning.test_prompts)"
        )
    if arm.work.scoring.unpriced:
        lines.append(f"{', '.join(arm.work.scoring.unpriced)}: nobody knows the seconds, which are left out")
    if arm.work.scoring.servers:
        lines.append(f"the reward servers are taken to serve {arm.work.scoring.networks[0]} (planning.served_reward)")
    if arm.servers > arm.work.scoring.servers:
        lines.append(
            f"{arm.name}: the ranks wait for {arm.work.scoring.servers} reward server(s); {arm.servers} in reward.urls keep up"
        )
    if arm.model.real:
        try:
            settings = settings_of(cfg)
            pipeline_folder(settings.path, settings.revision, settings.wanted)
        except ValueError as error:
            lines.append(f"the queue would refuse these runs until the weights are here: {error}")
    return lines
