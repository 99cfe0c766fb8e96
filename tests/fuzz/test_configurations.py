"""Every configuration runs, is refused in one line, or stops in one line: never a traceback, never a half-made run.

Examples set one to three keys to values that users type, mistype and attack with. `FUZZ_EXAMPLES` sets their number.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from conftest import SMALL
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from flash_grpo import cli
from flash_grpo.overrides import composed_outside
from flash_grpo.run.progress import Budget

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
VALUES = (
    "null", "true", "no", "0", "1", "2", "-1", "7", "0.5", "1.5", "-0.1", "1e-30", "1e300", "nan", "inf", "-inf", "''", "word",
    "[]", "[1,a]", "{}", "{a:1}", "${nowhere}", "${seed}", "${oc.env:HOME}", "???", "..", "/etc", "a/b", "~", "x=y", "\u00fc",
    "'\u4e2d'", "'a b'", "'a\nb'", f"{10**30}", "w" * 300, "builtins.dict",
    "flash_grpo.algorithm.plans.FullTrajectory", "'$(ls)'",
)  # fmt: skip
LEFT_OUT = (
    "rollout.layout",
    "slurm",
    "hydra",
    "bench",
    "server",
    "measure",
)  # sizes that would run for hours; other commands
GROUPS = {
    "method": ("flash", "full", "window", "none"),
    "ablations": ("none", "shared_noise", "naive_one_step", "full_trajectory", "sliding_window", "no_rectification"),
    "optim": ("tiny", "lora"),
    "reward": ("shapes", "brightness", "hpsv3", "composite", "aesthetic"),
    "prompts": ("shapes", "file", "video"),
    "model": ("tiny", "wan21_1p3b"),
    "recipe": ("tiny", "flow_grpo"),
}


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """The dotted names of all sections and values."""
    keys = []
    for name in node:
        key = f"{prefix}{name}"
        value = OmegaConf.to_container(node, resolve=False)[name]
        if not key.startswith(LEFT_OUT):
            keys += [key, *(_keys(node[name], f"{key}.") if isinstance(value, dict) else [])]
    return keys


KEYS = sorted(
    {key for group in ("method=flash", "method=window", "optim=lora") for key in _keys(composed_outside([group]))}
)
set_values = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))
deleted = st.builds("~{}".format, st.sampled_from(KEYS))
added = st.builds(
    "+{}.{}={}".format, st.sampled_from(KEYS), st.sampled_from(("x", "_target_", "seed")), st.sampled_from(VALUES)
)
chosen = st.sampled_from([f"{group}={option}" for group, options in GROUPS.items() for option in options])
overrides = st.lists(st.one_of(set_values, set_values, set_values, deleted, added, chosen), min_size=1, max_size=3)


def _called(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Call `train.py` in this process and in `folder`: its exit code and standard error."""
    root, argv, here = logging.getLogger(), sys.argv, Path.cwd()
    handlers, level = root.handlers[:], root.level
    err, code = io.StringIO(), 0
    try:
        os.chdir(folder)
        sys.argv = ["train.py", *arguments]
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            err.write(end.code + "\n")
    finally:
        os.chdir(here)
        sys.argv = argv
        root.handlers[:], root.level = handlers, level
    return code, err.getvalue()


@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(overrides)
@example(["~optim"])
@example(["seed=${nowhere}"])
def test_a_configuration_runs_or_is_refused_or_stops_in_one_line(given_overrides):
    folder, spent = Path(tempfile.mkdtemp()), Budget.spent
    Budget.spent = lambda self, iteration, cost: float(iteration >= 1)  # whatever the budget, one iteration
    try:
        code, err = _called([*SMALL, *given_overrides], folder)
        left = [path.name for path in folder.iterdir()]
    finally:
        Budget.spent = spent
        shutil.rmtree(folder)
    said = [line for line in err.splitlines() if line]
    assert "Traceback" not in err
    if code == 2:
        assert len(said) == 1, said
        assert said[0].startswith("error: ")
        assert len(said[0]) < 1500
        assert left == []
    elif code == 1:
        assert said[-1].startswith("stopped: ")
    else:
        assert code == 0
