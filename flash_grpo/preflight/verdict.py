"""Judge a trial: what stands in the way of a run, a line each with the setting that would change it."""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from flash_grpo.planning.fit import CHANGES
from flash_grpo.planning.measured import Measured, settings_of_model
from flash_grpo.planning.plan import ArmPlan, Plan
from flash_grpo.planning.unit_prices import UnitPrices
from flash_grpo.records.prices import Price

LOADING_SHARE = 0.5  # of a start that loading may take


def measured_of(found: dict[str, Any], cfg: DictConfig) -> Measured | None:
    """Return the unit prices of a trial; None if it did not come to the end of its update."""
    if "update_backward_evaluations" not in found or "checkpoint_gigabytes" not in found:
        return None
    stages, source = found["stages"], f"measured by preflight on {found['device']}"
    forward = stages["rollout"]["seconds"] / found["rollout_forwards"]
    recompute = forward if cfg.model.get("gradient_checkpointing") else 0.0
    update = stages["update"]["seconds"] - found["update_forward_evaluations"] * forward
    backward = max(0.0, update / max(1.0, found["update_backward_evaluations"]) - recompute)
    seconds = {"forward": forward, "recompute": recompute, "backward": backward}
    seconds["decode"] = stages["decode"]["seconds"] / found["videos"]
    return Measured(
        prices=UnitPrices(**{work: Price(seconds=value, source=source) for work, value in seconds.items()}),
        score_seconds=_score_seconds(found),
        disk_speed=max(1e-9, found["checkpoint_gigabytes"] / stages["checkpoint"]["seconds"]),
        source=source,
        like=settings_of_model(cfg),
    )


def _score_seconds(found: dict[str, Any]) -> float | None:
    """Return the seconds of one device for one video: the servers' mean, else the rank's own; None if nothing answered."""
    servers = [server["seconds"] for server in found["servers"] if server["key"].startswith("reward")]
    answered = [seconds for seconds in servers if seconds is not None]
    if servers:
        return sum(answered) / len(answered) if answered else None
    return found["stages"]["reward"]["seconds"] / found["videos"]


def reasons(found: dict[str, Any], cfg: DictConfig, plan: Plan) -> list[str]:
    """Return why a run should not start, a line each; [] if nothing stands in the way. plan: with the measured prices."""
    arm = plan.arms[0]
    return [
        *_failed(found),
        *_drifted(found, cfg),
        *_of_servers(found),
        *_slow(found, arm, plan.allocation.ranks),
        *_loading(found, plan),
        *arm.needs.lacking,
    ]


def _failed(found: dict[str, Any]) -> Iterator[str]:
    if failed := found.get("failed"):
        way = f": try {', '.join(words for words, _ in CHANGES)}" if "OutOfMemory" in failed["why"] else ""
        yield f"{failed['stage']}: {failed['why']}{way}"
    if found.get("reward_failure"):
        yield f"reward: {found['reward_failure']}"


def _drifted(found: dict[str, Any], cfg: DictConfig) -> Iterator[str]:
    clip, drift = cfg.method.get("ratio_clip"), found.get("ratio_drift", 0.0)
    if clip is not None and drift > clip:
        yield (
            f"drift: before any update, ratios differ from 1 by {drift:.2e}, more than method.ratio_clip={clip:g}: try "
            "rollout.batch equal to training.batch, model.compile=false, another model.attention, model.dtype=float32, or a "
            "larger method.ratio_clip"
        )


def _of_servers(found: dict[str, Any]) -> Iterator[str]:
    for server in found.get("servers", []):
        who = f"{server['key']}.urls: {server['url']}"
        if server["failure"]:
            yield f"{who} does not score ({server['failure']}): start it, or leave it out of {server['key']}.urls"
        elif server["difference"]:
            yield (
                f"{who} scores one video differently by {server['difference']:.2g} when asked twice, so that no run could be "
                f"repeated: serve a reward that is deterministic, or leave it out of {server['key']}.urls"
            )


def _slow(found: dict[str, Any], arm: ArmPlan, ranks: int) -> Iterator[str]:
    """Say if ranks would wait for their servers for longer than they compute."""
    servers, seconds = arm.work.scoring.servers, arm.runs[0].seconds
    computing = sum(seconds[name] for name in ("rollout", "decode", "update")) / ranks
    answered = any(server["seconds"] is not None for server in found.get("servers", []))
    if servers and answered and seconds["reward"] / servers > 2 * computing:
        yield (
            f"reward.urls: scoring takes {seconds['reward'] / servers:.3g} s of an iteration on {servers} server(s), and all "
            f"else {computing:.3g} s: {math.ceil(seconds['reward'] / computing)} servers in reward.urls would keep up"
        )


def _loading(found: dict[str, Any], plan: Plan) -> Iterator[str]:
    minutes, loading = plan.allocation.minutes, (found["stages"].get("loading") or {}).get("seconds")
    if minutes and loading and loading > LOADING_SHARE * 60 * minutes:
        yield (
            f"loading takes {loading:.0f} s of each start of hydra.launcher.timeout_min={minutes:g}: "
            f"hydra.launcher.timeout_min={math.ceil(loading / 60 / LOADING_SHARE)} would do"
        )
