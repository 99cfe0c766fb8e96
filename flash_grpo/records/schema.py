"""Define what a run writes to disk. Standard library only: analysis runs on copied files, without torch.

A run directory holds `run.json` (one `RunManifest`), `records.jsonl` (one `IterationRecord` or `EvalRecord` a line, told
apart by `kind`), `checkpoints/` and `samples/`. Every field below is documented with its formula and unit.
"""

from dataclasses import dataclass, field
from typing import Any

from flash_grpo.records.billed import Bill
from flash_grpo.records.slurm_job import SlurmJob

FORMAT = 2  # of a run directory: 2 since checkpoints hold a state per component; records of every format can be read

TIME = "%Y-%m-%dT%H:%M:%S%z"  # of `ProgramStart.time`
COST_PHASES = ("rollout", "decode", "reward", "update")  # rollout: without decoding


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run has spent from its first iteration up to this record, evaluation not counted. Samples are counted singly:
    classifier-free guidance counts a forward twice.
    """

    device_seconds: float = 0.0
    """Sum over ranks; wall seconds of all phases on accelerators, process CPU seconds on a CPU."""

    pflop: float = 0.0
    """The transformer's 1e-15 FLOP: forwards, backwards, and what gradient checkpointing computes again. The budget's unit.
    Before Cost had `decodes`, it was (forwards + 2 x backwards) x FLOPs of a forward.
    """

    forward_evaluations: int = 0
    """Transformer forwards that were asked for, those of backwards included, recomputed ones not."""

    backward_evaluations: int = 0
    """Transformer backwards."""

    server_seconds: float = 0.0
    """The part of device_seconds + evaluation_seconds that was spent on reward servers, not on this run's own devices."""

    recomputed_evaluations: int = 0
    """Backwards that computed their forward again, by gradient checkpointing."""

    decodes: int = 0
    """Videos decoded."""

    scored_videos: int = 0
    """Videos scored by the reward."""

    pflop_all: float = 0.0
    """`pflop`, the decoder's, and those of the reward's networks on this run's own devices. A reward that is not a network,
    or is on a server, costs seconds only, see `reward_seconds`.
    """

    rollout_seconds: float = 0.0
    """device_seconds of denoising, decoding excluded."""

    decode_seconds: float = 0.0
    """device_seconds of decoding."""

    reward_seconds: float = 0.0
    """device_seconds of scoring, a reward server's included."""

    update_seconds: float = 0.0
    """device_seconds of optimizer steps: replay, backward, AdamW."""


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """The record of one iteration (rollout + update), with statistics over all ranks.

    R rollouts, G groups, N trained transitions.

    iteration: 1 for the first; optimizer_steps: cumulative.
    cost: cumulative, this iteration included. evaluation_seconds: cumulative device-seconds of evaluation.
    seconds: wall seconds of this iteration by phase, see COST_PHASES, rank 0.
    reward_mean, reward_std: mean and population std of the R training rewards. reward_parts: mean of each part.
    within_group_std: mean over groups of the population std in the group.
    groups_without_spread: share of groups whose std is 0 (they train nothing; a row of such iterations is said on the console).
    transitions: N, the steps that were trained, counted again in each epoch; steps: share of N at each denoising step.
    weight_min, weight_max: of the weights after rescaling. advantage_abs_mean: mean |A| over N.
    ratio_mean, ratio_max: of r = exp(logp - logp_old) over N. clip_fraction: share of N with |r - 1| > ratio_clip.
    ratio_drift: max |r - 1| before the first optimizer step of this iteration: rollout against replay, 0 in exact arithmetic.
    approx_kl: mean of r - 1 - log r. base_kl: mean KL(policy || base) per latent element (0 where kl_weight is 0).
    loss: mean over N of the target's loss + kl_weight x base_kl.
    gradient_norm: l2 norm before clipping, mean over the iteration's optimizer steps. lr: of the last optimizer step.
    expert_shares: share of N that each transformer of a model of several computes, by name; {} of a model that has one.
    expert_gradient_norms: gradient_norm of each of them, mean over the optimizer steps that trained it.
    """

    kind: str = "iteration"
    iteration: int
    optimizer_steps: int
    cost: Cost
    evaluation_seconds: float
    seconds: dict[str, float]
    reward_mean: float
    reward_std: float
    reward_parts: dict[str, float]
    within_group_std: float
    groups_without_spread: float
    transitions: int
    steps: list[float]
    weight_min: float
    weight_max: float
    advantage_abs_mean: float
    ratio_mean: float
    ratio_max: float
    ratio_drift: float
    clip_fraction: float
    approx_kl: float
    base_kl: float
    loss: float
    gradient_norm: float
    lr: float
    expert_shares: dict[str, float] = field(default_factory=dict)
    expert_gradient_norms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """The record of one evaluation: deterministic ODE, fixed noise per prompt, EMA weights; the same for every method.

    iteration, optimizer_steps, cost, evaluation_seconds: as in `IterationRecord`, at the time of the evaluation.
    reward_mean: mean over prompts of prompt_rewards. reward_sem: std of prompt_rewards (ddof 1) / sqrt(n prompts); None if
    there is only one prompt.
    reward_parts: mean of each part. prompt_rewards: mean over the prompt's noises, by prompt text, in evaluation order.
    n: videos in all.
    diversity: mean over prompts of the mean pairwise RMS distance between a prompt's videos, colours in [0, 1]; None if
    there is only one video per prompt.
    base_distance: mean over videos of the mean squared difference of the velocity from the base model's, at one state of each
    video's denoising, drawn by key.
    held_out, held_out_sem, held_out_parts, held_out_prompts: as reward_mean, reward_sem, reward_parts and prompt_rewards, of
    the reward that never trains (`evaluation.held_out`) on the same videos; None or empty if there is no such reward.
    flags: the guards that hold at this evaluation, see `records.guards`; by the thresholds of `stop_when`, or the usual ones.
    """

    kind: str = "evaluation"
    iteration: int
    optimizer_steps: int
    cost: Cost
    evaluation_seconds: float
    reward_mean: float
    reward_sem: float | None
    reward_parts: dict[str, float]
    prompt_rewards: dict[str, float]
    n: int
    diversity: float | None = None
    base_distance: float | None = None
    held_out: float | None = None
    held_out_sem: float | None = None
    held_out_parts: dict[str, float] = field(default_factory=dict)
    held_out_prompts: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """The record of a run that ended with an error: `reason`, in `iteration`. Removed when the run continues."""

    kind: str = "failure"
    iteration: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProgramStart:
    """One start of the training program, by hand or by Slurm: an entry of `RunManifest.starts`.

    time: local time with its offset, 2026-01-31T23:59:59+0000.
    iteration: the iteration whose checkpoint this start continues from. reached: the last iteration that any earlier start
      recorded, saved or not.
    pieces: denoising steps, micro-batches and other resumable results that were noted before this start, see `Journal`.
    git: as in `RunManifest`. host, pid: of rank 0. slurm: the SLURM_* variables that identify the job, empty outside Slurm.
    set_aside: newer checkpoints that this start could not use, each with what is wrong with it.
    """

    time: str
    iteration: int = 0
    pieces: int = 0
    reached: int = 0
    git: dict[str, Any] | None = None
    host: str = ""
    pid: int = 0
    slurm: dict[str, str] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)

    @property
    def job(self) -> SlurmJob | None:
        """Return the Slurm job of this start, or None for a start outside Slurm."""
        return SlurmJob.of(self.slurm)


@dataclass(frozen=True, kw_only=True)
class BestCheckpoint:
    """The checkpoint that a run keeps beside its newest ones.

    iteration: that of the checkpoint. by: the value that is largest there, `checkpoint.best_by`. value: of that evaluation.
    """

    iteration: int
    by: str
    value: float


@dataclass(kw_only=True)
class RunManifest:
    """The content of run.json: what defines a run, what it ran on, and how it ended.

    format: of the run's directory, see FORMAT; 1 in directories from before the format had a number.
    run_name, study: the last two components of the directory's path. method: name of the method. seed: as configured.
    model: its path, or the name of a class of a user's own.
    config: the resolved configuration; config_hash: sha256 of what may not change on resuming (see `identity`).
    schedule: the sigma grid and std per step as used; schedule_hash: their sha256. prompts_hash: of all texts.
    adapters_hash: of the files of `optim.lora.init_from`, None without any.
    git: commit and dirty flag, None outside a checkout. packages: versions. hardware: device name, count, threads, host cores.
    world_size: number of ranks.
    status: running, completed or failed. reason: one line that says why the run failed or stopped, also if a guard completed
        it before its budget was spent (`stop_when`). traceback: of the
        exception that made it fail, on the first rank that failed.
    starts: oldest first. bill: written when no job of the run waits or runs; None before that and without Slurm.
    best: the checkpoint of the best evaluation; None if `checkpoint.best_by` is null.
    """

    run_name: str
    study: str
    method: str
    model: str
    seed: int
    config: dict[str, Any]
    config_hash: str
    schedule: dict[str, list[float]]
    schedule_hash: str
    git: dict[str, Any] | None
    packages: dict[str, str]
    hardware: dict[str, Any]
    world_size: int
    format: int = 1
    prompts_hash: str = ""
    status: str = "running"
    reason: str = ""
    traceback: str = ""
    starts: list[ProgramStart] = field(default_factory=list)
    bill: Bill | None = None
    best: BestCheckpoint | None = None
    adapters_hash: str | None = None
