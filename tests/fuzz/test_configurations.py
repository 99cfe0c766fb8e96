"""Every configuration runs, is refused in one line, or stops in one line: never a traceback, never a half-made run.

Examples set one to three keys to values that users type, mistype and attack with, and choose among all options of the groups.
`FUZZ_EXAMPLES` sets their number.
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
from flash_grpo.recompose import composed_outside
from flash_grpo.rewards.waiting import Waiting
from flash_grpo.run.compose import CONF
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
TREE = "{_target_: flash_grpo.algorithm.noise.Tree, "
GUIDANCE = ("1.0", "4.5", "101")
OWN_VALUES = {
    "method.tree": (
        TREE + "roots: 1, steps: [1], branches: 4}", TREE + "roots: 1}", TREE + "roots: 2}",
        TREE + "steps: [nan], branches: -1}", TREE + "steps: 3, roots: null}", "{roots: 1}",
    ),
    "method.initial_noise": ("shared", "independent", "0.3"),
    "evaluation.held_out": (
        "{_target_: flash_grpo.rewards.brightness.brightness, _partial_: true}", "{_target_: builtins.len}",
        "{_target_: flash_grpo.rewards.nowhere.Nothing}", "{other: 1}",
    ),
    "evaluation.guidance": GUIDANCE,
    "rollout.guidance": GUIDANCE,
    "training.guidance": GUIDANCE,
    "rollout.train_fraction": ("0.25", "0.75", "1.0", "1.01"),
    "checkpoint.best_by": ("reward", "held_out", "worst"),
    "optim.lora.init_from": ("{transformer: a.safetensors}", "{transformer: /etc, transformer_2: null}", "README.md"),
    "optim.lora.kl_base": ("model", "init_from"),
    "optim.lora.targets": ("[to_q]", "[1]", "all"),
    "model.boundary": ("0.5", "1.0", "0.0", "'0.9'"),
    "model.split": ("true", "false"),
    "model.guidance_2": ("1.0", "3.0", "[1]"),
    "model.experts": ("[transformer]", "[transformer_2]", "[transformer,transformer]", "[1]", "transformer"),
    "model.max_text_tokens": ("1", "100000"),
    "stop_when.held_out_falls": ("1", "3"),
    "stop_when.diversity_below": ("0.99", "1.0"),
    "stop_when.base_distance_above": ("1e-12",),
    "plan": ("true", "json", "text"),
    "track": ("wandb", "tensorboard", "[wandb]", "Wandb"),
}  # fmt: skip
"""What fits a key, or nearly does, beside VALUES."""

NEEDED = {
    "optim.lora": "optim=lora",
    "model.boundary": "model=tiny_two_experts",
    "model.split": "model=tiny_two_experts",
    "model.guidance_2": "model=tiny_two_experts",
    "model.experts": "model=tiny_two_experts",
    "method.tree": "method.initial_noise=shared",
}
"""Without what a key is not there, or is refused whatever its value."""


def _options() -> dict[str, list[str]]:
    """Return the options of every group that a run may choose from, by the files there are."""
    options: dict[str, list[str]] = {}
    for path in sorted(Path(CONF).glob("*/*.yaml")):
        options.setdefault(path.parent.name, ["none"]).append(path.stem)
    options["ablations"] = sorted(path.stem for path in (Path(__file__).parents[2] / "ablations").glob("*.yaml"))
    return options | {"reward@evaluation.held_out": ["null", *options["reward"]]}


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """The dotted names of all sections and values."""
    keys = []
    for name in node:
        key = f"{prefix}{name}"
        value = OmegaConf.to_container(node, resolve=False)[name]
        if not key.startswith(LEFT_OUT):
            keys += [key, *(_keys(node[name], f"{key}.") if isinstance(value, dict) else [])]
    return keys


CHOICES = (["method=flash"], ["method=window"], ["optim=lora"], ["model=tiny_two_experts"], ["recipe=scenes"])
KEYS = sorted({key for chosen in CHOICES for key in _keys(composed_outside(chosen))})


def _drawn(setting: str) -> list[str]:
    """Return the override, after the one that its key needs, if any."""
    return [*(needed for key, needed in NEEDED.items() if setting.startswith(key)), setting]


set_values = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)).map(_drawn)
deleted = st.builds("~{}".format, st.sampled_from(KEYS)).map(lambda key: [key])
added = st.builds(
    "+{}.{}={}".format, st.sampled_from(KEYS), st.sampled_from(("x", "_target_", "seed")), st.sampled_from(VALUES)
).map(lambda override: [override])
own_values = st.sampled_from([_drawn(f"{key}={value}") for key, values in OWN_VALUES.items() for value in values])
chosen = st.sampled_from([[f"{group}={option}"] for group, options in _options().items() for option in options])
overrides = st.lists(
    st.one_of(set_values, set_values, own_values, own_values, deleted, added, chosen, chosen), min_size=1, max_size=3
).map(lambda drawn: list(dict.fromkeys(override for some in drawn for override in some)))


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


def outcome(arguments: list[str]) -> tuple[int, list[str], list[str]]:
    """Call `train.py` in an empty folder: its exit code, the lines of its standard error, and the names of what it left."""
    folder, spent, ranges_of_waiting = Path(tempfile.mkdtemp()), Budget.spent, Waiting.__post_init__

    def gives_up_at_once(self):  # no half hour for a server that nobody starts, nor for requests that outlive the run
        ranges_of_waiting(self)
        self.give_up_after = 0.0

    Budget.spent = lambda self, iteration, cost: float(iteration >= 1)  # whatever the budget, one iteration
    Waiting.__post_init__ = gives_up_at_once
    try:
        code, err = _called([*SMALL, *arguments], folder)
        left = [path.name for path in folder.iterdir()]
    finally:
        Budget.spent, Waiting.__post_init__ = spent, ranges_of_waiting
        shutil.rmtree(folder)
    assert "Traceback" not in err
    return code, [line for line in err.splitlines() if line], left


def assert_refused(said: list[str], left: list[str]) -> None:
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert len(said[0]) < 1500
    assert left == []


fuzzed = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@fuzzed
@given(overrides)
@example(["~optim"])
@example(["seed=${nowhere}"])
@example(["track=tensorboard", "method.plan.first_step=-1"])
@example(["+run_name.seed=[]"])
@example(["+study._target_=${seed}"])
@example(["study=2026", "run_name=7"])
@example(["reward=remote"])
@example(["model.max_text_tokens=100000"])
@example(["evaluation.sampler.schedule._target_=builtins.dict"])
@example(["+optim.lora.x=null", "~optim.lora"])
def test_a_configuration_runs_or_is_refused_or_stops_in_one_line(given_overrides):
    code, said, left = outcome(given_overrides)
    if code == 2:
        assert_refused(said, left)
    elif code == 1:
        assert said[-1].startswith("stopped: ")
    else:
        assert code == 0
