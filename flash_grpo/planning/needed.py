"""Gather what a run needs: memory by phase, the host's, disk, time to save in; and say what is too little."""

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from flash_grpo.planning import needs
from flash_grpo.planning.allocation import Allocation
from flash_grpo.planning.counts import Iterations
from flash_grpo.planning.fit import way_out
from flash_grpo.planning.memory import OUTSIDE, Load, Terms, peak, phases
from flash_grpo.planning.model import Model
from flash_grpo.planning.spending import Work


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one run needs, in bytes. memory: of a rank's device, by phase and term. host: of a node, by term.

    checkpoints: those that stay, being written, and in the middle of an iteration. saving_seconds: to leave in the middle of an
    iteration. embeddings: of the cache of texts, for texts that are new. lacking: what is too little, a line each.
    """

    memory: dict[str, Terms]
    host: Terms
    checkpoint: float
    checkpoints: float
    mid_iteration: float
    saving_seconds: float
    embeddings: float
    lacking: list[str]


def needs_of(cfg: DictConfig, work: Work, iterations: Iterations, where: Allocation, texts: int) -> Needs:
    """Return what a run of this configuration needs where it would run. texts: how many different ones it reads."""
    model, load, rank = work.model, _load(cfg, work, iterations, where), _rank(work, iterations, where)
    memory = phases(model, load)
    of_rank = needs.host(model, load, rank, where.device.is_cpu, peak(memory)[1])
    host = {name: where.ranks_per_node * size for name, size in of_rank.items()}
    saving = needs.saving_seconds(model, load, rank, cfg.planning.disk_speed, _piece(cfg, work, load))
    found = Needs(
        memory=memory,
        host=host,
        checkpoint=needs.checkpoint(model),
        checkpoints=needs.disk(model, load, rank, cfg.checkpoint.keep),
        mid_iteration=needs.mid_iteration(model, load, rank),
        saving_seconds=saving,
        embeddings=needs.embeddings(model, texts),
        lacking=[],
    )
    found.lacking.extend(_lacking(found, model, load, where))
    return found


def _lacking(found: Needs, model: Model, load: Load, where: Allocation) -> Iterator[str]:
    device, host = where.device, sum(found.host.values())
    if not device.is_cpu and (way := way_out(model, load, 1e9 * device.gigabytes)):
        phase, size = peak(found.memory)
        yield (
            f"does not fit: {phase} needs {(size + OUTSIDE) / 1e9:.0f} GB of {device.name}'s {device.gigabytes:g} GB: {way}"
        )
    if where.host_gigabytes and host > 1e9 * where.host_gigabytes:
        yield (
            f"does not fit: the host needs {host / 1e9:.0f} GB a node, and hydra.launcher.mem_gb={where.host_gigabytes:g} "
            f"is asked for: hydra.launcher.mem_gb={host / 1e9 + 1:.0f} would do"
        )
    if where.grace_seconds is not None and found.saving_seconds > where.grace_seconds:
        yield (
            f"too slow to save: {found.saving_seconds:.0f} s in the middle of an iteration, and the run is asked "
            f"hydra.launcher.signal_delay_s={where.grace_seconds:g} s before its time limit: "
            f"hydra.launcher.signal_delay_s={found.saving_seconds * 1.5:.0f} would do"
        )


def _load(cfg: DictConfig, work: Work, iterations: Iterations, where: Allocation) -> Load:
    largest = iterations.largest
    return Load(
        ranks=where.ranks,
        part=largest.part,
        kept=largest.kept_of_part,
        kept_target=largest.kept_latents,
        rollout_batch=min(cfg.rollout.batch, largest.part),
        training_batch=min(cfg.training.batch, max(1, largest.kept)),
        evaluation_batch=cfg.evaluation.sampler.batch,
        rollouts=largest.rollouts,
        fused=not where.device.is_cpu,
        scoring_bytes=0.0 if work.scoring.servers else 1e9 * work.scoring.gigabytes,
    )


def _rank(work: Work, iterations: Iterations, where: Allocation) -> needs.Rank:
    """Return what the fullest rank has. With servers no video may be scored yet; here only those of a part wait."""
    largest, states = iterations.largest, iterations.mean.trained_states / where.ranks
    return needs.Rank(
        rollouts=largest.rollouts,
        states=min(states, largest.kept),
        steps=largest.kept,
        waiting=largest.rollouts if work.scoring.servers else largest.part,
    )


def _piece(cfg: DictConfig, work: Work, load: Load) -> float:
    """Return the seconds of the longest piece of work that a run finishes before it leaves.

    A velocity, a backward, or a part's decoding and scoring; servers are not waited for.
    """
    scored = 0.0 if work.scoring.servers else work.scoring.seconds
    part = load.part * (work.prices.decode.seconds + scored)
    return max(load.rollout_batch * work.velocity, load.training_batch * work.update, part)
