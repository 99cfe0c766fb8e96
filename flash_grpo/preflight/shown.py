"""Show what a trial measured, a line each, beside what the plan predicts."""

from collections.abc import Iterator
from typing import Any

from flash_grpo.planning.plan import Plan

PREDICTED = {
    "rollout": "rollout",
    "decode": "decode",
    "update": "update",
    "texts": "text encoding",
}  # phases of the plan


def as_lines(found: dict[str, Any], plan: Plan) -> str:
    """Return the lines of a trial. Predicted memory is that of tensors on a GPU; a CPU's peak is the whole process's."""
    return "\n".join([_head(found), *_stages(found, plan), *_rest(found)])


def _head(found: dict[str, Any]) -> str:
    settings = ", ".join(
        f"{key} {found[key]}" for key in ("dtype", "attention", "compile") if found.get(key) is not None
    )
    where = f"{found.get('ranks', '?')} x {found.get('device', 'unknown')}"
    return f"preflight of {found['run']} on {where}{f' ({settings})' if settings else ''}; no run is started"


def _stages(found: dict[str, Any], plan: Plan) -> Iterator[str]:
    memory = plan.arms[0].needs.memory
    for name, took in found["stages"].items():
        terms = memory.get(PREDICTED.get(name, "")) if found["device"] != "cpu" else None
        predicted = f" (predicted {sum(terms.values()) / 1e9:.3g} GB)" if terms else ""
        peak = f", at most {took['peak_gigabytes']:.3g} GB{predicted}" if took["peak_gigabytes"] else ""
        yield f"  {name}: {took['seconds']:.3g} s{peak}"


def _rest(found: dict[str, Any]) -> Iterator[str]:
    if "ratio_drift" in found:
        yield f"  drift before any update: {found['ratio_drift']:.2e}"
    if bandwidth := found.get("collective_gigabytes_per_second"):
        yield f"  all-reduce: {bandwidth:.3g} GB/s a rank"
    if written := found.get("checkpoint_gigabytes"):
        yield f"  a checkpoint of {written:.3g} GB: {written / found['stages']['checkpoint']['seconds']:.3g} GB/s"
    for server in found.get("servers", []):
        speed = f"{server['seconds']:.3g} s a video" if server["seconds"] is not None else "no answer"
        yield f"  {server['key']}: {server['url']}: {speed}"
