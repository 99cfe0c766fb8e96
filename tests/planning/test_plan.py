"""What `plan=true` says: the queue's runs, counts against the meter, prices with their sources; and that it does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from flash_grpo import cli
from flash_grpo.cluster.points import SweepPoint, compose, refuse_points
from flash_grpo.planning.counts import added, iterations_of, spread_of_total
from flash_grpo.planning.devices import chosen_device, device_named, devices
from flash_grpo.planning.model import model_of
from flash_grpo.planning.plan import plan_of
from flash_grpo.planning.points import asked
from flash_grpo.planning.scoring import servers_needed
from flash_grpo.planning.shown import as_json
from flash_grpo.planning.unit_prices import REACHED, unit_prices
from flash_grpo.records.prices import load_prices
from flash_grpo.run.compose import CONF
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
SHAPES = sorted(path.stem for path in (ROOT / "slurm").glob("*.yaml"))


@pytest.fixture
def planned(monkeypatch, capsys, tmp_path):
    """`planned("plan=true", "seed=1")`: exit code, standard output and error of train.py, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


# -- which runs -----------------------------------------------------------------------------------------------------------


class _Launcher:
    """What `cluster.points.compose` asks of a launcher: a loader and the master configuration."""

    def __init__(self, hydra, master):
        self.hydra_context, self.config = hydra, master


@pytest.mark.parametrize(
    "overrides",
    [
        ["sweeps=demo", "slurm=cpu"],
        ["sweeps=lr", "slurm=cpu", "ablations=none,shared_noise", "optim.optimizer.lr=1e-4,2e-4", "study=other"],
        ["ablations=none,full_trajectory", "seed=3,1,2", "schedule.noise=flow,linear", "+rollout.extra=1,2"],
        ["method=full,window", "optim=tiny,lora", "seed=range(2)", "runs_root=elsewhere"],
    ],
    ids=["demo", "lr", "own", "groups"],
)
def test_the_runs_are_exactly_those_that_a_launcher_would_get(overrides):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from flash_grpo.cluster.points import kept_params

    found = asked(overrides, multirun=True)
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        arguments = list(master.hydra.overrides.task)
        params = kept_params(master.hydra.sweeper.params, arguments)
        given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
        queued = compose(_Launcher(hydra, master), batch, 0)
        directories = [point.directory for point in queued]
        seeds = {point.directory: point.cfg.seed for point in queued}
        rates = {point.directory: point.cfg.optim.optimizer.lr for point in queued}
    mine = [(run, seed, arm.cfg) for arm in found.arms for run, seed in zip(arm.runs, arm.seeds, strict=True)]
    assert sorted(run for run, _, _ in mine) == sorted(directories)
    assert {run: seed for run, seed, _ in mine} == seeds
    assert {run: cfg.optim.optimizer.lr for run, _, cfg in mine} == rates


def test_two_runs_of_one_directory_are_refused():
    with pytest.raises(ConfigError, match="several runs of this sweep have one directory: runs/default/same"):
        asked(["seed=0,1", "run_name=same"], multirun=True)


# -- every sweep on every shape -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sweep", ["demo", "table1_1p3b", "table1_14b"])
def test_a_sweep_is_planned_on_every_shape_or_refused_with_a_reason(sweep, shape):
    """tools/plan_times.py gives the command itself for every sweep on every shape, and the seconds that it takes."""
    asked_for = [f"sweeps={sweep}", f"slurm={shape}", "plan=true"]
    if (sweep, shape) == ("demo", "gpu96"):
        with pytest.raises(ConfigError, match="64 rollouts per optimizer step do not fill 96 ranks evenly"):
            plan_of(asked_for, multirun=True)
        return
    plan = plan_of(asked_for, multirun=True)
    assert len(plan.runs) == {"demo": 14, "table1_1p3b": 9, "table1_14b": 3}[sweep]
    for run in plan.runs:
        assert run.iterations >= 1 and run.evaluations >= 2
        assert 0 < run.training_hours < 1e7 and 0 < run.evaluation_hours < 1e7
    json.dumps(as_json(plan))


def _command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "train.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# -- counts ---------------------------------------------------------------------------------------------------------------

ARMS = ["full_trajectory", "sliding_window", "none", "shared_noise", "finite_difference", "awm"]
MORE = ("rollout.guidance=3", "training.optimizer_steps=2", "rollout.train_fraction=0.5")  # others than training's


def _metered(small: Trainer, iterations: int) -> tuple[float, float, float]:
    for iteration in range(1, iterations + 1):
        cost = small.iterate(iteration).cost
    return cost.forward_evaluations, cost.backward_evaluations, cost.scored_videos


@pytest.mark.parametrize(("name", "more"), [*((name, ()) for name in ARMS), ("none", MORE)])
def test_counts_are_the_meter_s_once_plans_are_drawn_and_near_it_before(trainer, config, name, more):
    cfg, iterations = config(f"ablations={name}", "seed=5", *more), 3
    model = model_of(cfg, "tiny")
    evaluations, training = model.evaluations_per_velocity, model.training_evaluations
    found = iterations_of(cfg, ranks=1)
    forwards, backwards, scored = _metered(trainer(f"ablations={name}", "seed=5", *more), iterations)
    draws, kl = found.drawn(5), cfg.method.kl_weight > 0
    drawn = added([next(draws) for _ in range(iterations)])
    of_drawn = (drawn.forwards(evaluations, kl, training), drawn.backwards(training), drawn.videos)
    assert of_drawn == (forwards, backwards, scored)
    spread = spread_of_total(found.spread, iterations)
    for mean, metered, deviation in (
        (found.mean.rollout_velocities * iterations, drawn.rollout_velocities, spread.rollout_velocities),
        (found.mean.trained_states * iterations, backwards, spread.trained_states),
        (found.mean.videos * iterations, scored, spread.videos),
    ):
        assert abs(mean - metered) <= 3 * deviation + 1e-9


def test_a_budget_buys_the_iterations_that_a_run_makes(train, config):
    """By PFLOP, with evaluations where the run makes them."""
    from flash_grpo.records.files import read_records

    small = ("budget.iterations=null", "budget.pflop=2e-6", "evaluation.every=0.3", "seed=2")
    records = list(read_records(train(*small)))
    iterations = [record for record in records if record["kind"] == "iteration"]
    from conftest import SMALL

    (run,) = plan_of([*SMALL, *small], multirun=False).runs
    assert (run.iterations, run.evaluations) == (len(iterations), len(records) - len(iterations))
    assert run.pflop == pytest.approx(iterations[-1]["cost"]["pflop"])
    assert run.forwards == iterations[-1]["cost"]["forward_evaluations"]


def test_drawn_plans_give_each_seed_its_own_counts(config):
    plan = plan_of(["ablations=shared_noise", "seed=0,1", "planning.drawn=true", "budget.pflop=1e-4"], multirun=True)
    first, second = plan.runs
    assert first.counts != second.counts
    assert first.spread.rollout_velocities == 0
    assert first.counts.rollout_velocities == int(first.counts.rollout_velocities)


# -- prices ---------------------------------------------------------------------------------------------------------------


def _model(*overrides):
    return plan_of([*overrides, "plan=true"], multirun=False).arms[0].model


def test_measured_prices_come_first_then_rates_then_the_table():
    model = _model("recipe=wan21_1p3b")
    listed = load_prices().model("wan21_1p3b")
    assert unit_prices(model, devices()["h100"]).forward == listed.forward
    assert unit_prices(model, devices()["h100"]).known() == "measured"
    compiled = unit_prices(_model("recipe=wan21_1p3b", "model.compile=true"), devices()["h100"])
    assert compiled.known() == "measured" and "compile.json" in compiled.forward.source
    assert compiled.forward.seconds < listed.forward.seconds
    shorter = unit_prices(_model("recipe=wan21_1p3b", "model.frames=17"), devices()["h100"])
    assert shorter.known() == "estimated" and "by bench on NVIDIA H100" in shorter.forward.source
    elsewhere = unit_prices(model, devices()["a100"])
    assert elsewhere.known() == "estimated" and "of 312 TFLOP/s" in elsewhere.forward.source
    ratio = elsewhere.forward.seconds / listed.forward.seconds
    assert ratio == pytest.approx(989.4 / 312, rel=0.01)


def test_the_assumed_shares_of_the_peak_are_those_that_were_reached():
    phases = json.loads((ROOT / "docs/measured/h100_bench_1p3b.json").read_text())["phases"]
    for work, phase in {"forward": "rollout", "backward": "update", "recompute": "update", "decode": "decode"}.items():
        assert REACHED[work] == pytest.approx(phases[phase]["tflop_per_second"] / devices()["h100"].tflops, rel=2e-3)


def test_every_device_has_a_source_and_the_type_of_slurm_names_one():
    assert all(device.source and device.tflops > 0 for device in devices().values())
    launcher = {"gpu_type": "a100-sxm4-40gb", "gpus_per_node": 8}
    assert chosen_device(None, launcher, "auto")[0].name == "a100-40gb"
    assert chosen_device("h200", launcher, "auto")[0].name == "h200"
    assert chosen_device(None, {"gpu_type": None, "gpus_per_node": 8}, "auto")[0].name == "h100"
    assert chosen_device(None, {"gpu_type": None, "gpus_per_node": None}, "auto")[0].name == "cpu"
    assert device_named("NVIDIA H100 80GB HBM3", "").name == "h100"
    with pytest.raises(ConfigError, match=r"planning.device=v100: not in .*, which has h100"):
        device_named("v100", "planning.device")


@pytest.mark.parametrize(("ranks", "score", "making", "servers"), [(8, 8.343, 34.5, 2), (1, 1, 1, 1), (8, 0, 9, 0)])
def test_servers_keep_up_if_they_score_as_fast_as_videos_are_made(ranks, score, making, servers):
    assert servers_needed(ranks, score, making) == servers
    if servers:
        assert servers / score >= ranks / making > (servers - 1) / score


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "plan=true",
        "-m sweeps=table1_1p3b slurm=gpu8 plan=true",
        "-m sweeps=table1_1p3b slurm=gpu8 plan=true detach=true hydra.sweep.dir=here hydra.output_subdir=kept",
        "-m slurm=gpu8 plan=json hydra/launcher=submitit_slurm",
        "-m plan=true slurm=local hydra.launcher.max_parallel=1 seed=0,1",
        "hydra.mode=MULTIRUN plan=true hydra/job_logging=default hydra.run.dir=here",
    ],
)
def test_nothing_is_queued_or_left_on_disk_whatever_else_is_said(planned, tmp_path, command, monkeypatch):
    monkeypatch.setattr("submitit.AutoExecutor", None)
    monkeypatch.setattr("flash_grpo.run.loop.run", None)
    code, out, err = planned(*command.split())
    assert (code, err) == (0, "")
    assert "nothing is started" in out or json.loads(out)["total"]["runs"] >= 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan=yes", "plan"),
        ("-m plan=true,false", "plan cannot be swept over"),
        ("plan=true rollout.layout.num_prompts=0", "rollout.layout.num_prompts=0: must be"),
        ("plan=true evaluation.sampler.noises_per_prompt=0", "evaluation.sampler.noises_per_prompt=0: must be"),
        ("plan=true model=wan21_1p3b model.dtype=float16", "model.dtype=float16: allowed are float32, bfloat16"),
        ("plan=true model=wan21_1p3b model.architecture=1", "model.architecture=1: must be a section"),
        ("plan=true model.frames=null", "model.frames=null: must be"),
        ("plan=true optim=lora optim.lora.rank=0", "optim.lora.rank=0: must be"),
        ("plan=true optim=lora optim.lora.targets=all", "optim.lora.targets=all: must be a list"),
        ("plan=true reward=remote reward.urls=http://a", "reward.urls=http://a: must be a list"),
        ("plan=true reward=composite reward.rewards=[a]", "reward.rewards"),
        ("plan=true planning.device=abacus", "planning.device=abacus: not in flash_grpo/planning/devices.toml"),
        ("plan=true planning.gpu_hour_price=-1", "planning.gpu_hour_price=-1: must be"),
        ("plan=true planning.pricee=1", "planning has no key pricee"),
        ("-m plan=true sweeps=demo slurm=gpu96", "do not fill 96 ranks evenly"),
        ("plan=true --config-dir /tmp", "plan=true goes with -m alone"),
        ("plan=true prompts=file prompts.train=no.txt prompts.test=no.txt", "no.txt"),
        ("-m plan=true hydra/sweeper=basic seed=0,1", "hydra/sweeper"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_exit_code_2(planned, command, message):
    code, out, err = planned(*command.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_point_of_a_sweep_that_asks_for_a_plan_is_never_started(planned, monkeypatch):
    monkeypatch.setattr("flash_grpo.cluster.node.run_here", None)
    code, _, err = planned("-m", "sweeps=demo", "+hydra.sweeper.params.plan=true")
    assert (code, err.count("\n")) == (2, 1) and "plan cannot be swept over" in err


def test_a_launcher_refuses_a_point_that_a_file_asks_to_plan(capsys):
    point = SweepPoint(cfg=OmegaConf.create({"study": "s", "run_name": "r", "plan": True}), number=0, overrides=[])
    with pytest.raises(SystemExit) as end:
        refuse_points([point])
    assert end.value.code == 2 and "give plan=true on the command line" in capsys.readouterr().err


def test_the_command_itself_in_a_process_of_its_own(tmp_path):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _command(tmp_path, "-m", "sweeps=table1_1p3b", "slurm=gpu8", "plan=true", "planning.gpu_hour_price=2")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("runs/table1_1p3b/flash-seed") == 3
    assert "at 2 a GPU-hour" in done.stdout
    assert not list(tmp_path.iterdir())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 20  # five on an idle machine, see tools/plan_times.py; 10.6 were seen on shared cores of a slow one


def test_json_has_what_the_tables_have():
    plan = plan_of(["sweeps=fig4", "slurm=gpu8", "plan=json", "planning.gpu_hour_price=2"], multirun=True)
    found = json.loads(json.dumps(as_json(plan)))
    assert found["total"]["runs"] == 6 and found["total"]["money"] == pytest.approx(2 * found["total"]["hours"])
    arm = found["arms"][0]
    assert set(arm["needs"]["memory"]) == {"text encoding", "rollout", "decode", "update", "evaluation"}
    assert arm["unit_prices"]["forward"]["source"].startswith("measured by bench")
