"""What a run writes to disk, and how to read it back. Standard library only: analysis runs on copied files, without torch.

A run directory holds `run.json` (one `RunManifest`), `records.jsonl` (one `IterationRecord` or `EvalRecord` a line, told
apart by `kind`), `checkpoints/` and `samples/`. Every field below is documented with its formula and unit.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST, RECORDS = "run.json", "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run has spent from its first iteration up to this record, evaluation not counted.

    device_seconds: sum over ranks; wall seconds of rollout + reward + update on accelerators, process CPU seconds on a CPU.
    server_seconds: those of device_seconds and of evaluation_seconds that reward servers spent, on devices not the run's own.
    pflop: 1e-15 x (forward_evaluations + 2 x backward_evaluations) x FLOPs of one forward of one sample.
    forward_evaluations: transformer forwards, counted per sample; classifier-free guidance counts twice.
    backward_evaluations: transformer backwards, counted per sample.
    """

    device_seconds: float = 0.0
    pflop: float = 0.0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    server_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """One rollout + update. Statistics are over all ranks' rollouts (R), groups (G) or trained transitions (N).

    iteration: 1 for the first; optimizer_steps: cumulative.
    cost: cumulative, this iteration included. evaluation_seconds: cumulative device-seconds of evaluation.
    seconds: wall seconds of this iteration by phase (rollout, reward, update), rank 0.
    reward_mean, reward_std: mean and population std of the R training rewards. reward_parts: mean of each part.
    within_group_std: mean over groups of the population std in the group.
    groups_without_spread: share of groups whose std is 0 (they train nothing).
    transitions: N, the transitions that were trained; steps: share of N at each denoising step.
    weight_min, weight_max: of the weights after rescaling. advantage_abs_mean: mean |A| over N.
    ratio_mean, ratio_max: of r = exp(logp - logp_old) over N. clip_fraction: share of N with |r - 1| > ratio_clip.
    ratio_drift: max |r - 1| before the first optimizer step of this iteration: rollout against replay, 0 in exact arithmetic.
    approx_kl: mean of r - 1 - log r. base_kl: mean KL(policy || base) per latent element (0 where kl_weight is 0).
    loss: mean over N of the clipped surrogate + kl_weight x base_kl.
    gradient_norm: l2 norm before clipping, mean over the iteration's optimizer steps. lr: of the last optimizer step.
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


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation: deterministic ODE, fixed noise per prompt, EMA weights; the same sampler for every method.

    iteration, optimizer_steps, cost, evaluation_seconds: as in `IterationRecord`, at the time of the evaluation.
    reward_mean: mean over prompts of prompt_rewards. reward_sem: std of prompt_rewards (ddof 1) / sqrt(n prompts); none of
    a single prompt.
    reward_parts: mean of each part. prompt_rewards: mean over the prompt's noises, by prompt text, in evaluation order.
    n: videos in all.
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


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """The run ended by an error in `iteration`, for `reason`. It disappears when the run continues from a checkpoint."""

    kind: str = "failure"
    iteration: int
    reason: str


@dataclass(kw_only=True)
class RunManifest:
    """Everything that tells one run from another.

    run_name, study: the directory's two last parts. method: name of the method; seed, model: as configured.
    config: the resolved configuration; config_hash: sha256 of what may not change on resuming (see `identity`).
    schedule: the sigma grid and std per step as used; schedule_hash: sha256 of them. prompts_hash: of all texts.
    git: commit and dirty flag, None outside a checkout. packages: versions. hardware: device name, count, threads, host cores.
    world_size: number of ranks.
    status: running, completed or failed; reason: one line when failed, or why it stopped. traceback: of the exception that
        it failed of, on whichever rank.
    starts: one entry per start of the program: time, iteration it continued from, pieces (micro-batches and others, see
      `journal`) done until then, reached (the last iteration that any start before it has recorded), git, Slurm ids, host, pid.
    bill: what Slurm charges, over all jobs of the run and all their starts, requeued ones too; written when no job of it
        waits or runs; None where it ran without Slurm. starts: job, Slurm's state at the end, start (UTC), seconds
        elapsed, devices (GPUs allocated; without GPUs the ranks). device_seconds: sum of seconds x devices.
        useful_device_seconds: cost.device_seconds + evaluation_seconds - cost.server_seconds of the last record, at most
        device_seconds: a run may also have run elsewhere, or on a CPU with several threads.
        lost_device_seconds: the difference: starting up, saving, waiting, and work done twice; on a CPU also time in which
        the process had no core.
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
    prompts_hash: str = ""
    status: str = "running"
    reason: str = ""
    traceback: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    bill: dict[str, Any] | None = None


def as_json(record: Any) -> str:
    """One line of strict JSON; a non-finite number becomes null, never `NaN`."""
    return json.dumps(_finite(dataclasses.asdict(record)), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader, or a crash, sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        with open(aside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def write_manifest(run_dir: Path, manifest: RunManifest) -> None:
    write_atomically(run_dir / MANIFEST, json.dumps(_finite(dataclasses.asdict(manifest)), indent=1) + "\n")


def read_manifest(run_dir: Path) -> RunManifest | None:
    """The run's manifest, or None where there is none. Keys that this version does not know are left out."""
    path = Path(run_dir) / MANIFEST
    if not path.exists():
        return None
    known = {item.name for item in dataclasses.fields(RunManifest)}
    return RunManifest(**{key: value for key, value in json.loads(path.read_text()).items() if key in known})


class RecordWriter:
    """Appends records to `records.jsonl`; on resuming it first cuts the file back to the checkpoint's length."""

    def __init__(self, run_dir: Path, length: int):
        self.path = Path(run_dir) / RECORDS
        self.path.touch()
        if self.length < length:
            raise RuntimeError(f"{self.path} is shorter than its checkpoint says: records are missing")
        os.truncate(self.path, length)

    def append(self, record: Any) -> None:
        """All of it or, on a full disk, nothing: the next one begins on a line of its own."""
        length = self.path.stat().st_size
        try:
            with open(self.path, "a") as file:
                file.write(as_json(record) + "\n")
        except OSError:
            os.truncate(self.path, length)
            raise

    @property
    def length(self) -> int:
        """Bytes, all of them on disk."""
        with open(self.path) as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size


def read_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The run's records as dictionaries, oldest first; a last line cut short by a crash is skipped."""
    path = Path(run_dir) / RECORDS
    if not path.exists():
        return
    with open(path) as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def read_newest_first(run_dir: Path) -> Iterator[dict[str, Any]]:
    """As `read_records`, from the end: for who wants the last ones of a long run."""
    path = Path(run_dir) / RECORDS
    for line in reversed(path.read_text().splitlines(keepends=True) if path.exists() else []):
        if line.endswith("\n"):
            yield json.loads(line)
