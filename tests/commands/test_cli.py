"""The command line: what it refuses and what it tells."""

import logging
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from flash_grpo import cli
from flash_grpo.algorithm.types import Scores
from flash_grpo.records.files import read_manifest
from flash_grpo.run.compose import distinguishing_name
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def train_py(monkeypatch, capsys, tmp_path):
    """`train_py("seed=1")`: its exit code, standard output and standard error; in this process, in a directory of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield called
    root.handlers[:], root.level = handlers, level


# -- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "a misspelt key": (
        "optim.optimizer.lrr=1e-3",
        ["optim.optimizer has no key lrr", "did you mean optim.optimizer.lr?"],
    ),
    "a misspelt first key": ("bugdet.iterations=1", ["no key bugdet", "did you mean budget.iterations?"]),
    "a key of another method": (
        "method.plan.width=2",
        ["method.plan has no key width", "method=window method.plan.width=VALUE"],
    ),
    "a misspelt Hydra key": ("hydra.joob.num=1", ["hydra has no key joob", "did you mean hydra.job.num?"]),
    "a misspelt group": ("methd=full", ["no key methd", "did you mean method?"]),
    "a misspelt class": (
        "method.plan._target_=flash_grpo.algorithm.plans.OneStp",
        ["method", "flash_grpo.algorithm.plans.OneStp"],
    ),
    "no number of threads": ("threads=null", ["threads=null", "at least 1"]),
    "a name that is a path": ("run_name=a/b", ["run_name=a/b", "without a /"]),
    "a misspelt method": ("method=flsh", ["method=flsh", "flash, full, own, window"]),
    "a misspelt ablation": ("ablations=naive", ["ablations=naive", "naive_one_step", "no_rectification"]),
    "a misspelt sweep": ("-m sweeps=ablations", ["sweeps=ablations", "ablation, ablation_1p3b, common_rate, demo"]),
    "a misspelt ablation in a sweep": ("-m ablations=none,naive", ["ablations=naive", "naive_one_step"]),
    "a misspelt slurm profile": ("slurm=gpu9", ["slurm=gpu9", "local"]),
    "a cluster without a sweep": ("slurm=gpu8", ["add -m, as in `python train.py -m slurm=gpu8`", "on this machine"]),
    "a type of GPU in their number": (
        "slurm=gpu1 hydra.launcher.gpus_per_node=a100:1",
        ["expected an integer", "hydra.launcher.gpu_type"],
    ),
    "a misspelt launcher": ("hydra/launcher=slrm", ["hydra/launcher=slrm", "local_bounded"]),
    "a misspelt value": ("schedule.noise=lineer", ["schedule.noise=lineer", "linear, flow"]),
    "a word for a number that may be null": (
        "schedule.noise_level=high",
        ["schedule.noise_level=high", "a positive number, or null"],
    ),
    "a word for a bound": ("schedule.max_std=[2]", ["schedule.max_std=[2]", "a positive number, or null"]),
    "an SDE that reverses the latents": (
        "schedule.noise=flow schedule.noise_level=2",
        ["schedule.noise_level", "step 0", "schedule.max_std"],
    ),
    "a stochastic step without noise": (
        "schedule.noise=cps method=full method.plan.skip_last=false",
        ["schedule.noise", "no noise at step 19"],
    ),
    "a misspelt value of a part": ("method.advantage.std=bach", ["method.advantage.std=bach", "batch, group, none"]),
    "a misspelt plan": ("method.plan.shared_by=promt", ["method.plan.shared_by=promt", "prompt, rollout"]),
    "a misspelt device": ("device=gpu", ["device=gpu", "auto, cpu, cuda"]),
    "a word for a number": ("optim.optimizer.lr=fast", ["optim.optimizer.lr=fast", "expected a number"]),
    "a word for a number in a sweep": ("-m seed=0,one", ["seed=one", "expected an integer"]),
    "a fraction for a count": ("schedule.num_steps=20.5", ["schedule.num_steps=20.5", "expected an integer"]),
    "a word for a truth value": ("method.rescale=maybe", ["method.rescale=maybe", "expected true or false"]),
    "no value": ("study", ["study", "expected key=value"]),
    "half a list": ("study=[a", ["study=[a", "expected key=value"]),
    "a group of one": ("rollout.layout.group_size=1", ["rollout.layout.group_size=1", "at least 2"]),
    "no prompts": ("rollout.layout.num_prompts=0", ["rollout.layout.num_prompts=0", "at least 1"]),
    "steps that do not divide": (
        "training.optimizer_steps=3",
        ["training.optimizer_steps=3", "rollout.layout.num_prompts=4"],
    ),
    "steps of rollouts by another name": (
        "rollout.steps=8",
        ["rollout.steps: ", "take schedule.num_steps", "evaluation.sampler.schedule.num_steps"],
    ),
    "steps of evaluation by another name": (
        "+evaluation.num_steps=8",
        ["evaluation.num_steps: ", "sampler.schedule.num_steps"],
    ),
    "a window wider than the schedule": (
        "method=window method.plan.width=21 method.plan.last_step=20",
        ["method.plan.last_step=20", "schedule.num_steps=20"],
    ),
    "a window beyond the schedule": (
        "method=window method.plan.width=12",
        ["method.plan.width=12", "at most 10", "last_step=9"],
    ),
    "a step beyond the schedule": ("schedule.num_steps=8", ["last_step=9", "schedule.num_steps=8"]),
    "a missing prompt file": (
        "prompts=file prompts.train=no.txt prompts.test=no.txt",
        ["prompts.train=no.txt", "no such"],
    ),
    "an unnamed prompt file": ("prompts=file", ["prompts.train", "must be given"]),
    "a missing model": ("model.path=nowhere", ["model.path=nowhere", "no such folder"]),
    "no budget": ("budget.pflop=null", ["budget.iterations, budget.device_hours, budget.pflop"]),
    "a negative budget": ("budget.pflop=-1", ["budget.pflop=-1", "positive"]),
    "never a checkpoint": ("checkpoint.every=0", ["checkpoint.every=0", "at least 1"]),
    "never an evaluation": ("evaluation.every=0", ["evaluation.every=0", "a positive number, at most 1"]),
    "an empty micro-batch": ("training.batch=0", ["training.batch=0", "at least 1"]),
    "no evaluation noise": ("evaluation.sampler.noises_per_prompt=0", ["noises_per_prompt=0", "at least 1"]),
    # values that would void the science, or reverse it
    "no gradient": ("optim.max_gradient_norm=0", ["optim.max_gradient_norm=0", "a positive number, or null"]),
    "a reversed gradient": ("optim.max_gradient_norm=-1", ["optim.max_gradient_norm=-1", "positive"]),
    "a gradient norm that is none": ("optim.max_gradient_norm=nan", ["optim.max_gradient_norm=nan", "positive"]),
    "no advantage": ("method.advantage.clip=0", ["method.advantage.clip=0", "a positive number, or null"]),
    "a reversed advantage": ("method.advantage.clip=-1", ["method.advantage.clip=-1", "positive"]),
    "a negative epsilon": ("method.advantage.epsilon=-1", ["method.advantage.epsilon=-1", "positive"]),
    "an average that extrapolates": ("optim.ema.decay=1.5", ["optim.ema.decay=1.5", "at least 0 and at most 1"]),
    "an average of nothing": ("optim.ema.decay=nan", ["optim.ema.decay=nan", "finite"]),
    "an average never taken": ("optim.ema.every=0", ["optim.ema.every=0", "at least 1"]),
    "adapters of no scale": ("optim=lora optim.lora.alpha=0", ["optim.lora.alpha=0", "positive"]),
    "adapters that change the base": ("optim=lora optim.lora.init=pissa", ["optim.lora.init=pissa", "gaussian, true"]),
    "others that do": ("optim=lora optim.lora.init=olora", ["optim.lora.init=olora", "gaussian, true"]),
    "one target as a word": ("optim=lora optim.lora.targets=to_q", ["optim.lora.targets=to_q", "a list"]),
    "guidance away from the prompt": ("model.guidance=-1", ["model.guidance=-1", "at least 1"]),
    "guidance of a phase away from the prompt": (
        "training.guidance=0.5",
        ["training.guidance=0.5", "at least 1", "null"],
    ),
    "guidance without the prompt": ("model.guidance=0", ["model.guidance=0", "1"]),
    "guidance that is no number": ("model.guidance=nan", ["model.guidance=nan", "finite"]),
    "a shift without end": ("schedule.shift=inf", ["schedule.shift=inf", "finite"]),
    "no seed": ("seed=null", ["seed=null", "an integer, at least 0"]),
    "no learning rate": ("optim.optimizer.lr=0", ["optim.optimizer.lr=0", "positive"]),
    "a learning rate without end": ("optim.optimizer.lr=inf", ["optim.optimizer.lr=inf", "positive"]),
    "training away from the reward": ("+optim.optimizer.maximize=true", ["optim.optimizer.maximize", "away from"]),
    "another method's name": ("ablations=shared_noise method=full", ["method.name=shared_noise", "plan"]),
    "a weight under another name": (
        "method.weigh._target_=flash_grpo.algorithm.weighting.uniform",
        ["method.name=flash", "weighs_equally"],
    ),
    "a clip of no ratio": ("ablations=finite_difference method.ratio_clip=1e-3", ["method.ratio_clip=0.001", "null"]),
    "siblings that are all equal": (
        "ablations=awm method.initial_noise=shared",
        ["method.initial_noise=shared", "equal"],
    ),
    "a neighbourhood of no size": (
        "method.initial_noise=0.0",
        ["method.initial_noise=0.0", "a positive number, below 1"],
    ),
    "noise of another kind": ("method.initial_noise=near", ["method.initial_noise=near", "independent, shared, or"]),
    "a weight of an SDE that is not there": (
        "ablations=awm method.weigh._target_=flash_grpo.algorithm.weighting.inverse_lambda",
        ["method.weigh=inverse_lambda", "forward_matching"],
    ),
    "matching without restraint": (
        "ablations=awm method.ratio_clip=null method.kl_weight=0",
        ["method.ratio_clip=null", "method.kl_weight"],
    ),
    "neighbours at different steps": (
        "ablations=neighbor_grpo method.name=mine optim.optimizer.lr=1e-4 method.plan.shared_by=rollout",
        ["method.plan: ", "neighbour", "shared_by=prompt"],
    ),
    "a target that says nothing": ("method.target._target_=torch.add", ["method.target", "does not say what it needs"]),
    "a reward that takes no videos": ("reward=own reward._target_=os.getcwd", ["reward: ", "videos and texts"]),
    "a temperature of 0": ("ablations=neighbor_grpo +method.target.temperature=0", ["method.target.temperature=0"]),
    "no share of a group": ("rollout.train_fraction=0", ["rollout.train_fraction=0", "positive number, at most 1"]),
    "a share by advantages that weigh other rollouts": (
        "ablations=neighbor_grpo rollout.train_fraction=0.5",
        ["rollout.train_fraction=0.5", "siblings", "=1"],
    ),
    "a key that nothing reads": ("+optim.lr=1e-3", ["optim.lr", "nothing reads", "optimizer"]),
    "half an iteration": ("budget.iterations=1.5", ["budget.iterations=1.5", "an integer"]),
    "guidance beyond all sense": ("model.guidance=1e30", ["model.guidance=1e+30", "at most 100"]),
    "a rate below zero": ("optim.optimizer.lr=-1", ["optim.optimizer: ", "learning rate"]),
    "a beta of 1": ("optim.optimizer.betas=[1,0.9]", ["optim.optimizer: ", "beta"]),
    # configurations that are no longer one
    "an interpolation that leads nowhere": ("seed=${nowhere}", ["seed", "nowhere"]),
    "one that leads nowhere in a part": ("budget.pflop=${budget.mflop}", ["budget.pflop", "budget.mflop"]),
    "a deleted section": ("~optim", ["optim", "section"]),
    "a deleted value": ("~seed", ["seed", "missing"]),
    "a section that is null": ("budget=null", ["budget=null", "section"]),
    "a part that is null": ("method.plan=null", ["method.plan=null", "section"]),
    "a number for a section": ("budget=10", ["budget=10", "section"]),
    "a list for a section": ("rollout=[1,2]", ["rollout=[1, 2]", "section"]),
    "a target that is no method": ("method._target_=builtins.dict", ["method._target_=builtins.dict", "Method"]),
    "a target that is no class": ("budget._target_=math.pi", ["budget: ", "callable", "float"]),
    "a target in no module": ("schedule._target_=nowhere.at.all", ["schedule", "nowhere"]),
    "a target that is empty": ("reward._target_=null", ["reward._target_", "must name"]),
    "a plan of nothing": ("method.plan._target_=builtins.dict", ["method.plan"]),
    "a solver that is none": ("rollout.solve._target_=os.getcwd", ["rollout.solve: ", "no arguments"]),
    "an argument that each step gives": ("+rollout.solve.x=null", ["rollout.solve: ", "takes no x"]),
    "a weight that is none": ("method.weigh._target_=torch.ones", ["method.weigh: "]),
    "a model of no name": ("model.path=null", ["model.path=null", "a text"]),
    "servers as a word": ("reward=remote reward.urls=http://a", ["reward.urls=http://a", "must be a list"]),
    "quantities that nobody measures": ("measure.quantities=[mass]", ["measure.quantities=mass", "gradient_norm"]),
    "SDEs as a word": ("measure.noises=linear", ["measure.noises=linear", "must be a list"]),
    "a key of nothing": ("=1", ["=1", "expected key=value"]),
    "a group of nothing": ("+=1", ["+=1", "expected key=value"]),
    "a sweep over nothing": ("-m seed=range(0)", ["seed=range(0)", "holds no value"]),
    "no threads": ("threads=0", ["threads=0", "at least 1"]),
    "a parent as a name": ("run_name=..", ["run_name=..", "dot"]),
    "a name of several": ("+run_name.seed=[]", ["run_name={'seed': []}", "must be one name"]),
    "adapters without their keys": ("optim.lora=1", ["optim.lora=1", "must be a section of keys"]),
    "a study elsewhere": ("study=../../etc", ["study=../../etc", "without a /"]),
    "a study without a name": ("study=null", ["study", "empty"]),
    "a method without a rate": ("method.name=mine", ["optim.optimizer.lr", "mine", "give it a value"]),
    "no negative prompt": ("model.negative_prompt=null", ["model.negative_prompt=null", "a text"]),
    "a text longer than Wan's": ("model.max_text_tokens=100000", ["model.max_text_tokens=100000", "at most 512"]),
    "frames before the first": ("model.frames=-3", ["model.frames=-3", "at least 1"]),
    "two ways to look": ("-m --cfg job", ["--cfg"]),
    "a configuration of another name": ("--config-name nosuch", ["nosuch"]),
    "a sweep without -m": ("sweeps=ablation", ["sweeps=", "add -m"]),
    "several values without -m": ("seed=0,1", ["seed=0,1", "add -m"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2_and_nothing_is_done(train_py, tmp_path, case):
    arguments, fragments = BAD[case]
    code, out, err = train_py(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [fragment for fragment in fragments if fragment not in err] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", sorted(path.stem for path in (ROOT / "slurm").glob("*.yaml") if path.stem != "local"))
def test_no_cluster_s_shape_trains_on_this_machine(train_py, tmp_path, small, shape):
    code, out, err = train_py(*small, f"slurm={shape}", f"runs_root={tmp_path}")
    assert (code, out) == (2, "")
    assert err == (
        f"error: slurm={shape}: only a sweep goes to a cluster, also a sweep of one run: add -m, as in "
        f"`python train.py -m slurm={shape}`; without slurm= the run stays on this machine\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert train_py(f"slurm={shape}", "--cfg", "job")[0] == 0


@pytest.mark.parametrize("place", ["a file", "a dangling link", "below a file"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_an_unusable_runs_root_is_one_line(train_py, tmp_path, small, place, sweep):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/at/all")
    root = {"a file": "file", "a dangling link": "link", "below a file": "file/runs"}[place]
    code, _, err = train_py(*sweep, *small, f"runs_root={root}")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert root in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_prompts_that_the_reward_does_not_know_are_refused_before_any_work(train_py, tmp_path):
    (tmp_path / "mine.txt").write_text("a cat on a roof\n")
    code, _, err = train_py("prompts=file", "prompts.train=mine.txt", "prompts.test=mine.txt")
    assert code == 2
    assert err.count("\n") == 1
    assert "a cat on a roof" in err
    assert not (tmp_path / "runs").exists()


def test_a_long_chinese_negative_prompt_fits_into_the_run_s_name():
    name = distinguishing_name([f"model.negative_prompt={'色调艳丽，过曝，静态，细节模糊不清' * 20}"], "flash", 3)
    assert len(name.encode()) <= 255
    assert name.endswith("-seed3")
    assert name.isprintable()


def test_a_local_sweep_checks_every_point_before_it_starts_the_first(train_py, tmp_path, small):
    code, _, err = train_py("-m", "slurm=local", *small, "run_name=r${optim.ema.every}", "optim.ema.every=1,0")
    assert code == 2
    assert "r0: optim.ema.every=0: must be an integer, at least 1" in err
    assert not list(tmp_path.rglob("records.jsonl"))


def test_an_empty_prompt_file_is_refused(train_py, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, _, err = train_py("prompts=file", "prompts.train=empty.txt", "prompts.test=empty.txt")
    assert (code, err) == (2, "error: prompts.train=empty.txt: the file holds no prompt\n")


def test_a_whole_process_ends_with_exit_code_2_too(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "method=flsh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


# -- good input ----------------------------------------------------------------------------------------------------


def test_help_is_quick_and_says_what_a_newcomer_needs(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    help_text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    for basic in ("python train.py -m sweeps=ablation", "--cfg job", "analysis.report", "continues", "Exit codes"):
        assert basic in help_text
    for group in ("ablations", "method", "model", "prompts", "reward", "slurm", "sweeps"):
        assert re.search(rf"^{group}: \w", help_text, re.MULTILINE), group
    assert re.search(r"^seed: 0$", help_text, re.MULTILINE)


def test_cfg_job_prints_the_configuration_and_runs_nothing(train_py, tmp_path):
    code, out, _ = train_py("ablations=naive_one_step", "seed=3", "--cfg", "job")
    cfg = yaml.safe_load(out)
    assert code == 0
    assert (cfg["seed"], cfg["method"]["name"], cfg["method"]["plan"]["shared_by"]) == (
        3,
        "naive_one_step",
        "rollout",
    )
    assert list(tmp_path.iterdir()) == []


def test_options_may_stand_behind_overrides():
    arguments = ["slurm=local", "-m", "sweeps=demo", "--cfg", "job", "~budget.pflop"]
    assert cli.split(arguments) == (["-m", "--cfg", "job"], ["slurm=local", "sweeps=demo", "~budget.pflop"])


def test_a_run_ends_with_what_its_evaluation_reward_did(train_py, tmp_path, small):
    code, out, err = train_py(*(item for item in small if "run_name" not in item), "method.rescale=false", "seed=2")
    directory = next((tmp_path / "runs/default").iterdir())
    assert code == 0
    assert "Traceback" not in err
    assert re.search(r"evaluation reward \d\.\d+ -> \d\.\d+ \([+-]\d\.\d+ ± ", out)
    assert str(directory.relative_to(tmp_path) / "records.jsonl") in out
    assert directory.name.startswith("flash-")
    assert "-method.rescale=false-" in directory.name
    assert directory.name.endswith("-seed2")
    assert "device" not in directory.name
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert read_manifest(directory).run_name == directory.name


def test_a_failed_run_ends_with_one_line_and_exit_code_1(train_py, monkeypatch, small):
    def spoilt(self, video, text):
        return Scores(total_B=torch.full((len(text),), torch.nan), parts={})

    monkeypatch.setattr(ShapesReward, "__call__", spoilt)
    code, _, err = train_py(*small)
    assert code == 1
    assert re.fullmatch(r"stopped: .*'a red ball moving left'.*\n", err)


def test_an_interrupted_run_says_so_and_exits_with_130(train_py, monkeypatch, small):
    def interrupted(self, iteration):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "iterate", interrupted)
    code, _, err = train_py(*small)
    assert code == 130
    assert err.startswith("interrupted")
    assert "Traceback" not in err


def test_a_name_tells_the_run_apart_by_what_was_asked_for():
    name = distinguishing_name
    assert name([], "flash", 0) == "flash-seed0"
    assert (
        name(["method=full", "seed=3", "study=x", "schedule.noise=flow"], "full", 3) == "full-schedule.noise=flow-seed3"
    )
    assert name(["a=1", "b=2"], "flash", 0) == name(["b=2", "a=1"], "flash", 0)
    assert "/" not in name(["model.path=/data/wan"], "flash", 0)
    long = [name([f"key{index}={value}" for index in range(60)], "flash", 7) for value in (1, 2)]
    assert len(set(long)) == 2
    assert all(len(each.encode()) < 250 and each.endswith("-seed7") for each in long)
