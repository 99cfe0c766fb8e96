"""Answer `preflight=true`: try a micro-batch where the run would be, judge what was measured, and plan again with it."""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flash_grpo.cluster.single_job import NoResultError, submitted
from flash_grpo.planning.devices import device_named
from flash_grpo.planning.plan import Plan, plan_of
from flash_grpo.planning.points import asked
from flash_grpo.planning.shown import as_json, as_text
from flash_grpo.preflight.shown import as_lines
from flash_grpo.preflight.trial import trial
from flash_grpo.preflight.verdict import measured_of, reasons
from flash_grpo.records.files import write_atomically
from flash_grpo.run.rehearsal import rehearse
from flash_grpo.run.settings import ConfigError

FOLDER = ".preflight"  # in the study
MINUTES = 30  # a preflight's own time limit
log = logging.getLogger(__name__)


def preflight(overrides: list[str], multirun: bool) -> bool:
    """Measure the first run of a command line where it would be, print all of it, and return True for go.

    The job's files, its log and `preflight.json` lie in `STUDY/.preflight/RUN`; the study gets no run.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    what = asked(overrides, multirun or _goes_elsewhere(overrides))
    cfg = what.arms[0].cfg
    folder = Path(str(cfg.runs_root), str(cfg.study), FOLDER, str(cfg.run_name))
    found = _tried(cfg, what.launcher, folder)
    plan = _planned_again(overrides, what.launcher is not None, found, cfg)
    why = reasons(found, cfg, plan)
    written = {"verdict": "no-go" if why else "go", "reasons": why, **found, "plan": as_json(plan)}
    write_atomically(folder / "preflight.json", json.dumps(written, indent=1) + "\n")
    print("\n\n".join([as_lines(found, plan), as_text(plan), _verdict(why, folder)]), flush=True)
    return not why


def _goes_elsewhere(overrides: list[str]) -> bool:
    """Return True if the command line names a cluster's shape: its single run is then planned as a sweep of one."""
    return any(item.partition("=")[0] == "slurm" for item in overrides)


def _tried(cfg: DictConfig, launcher: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Return what a trial measured: in a job of the launcher's shape where there is one, else in this process."""
    plain = {
        str(key): OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in cfg
        if key != "hydra"
    }
    on_slurm = launcher is not None and "signal_delay_s" in launcher
    rehearse(cfg, launcher["nodes"] * launcher["tasks_per_node"] if launcher and on_slurm else 1)
    folder.mkdir(parents=True, exist_ok=True)
    place = str(folder.absolute())
    if not launcher or not on_slurm:
        return trial(plain, place)
    job = submitted(launcher, MINUTES, folder, trial, plain, place)
    log.info("preflight: job %s waits or runs; its log is %s", job.job.job_id, job.log_file)
    try:
        results = job.results()
    except NoResultError as error:
        return {"run": cfg.run_name, "stages": {}, "failed": {"stage": "the job", "why": str(error)}}
    return next((result for result in results if "failed" in result), results[0])


def _planned_again(overrides: list[str], multirun: bool, found: dict[str, Any], cfg: DictConfig) -> Plan:
    """Plan with what was measured, on the device that the nodes have, if the table of devices has it."""
    device = []
    if found.get("device", "cpu") != "cpu" and not cfg.planning.device:
        try:
            device = [f"planning.device={device_named(found['device'], '').name}"]
        except ConfigError:
            log.warning("preflight: %s is not in flash_grpo/planning/devices.toml", found["device"])
    return plan_of([*overrides, *device], multirun, measured_of(found, cfg))


def _verdict(why: list[str], folder: Path) -> str:
    lines = (
        [f"no-go, for {len(why)} reason(s):", *(f"- {line}" for line in why)]
        if why
        else ["go: nothing stands in the way"]
    )
    return "\n".join([*lines, f"the numbers, and the job's files: {folder}/preflight.json"])
