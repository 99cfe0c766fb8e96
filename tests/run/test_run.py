"""A run from its first iteration to its last: interrupted, refused, failed, continued; and what it leaves on disk."""

import copy
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from untimed import untimed

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.policies.wan import WanPolicy
from flash_grpo.records import identity
from flash_grpo.records.files import RecordWriter, as_json, read_manifest, read_records, write_manifest
from flash_grpo.records.schema import Cost, EvalRecord, ProgramStart
from flash_grpo.run import build, checkpoint, compose, loop, manifest, stop, stored
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Place
from flash_grpo.run.starts import StartProgress, endless_restarts
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training.evaluated_part import PartEvaluator
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.journal import Journal
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.trainer import Trainer

LONG = (
    "schedule.num_steps=5",
    "method.plan.last_step=3",
    "budget.iterations=6",
    "evaluation.every=0.6",
    "checkpoint.every=2",
    "optim.optimizer.lr=1e-3",
)


def _without_times(directory: Path) -> list[dict]:
    """Read the records and leave out what measures time."""
    return [untimed(record) for record in read_records(directory)]


def _state(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by name: weights, their average, the optimizer's."""
    state = checkpoint.newest(directory)
    moments = {
        f"optimizer.{index}.{key}": value
        for index, entry in state["optimizer"]["state"].items()
        for key, value in entry.items()
    }
    named = {f"{part}.{name}": value for part in ("parameters", "ema") for name, value in state[part].items()}
    return named | moments


def _assert_identical(directory: Path, other: Path) -> None:
    assert _without_times(directory) == _without_times(other)
    first, second = _state(directory), _state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def _start(config, folder: Path, *overrides: str) -> Path:
    cfg = config(*LONG, f"runs_root={folder}", *overrides)
    return loop.run(cfg, cfg.run_name)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory) -> Path:
    return _start(config, tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture
def during(monkeypatch):
    """`during(iteration, action)`: does it once, between the rollout and the update of that iteration."""

    def arrange(iteration: int, action) -> None:
        update, done = Trainer.update, []

        def hooked(self, rollouts, advantage_PG):
            if rollouts.batch.iteration == iteration and not done:
                done.append(True)
                action()
            return update(self, rollouts, advantage_PG)

        monkeypatch.setattr(Trainer, "update", hooked)

    return arrange


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_after_the_micro_batch_and_continues_bit_identically(
    config, tmp_path, during, uninterrupted, number
):
    during(3, lambda: signal.raise_signal(number))
    with pytest.raises(stop.Interrupted, match="saved in the middle of the one after iteration 2"):
        _start(config, tmp_path)
    directory = tmp_path / "default/small"
    assert checkpoint.complete(directory)[-1].name == "000002+001"
    assert read_manifest(directory).status == "running"
    assert "interrupted" in read_manifest(directory).reason
    _start(config, tmp_path)
    _assert_identical(directory, uninterrupted)


SMALL_PIECES = ("rollout.batch=3", "training.batch=1", "evaluation.sampler.batch=5")
MANY_PIECES = (*SMALL_PIECES, "training.optimizer_steps=2", "method.kl_weight=0.01")


BRANCHES = (
    "ablations=short_branches",
    "method.plan.first_step=1",
    "rollout.path={lead:1,follow:1}",
    "optim.anneal.over_pflop=1e-5",
    "budget.pflop=null",
    "budget.share=1",
)


HELD_OUT = ("reward@evaluation.held_out=fidelity", "evaluation.sampler.batch=12")


@pytest.mark.parametrize("chosen", [(), MANY_PIECES, BRANCHES, HELD_OUT], ids=["few", "many", "branches", "held out"])
def test_a_run_that_leaves_after_every_single_piece_of_work_ends_bit_identically(config, tmp_path, monkeypatch, chosen):
    """Rollouts, gradients and evaluations of micro-batches: each is done once, in a start of its own."""
    overrides = (*chosen, "budget.iterations=2")
    whole = _start(config, tmp_path / "whole", *overrides)
    monkeypatch.setattr(Journal, "_leaving", lambda self: _has_done_a_piece(self))
    directory, names = tmp_path / "pieces/default/small", []
    for _ in range(200):
        with suppress(stop.Interrupted):
            _start(config, tmp_path / "pieces", *overrides)
            break
        names.append(checkpoint.complete(directory)[-1].name)
    _assert_identical(directory, whole)
    assert len([name for name in names if name.startswith("000001+")]) >= (8 if chosen == MANY_PIECES else 1)
    assert [path.name for path in checkpoint.complete(directory)][-1] == "000002"
    assert not list((directory / "checkpoints").glob("*+*"))


AXES = {
    "finite_difference": (),
    "neighbor_grpo": (),
    "awm": (),
    "diffusion_nft": (),
    "tempflow": ("rollout.guidance=3", "training.guidance=1", "evaluation.guidance=2", "rollout.train_fraction=0.5"),
    "mixgrpo": (
        "method.name=tree",
        "method.plan.width=2",
        "method.tree={_target_:flash_grpo.algorithm.noise.Tree,steps:[0,1]}",
        "rollout.solve._target_=flash_grpo.algorithm.solvers.dpmpp_2m",
    ),
}


@pytest.mark.parametrize("preset", AXES)
def test_a_run_of_any_target_that_is_interrupted_again_and_again_ends_bit_identically(
    config, tmp_path, monkeypatch, preset
):
    """Every third piece: in rollouts, before the first optimizer step where old velocities are needed, between two of them."""
    chosen = (f"ablations={preset}", "training.batch=2", "training.optimizer_steps=2", "training.shares=rollouts")
    overrides = (*chosen, *AXES[preset], "budget.iterations=1")
    whole = _start(config, tmp_path / "whole", *overrides)
    monkeypatch.setattr(Journal, "_leaving", lambda self: _has_done_a_piece(self, 3))
    names = []
    for _ in range(40):
        with suppress(stop.Interrupted):
            _start(config, tmp_path / "pieces", *overrides)
            break
        names.append(checkpoint.complete(tmp_path / "pieces/default/small")[-1].name)
    _assert_identical(tmp_path / "pieces/default/small", whole)
    assert len([name for name in names if name.startswith("000000+")]) >= 4


@pytest.mark.parametrize("batch", [64, 3])
@pytest.mark.parametrize("where", ["evaluation", "rollout", "update"])
def test_a_run_leaves_within_one_velocity_and_does_no_completed_step_again(config, tmp_path, monkeypatch, where, batch):
    """batch: of videos in one call; with 3, a group of 4 takes two calls a step."""
    velocity, calls = WanPolicy.velocity, []
    overrides = (
        f"rollout.batch={batch}",
        f"training.batch={batch}",
        "budget.iterations=2",
        "evaluation.sampler.batch=16",
    )

    def counted(self, *args):
        calls.append(len(args[0]))
        return velocity(self, *args)

    monkeypatch.setattr(WanPolicy, "velocity", counted)
    whole, number = _start(config, tmp_path / "whole", *overrides), len(calls)
    an_evaluation = 2 * (2 + 1)  # of 32 prompts, 16 at once: two steps, and once more beside the base
    a_rollout = 5 * {64: 1, 3: 4}[batch]
    stop_at = {"evaluation": 4, "rollout": an_evaluation + 3, "update": an_evaluation + a_rollout + 1}[where]

    def stopping(self, *args):
        calls.append(len(args[0]))
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return velocity(self, *args)

    calls.clear()
    monkeypatch.setattr(WanPolicy, "velocity", stopping)
    directory = tmp_path / "default/small"
    with pytest.raises(stop.Interrupted):
        _start(config, tmp_path, *overrides)
    assert len(calls) == stop_at
    assert len(list((directory / "checkpoints").glob("*+*"))) == 1
    _start(config, tmp_path, *overrides)
    _assert_identical(directory, whole)
    assert number <= len(calls) <= number + (batch == 3)  # at most the half step that was under way


def _has_done_a_piece(journal: Journal, pieces: int = 1) -> bool:
    first = vars(journal).setdefault("first", journal.pieces)
    return journal.pieces >= first + pieces


def test_a_checkpoint_inside_an_iteration_holds_no_byte_of_a_scored_video(config, tmp_path, monkeypatch):
    make, made = RolloutMaker.make, []

    def asked_to_stop_at_the_third(self, *work):
        made.append(make(self, *work))
        if len(made) == 3:
            signal.raise_signal(signal.SIGTERM)
        return made[-1]

    monkeypatch.setattr(RolloutMaker, "make", asked_to_stop_at_the_third)
    with pytest.raises(stop.Interrupted, match="in the middle"):
        _start(config, tmp_path, "rollout.batch=2", "rollout.layout.num_prompts=4", "rollout.layout.group_size=2")
    saved = checkpoint.complete(tmp_path / "default/small")[-1] / "rank000.pt"
    with torch.serialization.safe_globals(checkpoint.NOUNS):
        done = torch.load(saved)["done"]
    kept = [done[f"rollouts/{index}"].video_BFHWC for index in range(3)]
    assert [video.untyped_storage().nbytes() for video in kept] == [0, 0, 0]
    assert all(rollouts.video_BFHWC.numel() > 0 for rollouts in made)


def test_a_run_left_inside_an_iteration_by_other_ranks_is_refused(config, tmp_path, during):
    during(1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(stop.Interrupted):
        _start(config, tmp_path)
    saved = checkpoint.complete(tmp_path / "default/small")[-1] / "state.pt"
    state = torch.load(saved)
    state["progress"]["inside_on_ranks"] = 2
    torch.save(state, saved)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in saved.parent.glob("*.pt")}
    (saved.parent / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    with pytest.raises(build.ConfigError, match="by 2 ranks, and only as many can go on there; these are 1"):
        _start(config, tmp_path)


@pytest.mark.parametrize(
    ("moment", "key", "sizes"),
    [
        ((RolloutMaker, "make"), "rollout.batch", "rollout.batch=64 training.batch=64"),
        ((RolloutMaker, "make"), "training.batch", "rollout.batch=64 training.batch=64"),
        ((PartEvaluator, "part"), "evaluation.sampler.batch", "evaluation.sampler.batch=8"),
    ],
)
def test_a_run_left_inside_micro_batches_continues_only_with_their_sizes(
    config, tmp_path, monkeypatch, moment, key, sizes
):
    owner, name = moment
    work = getattr(owner, name)
    overrides = ("evaluation.sampler.batch=8", "budget.iterations=1")

    def asked_to_stop(*args):
        done = work(*args)
        signal.raise_signal(signal.SIGTERM)
        return done

    monkeypatch.setattr(owner, name, asked_to_stop)
    with pytest.raises(stop.Interrupted, match="in the"):
        _start(config, tmp_path, *overrides)
    monkeypatch.setattr(owner, name, work)
    with pytest.raises(
        build.ConfigError, match=rf"micro-batches of other sizes: go on with {sizes}, or delete"
    ) as refusal:
        _start(config, tmp_path, *overrides, f"{key}=5")
    assert "\n" not in str(refusal.value)
    directory = tmp_path / "default/small"
    others = [setting for setting in ("rollout.batch", "evaluation.sampler.batch") if setting not in sizes]
    _start(config, tmp_path, *overrides, *(f"{setting}=5" for setting in others))
    assert [record["kind"] for record in read_records(directory)] == ["evaluation", "iteration", "evaluation"]


def test_between_iterations_a_run_goes_on_with_other_micro_batches(config, tmp_path, uninterrupted):
    _start(config, tmp_path, "budget.iterations=2")
    directory = _start(config, tmp_path, "rollout.batch=3", "training.batch=5", "evaluation.sampler.batch=7")
    last, whole = (list(read_records(run_dir))[-1]["reward_mean"] for run_dir in (directory, uninterrupted))
    assert last == pytest.approx(whole, abs=0.02)


def test_a_second_process_on_the_same_run_is_refused(config, tmp_path):
    cfg = config(*LONG, f"runs_root={tmp_path}")
    first = loop.claim(cfg, cfg.run_name)
    program = "import sys; from pathlib import Path; from flash_grpo.run import held; held.lock(Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(first.path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert "another process is at work on this run; wait for it, or stop it" in second.stderr
    begun = {"time": "2026-01-01T00:00:00+0000", "host": "n7", "pid": 41}
    job = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}
    for ids, name in (({}, ""), (job, ", Slurm job 8_3")):
        first.manifest.starts = [ProgramStart(**begun, slurm=ids)]
        write_manifest(first.path, first.manifest)
        second = subprocess.run(command, capture_output=True, text=True)
        holder = f"(by run.json pid 41 on n7{name}, since 2026-01-01T00:00:00+0000)"
        assert f"another process is at work on this run {holder}; wait for it, or stop it" in second.stderr
    (first.path / "run.json").write_text("{")
    second = subprocess.run(command, capture_output=True, text=True)
    assert "another process is at work on this run; wait for it, or stop it" in second.stderr
    first.held.lock.close()
    assert subprocess.run(command).returncode == 0


def test_settings_outside_a_run_s_identity_are_not_in_its_name():
    elsewhere = ("reward.urls", "reward.rewards.hpsv3.timeout")
    settings = [setting for setting in identity.SETTINGS if not setting.identity and not setting.in_name]
    assert len(settings) >= 12 and all(setting.reason for setting in identity.SETTINGS)
    for key in (*(setting.key for setting in settings), *elsewhere):
        assert not identity.is_identity(key)
        assert compose.distinguishing_name([f"{key}=1"], "flash", 0) == "flash-seed0", key


def test_a_run_from_before_a_setting_existed_is_the_run_that_has_its_default(config, tmp_path):
    """And not the one that has another value."""
    now = OmegaConf.to_container(config("optim=lora"), resolve=True)
    before = copy.deepcopy(now)
    assert len(identity.ADDED) >= 1
    for key, value in identity.ADDED.items():
        section, _, name = key.rpartition(".")
        parent = before
        for part in section.split("."):
            parent = parent[part]
        assert parent.pop(name) == value, key
    assert manifest.identity(before) == manifest.identity(now)
    manifest.refuse_another_config(tmp_path, before, now)
    with pytest.raises(ValueError, match=r"\(rollout.train_fraction: \(absent\) there, 0.5 asked for\)"):
        manifest.refuse_another_config(tmp_path, before, {**now, "rollout": {**now["rollout"], "train_fraction": 0.5}})


def test_other_reward_servers_do_not_make_another_run(config, tmp_path):
    served, moved = (
        OmegaConf.to_container(config("reward=remote", *changed), resolve=True)
        for changed in ([], ["reward.urls=[http://node7:8700]", "reward.timeout=5", "reward.batch=1"])
    )
    manifest.refuse_another_config(tmp_path, served, moved)
    other = OmegaConf.to_container(config(), resolve=True)
    with pytest.raises(ValueError, match=r"reward\._target_: flash_grpo\.rewards\.client\.RemoteReward there"):
        manifest.refuse_another_config(tmp_path, served, other)


def test_a_second_ctrl_c_stops_at_once_and_the_run_continues_bit_identically(config, tmp_path, during, uninterrupted):
    def press_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    during(5, press_twice)
    with pytest.raises(KeyboardInterrupt):
        _start(config, tmp_path)
    assert [record["iteration"] for record in _without_times(tmp_path / "default/small")][-1] == 4
    _start(config, tmp_path)
    _assert_identical(tmp_path / "default/small", uninterrupted)


def test_a_run_killed_at_random_moments_twice_continues_bit_identically(config, tmp_path, uninterrupted):
    processes = multiprocessing.get_context("forkserver")  # fresh processes, without the seconds of importing
    processes.set_forkserver_preload(["flash_grpo.run.loop", "flash_grpo.policies.wan"])
    cfg, directory = config(*LONG, f"runs_root={tmp_path}"), tmp_path / "default/small"
    for start, lines in ((1, random.randint(1, 2)), (2, random.randint(3, 5))):
        process = processes.Process(target=loop.run, args=(cfg, cfg.run_name))
        process.start()
        _wait_for(process, directory, start, lines)
        time.sleep(random.uniform(0, 0.04))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    _start(config, tmp_path)
    _assert_identical(directory, uninterrupted)
    assert len(read_manifest(directory).starts) == 3


def _wait_for(process, directory: Path, start: int, lines: int) -> None:
    """Until the run has begun for the `start`th time and has written so many records."""
    deadline = time.monotonic() + 60

    def begun() -> bool:
        manifest = read_manifest(directory)
        return manifest is not None and len(manifest.starts) == start and len(list(read_records(directory))) >= lines

    while not begun():
        assert process.is_alive(), f"the run ended before it had {lines} records"
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Killed(BaseException):
    """What nobody catches: the process is gone."""


def test_a_run_that_dies_in_every_single_write_continues_bit_identically(config, tmp_path, monkeypatch, uninterrupted):
    """Every start dies in the first write that no start before it has died in, until one reaches the end."""
    died = []

    def deadly(owner, name, label, half=lambda *args: None):
        write = getattr(owner, name)

        def guarded(*args, **kwargs):
            if (name, label(*args)) not in died:
                died.append((name, label(*args)))
                half(*args)
                raise Killed
            return write(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    def half_a_line(writer, record):
        with open(writer.path, "a") as file:
            file.write(as_json(record)[:100])

    deadly(torch, "save", lambda state, file: file.name, half=lambda state, file: file.write(b"half a checkpoint"))
    deadly(RecordWriter, "append", lambda writer, record: (record.kind, record.iteration), half=half_a_line)
    deadly(Path, "rename", lambda path, target: str(target))
    deadly(shutil, "rmtree", lambda path: str(path))
    deadly(os, "replace", lambda path, target: str(target))
    deadly(os, "truncate", lambda path, length: length > 0)
    cfg, directory = config(*LONG, f"runs_root={tmp_path}"), tmp_path / "default/small"
    for _ in range(100):
        try:
            loop.load(cfg, loop.claim(cfg, cfg.run_name)).to_the_end(stop.StopRequest())
            break
        except Killed:
            pass
    assert {name for name, _ in died} == {"save", "append", "rename", "rmtree", "replace", "truncate"}
    assert len(died) > 20
    _assert_identical(directory, uninterrupted)
    assert [path.name for path in (directory / "checkpoints").iterdir() if path.name > "0"] == ["000004", "000006"]
    assert not list((directory / "checkpoints").glob(".*")), "what killed processes left is cleared away"


def test_a_completed_run_started_again_computes_nothing(config, tmp_path, uninterrupted, monkeypatch):
    copy = tmp_path / "default/small"
    shutil.copytree(uninterrupted, copy)
    before = (copy / "records.jsonl").read_bytes()
    monkeypatch.setattr(Trainer, "iterate", None)
    monkeypatch.setattr(Evaluation, "__call__", None)
    _start(config, tmp_path)
    assert (copy / "records.jsonl").read_bytes() == before
    assert [start.iteration for start in read_manifest(copy).starts] == [0, 6]
    assert read_manifest(copy).status == "completed"


def test_a_larger_budget_continues_the_same_run(config, tmp_path, uninterrupted):
    _start(config, tmp_path, "budget.iterations=5")
    directory = _start(config, tmp_path)
    iterations = [
        [record for record in _without_times(run_dir) if record["kind"] == "iteration"]
        for run_dir in (directory, uninterrupted)
    ]
    assert iterations[0] == iterations[1]


def test_the_same_run_twice_is_identical_and_another_seed_is_not(config, tmp_path, uninterrupted):
    _assert_identical(_start(config, tmp_path / "again"), uninterrupted)
    other = _without_times(_start(config, tmp_path / "other", "seed=1", "budget.iterations=1"))
    assert other[0] == _without_times(uninterrupted)[0], "the evaluation before training does not depend on the seed"
    assert other[1]["reward_mean"] != _without_times(uninterrupted)[1]["reward_mean"]


# -- refused and failed --------------------------------------------------------------------------------------------


def test_a_directory_of_another_configuration_is_refused_with_the_differing_keys(config, tmp_path, uninterrupted):
    copy = tmp_path / "default/small"
    shutil.copytree(uninterrupted, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(build.ConfigError) as refusal:
        _start(config, tmp_path, "method.plan.last_step=2", "seed=4")
    message = str(refusal.value)
    assert "method.plan.last_step: 3 there, 2 asked for" in message
    assert "seed: 0 there, 4 asked for" in message
    assert "schedule" not in message
    assert "\n" not in message
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_unusable_reward_stops_the_run_and_the_record_says_which_prompt(
    config, tmp_path, monkeypatch, uninterrupted, value
):
    reward, calls = ShapesReward.__call__, itertools.count()

    def spoilt(self, video, text):
        scores = reward(self, video, text)
        if next(calls) == 6:  # after an evaluation, iterations 1 to 4 and another evaluation
            scores.total_B[6] = value
            spoilt.text = text[6]
        return Scores(total_B=scores.total_B, parts=scores.parts)

    monkeypatch.setattr(ShapesReward, "__call__", spoilt)
    with pytest.raises(RewardError):
        _start(config, tmp_path)
    directory = tmp_path / "default/small"
    *_, failure = read_records(directory)
    assert (failure["kind"], failure["iteration"]) == ("failure", 5)
    assert f"total_B of {spoilt.text!r} (video 7 of 8) is {value}; 1 of 8 are not finite" in failure["reason"]
    assert read_manifest(directory).status == "failed"
    assert read_manifest(directory).reason == failure["reason"]
    assert checkpoint.complete(directory)[-1].name == "000004+001"  # its rollouts are not made again
    _start(config, tmp_path)
    _assert_identical(directory, uninterrupted)


def test_an_unusable_reward_in_an_evaluation_stops_the_run_too(config, tmp_path, monkeypatch):
    def spoilt(self, video, text):
        return Scores(
            total_B=torch.tensor([float("nan") if caption == "a red ball moving up" else 1.0 for caption in text]),
            parts={},
        )

    monkeypatch.setattr(ShapesReward, "__call__", spoilt)
    with pytest.raises(RewardError, match="'a red ball moving up'"):
        _start(config, tmp_path)
    assert read_manifest(tmp_path / "default/small").status == "failed"


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"weight": torch.ones(1)}, keep=1)

    def full(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    for iteration in (1, 2):
        with pytest.raises(OSError, match="no space"):
            checkpoint.save(tmp_path, iteration, {}, keep=1)
    assert checkpoint.newest(tmp_path) == {"weight": torch.ones(1)}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]


# -- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "field"), [("budget.pflop=1.4e-6", "pflop"), ("budget.device_hours=1e-4", "device_seconds")]
)
def test_a_run_stops_at_the_first_iteration_that_reaches_its_budget(config, tmp_path, bound, field):
    directory = _start(config, tmp_path, "budget.iterations=null", bound, "evaluation.every=1")
    limit = float(bound.split("=")[1]) * (3600 if field == "device_seconds" else 1)
    spent = [record["cost"][field] for record in read_records(directory) if record["kind"] == "iteration"]
    assert len(spent) > 1
    assert spent == sorted(spent)
    assert spent[-2] < limit <= spent[-1]


def test_the_first_of_several_budgets_ends_the_run(config, tmp_path):
    directory = _start(config, tmp_path, "budget.iterations=2", "budget.pflop=3e-6")
    assert max(record["iteration"] for record in read_records(directory)) == 2


# -- on disk -------------------------------------------------------------------------------------------------------


def test_there_is_one_record_per_iteration_and_per_evaluation_in_order(uninterrupted):
    order = [(record["kind"], record["iteration"]) for record in read_records(uninterrupted)]
    expected = [("evaluation", 0)]
    for iteration in range(1, 7):
        expected += [("iteration", iteration)] + [("evaluation", iteration)] * (iteration in (4, 6))
    assert order == expected


def test_evaluations_come_at_equal_shares_of_the_budget(train):
    directory = train("budget.iterations=10", "evaluation.every=0.2", "rollout.layout.group_size=2")
    evaluated = [record["iteration"] for record in read_records(directory) if record["kind"] == "evaluation"]
    assert evaluated == [0, 2, 4, 6, 8, 10]


def test_an_iteration_record_adds_up(uninterrupted):
    records = [record for record in read_records(uninterrupted) if record["kind"] == "iteration"]
    for record in records:
        assert record["optimizer_steps"] == record["iteration"]
        assert record["reward_mean"] == pytest.approx(sum(record["reward_parts"].values()), rel=1e-5)
        assert set(record["reward_parts"]) == {"colour", "motion", "smoothness"}
        assert 0 < record["within_group_std"] <= record["reward_std"]
        assert sum(record["steps"]) == pytest.approx(1)
        assert record["weight_min"] <= 1 <= record["weight_max"]
        assert record["cost"]["forward_evaluations"] == record["iteration"] * (8 * 5 + 8)
        assert set(record["seconds"]) == {"rollout", "decode", "reward", "update"}
        assert min(record["seconds"].values()) > 0
        assert record["gradient_norm"] > 0
        assert record["lr"] == 1e-3


def test_an_evaluation_is_not_part_of_the_cost(uninterrupted):
    records = list(read_records(uninterrupted))
    for before, record in itertools.pairwise(records):
        if record["kind"] == "evaluation":
            assert record["cost"] == before["cost"]
            assert record["evaluation_seconds"] > before["evaluation_seconds"]
        elif before["kind"] == "iteration":
            assert record["evaluation_seconds"] == before["evaluation_seconds"]
    assert records[0]["cost"]["device_seconds"] == 0


def test_an_evaluation_record_holds_the_mean_of_every_prompt(uninterrupted):
    record = next(read_records(uninterrupted))
    rewards = torch.tensor(list(record["prompt_rewards"].values()))
    assert (record["n"], len(rewards)) == (32, 32)
    assert record["reward_mean"] == pytest.approx(float(rewards.mean()), rel=1e-5)
    assert record["reward_sem"] == pytest.approx(float(rewards.std() / 32**0.5), rel=1e-5)


def test_evaluations_change_no_training_and_see_the_averaged_weights(config, tmp_path, monkeypatch, uninterrupted):
    seen, evaluate = [], Evaluation.__call__

    def watched(self, policy, *rest, **more):
        seen.append({name: value.detach().clone() for name, value in policy.trainable().items()})
        return evaluate(self, policy, *rest, **more)

    monkeypatch.setattr(Evaluation, "__call__", watched)
    directory = _start(config, tmp_path, "evaluation.every=0.1", "run_name=often")
    iterations = [
        [record for record in _without_times(run_dir) if record["kind"] == "iteration"]
        for run_dir in (directory, uninterrupted)
    ]
    assert iterations[0] == iterations[1]
    state = checkpoint.newest(directory)
    assert all(torch.equal(value, state["ema"][name]) for name, value in seen[-1].items())
    assert any((value != state["parameters"][name]).any() for name, value in seen[-1].items())


def test_the_manifest_tells_what_ran_where(config, uninterrupted, monkeypatch, tmp_path):
    manifest = read_manifest(uninterrupted)
    assert (manifest.run_name, manifest.study, manifest.method, manifest.seed) == ("small", "default", "flash", 0)
    assert (manifest.status, manifest.reason, manifest.world_size) == ("completed", "", 1)
    assert manifest.config["schedule"]["num_steps"] == 5
    assert manifest.config["optim"]["optimizer"]["lr"] == 1e-3, "interpolations are resolved"
    assert manifest.packages["torch"] == torch.__version__
    assert manifest.hardware["device_type"] == "cpu"
    assert manifest.hardware["threads"] == 1
    assert len(manifest.schedule["sigma_S"]) == 6
    assert re.fullmatch("[0-9a-f]{64}", manifest.config_hash)
    assert re.fullmatch("[0-9a-f]{64}", manifest.schedule_hash)
    assert manifest.git is None or re.fullmatch("[0-9a-f]{40}", manifest.git["commit"])
    assert [start.iteration for start in manifest.starts] == [0]


def test_names_that_are_numbers_are_names(config, tmp_path):
    manifest = read_manifest(_start(config, tmp_path, "study=2026", "run_name=7", "budget.iterations=1"))
    assert (manifest.study, manifest.run_name, manifest.status) == ("2026", "7", "completed")


def test_the_hashes_change_with_what_the_run_is_and_not_with_how_far_it_goes(config, train, uninterrupted, monkeypatch):
    original = read_manifest(uninterrupted)
    kept = ("budget.iterations=1", "study=elsewhere", "checkpoint.every=1", "rollout.batch=5")
    same = read_manifest(train(*LONG, *kept))
    other = read_manifest(train(*LONG, "budget.iterations=1", "schedule.noise=flow", "run_name=flow"))
    assert (same.config_hash, same.schedule_hash) == (original.config_hash, original.schedule_hash)
    assert other.config_hash != original.config_hash
    assert other.schedule_hash != original.schedule_hash


def test_every_start_notes_its_slurm_ids(train, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    manifest = read_manifest(train("budget.iterations=1"))
    assert manifest.starts[0].slurm == {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}


def test_contact_sheets_show_the_evaluation_at_the_start_and_at_the_end(uninterrupted):
    start, end = (Image.open(uninterrupted / "samples" / name).convert("RGB") for name in ("start.png", "end.png"))
    assert start.size == end.size
    assert start.width > 9 * 64
    assert start.height > 8 * 64
    assert len(start.getcolors(100_000)) > 100, "there is something to see"
    assert start.tobytes() != end.tobytes(), "training has changed the videos"


def test_the_summary_says_what_the_evaluation_reward_did_and_where_the_records_are(uninterrupted):
    summary = stored.summary(uninterrupted)
    first, *_, last = [record for record in read_records(uninterrupted) if record["kind"] == "evaluation"]
    assert f"{first['reward_mean']:.3f} -> {last['reward_mean']:.3f}" in summary
    assert str(uninterrupted / "records.jsonl") in summary
    assert "paired over 32 prompts" in summary


# -- under Slurm ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restarted(monkeypatch):
    """`restarted(3)`: this process is the fourth start of job 12; returns what the starts before it have said."""

    def arrange(restarts: int, said: tuple = ()) -> list[ProgramStart]:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        ids = [{"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": str(restart)} for restart, _ in said]
        return [
            ProgramStart(time="", **asdict(progress), slurm=slurm)
            for (_, progress), slurm in zip(said, ids, strict=True)
        ]

    return arrange


HERE = StartProgress(iteration=7, pieces=40, reached=7)
BEFORE = StartProgress(iteration=6, pieces=30, reached=6)
FELL_BACK = StartProgress(iteration=7, pieces=40, reached=9)  # the start before this one was killed after iteration 9


@pytest.mark.parametrize(
    ("restarts", "said", "now", "idle"),
    [
        (3, ((0, HERE), (1, HERE), (2, HERE)), HERE, 3),
        (2, ((0, HERE), (1, HERE)), HERE, 0),  # 2, fewer than the limit
        (3, ((0, BEFORE), (1, HERE), (2, HERE)), HERE, 0),
        (4, ((0, BEFORE), (1, HERE), (2, HERE)), HERE, 3),  # start 3 did not get as far as to say
        (3, ((0, HERE), (1, HERE), (2, HERE)), FELL_BACK, 0),
        (3, (), HERE, 3),
        (4, ((0, HERE), (1, FELL_BACK), (2, FELL_BACK), (3, FELL_BACK)), FELL_BACK, 3),
        (4, ((0, HERE),), None, 3),
        (3, ((0, HERE),), None, 0),
    ],
)
def test_a_job_that_slurm_restarts_without_progress_gives_up(restarted, restarts, said, now, idle):
    reason = endless_restarts(restarted(restarts, said), now, limit=3)
    assert reason.startswith(f"started {idle} times without") if idle else not reason


def test_a_start_that_reaches_what_an_earlier_one_reached_makes_no_progress(config, tmp_path, monkeypatch, restarted):
    """Each start is killed before it has saved anything."""
    for restarts, reached in enumerate((3, 2, 3, 1, None)):
        restarted(restarts)
        if reached is None:
            with pytest.raises(RuntimeError, match="started 3 times without completing a micro-batch"):
                _start(config, tmp_path)
            break
        cfg = config(*LONG, f"runs_root={tmp_path}")
        place = loop.claim(cfg, cfg.run_name)
        place.begin(0, 0, 0)
        if restarts == 0:
            loop.load(cfg, place).saver.save(Place())
        for iteration in range(1, reached + 1):
            place.records.append(_evaluation(iteration))
        place.held.lock.close()


def _evaluation(iteration: int) -> EvalRecord:
    numbers = {"optimizer_steps": 0, "evaluation_seconds": 0.0, "reward_mean": 0.0, "reward_sem": None, "n": 1}
    return EvalRecord(iteration=iteration, cost=Cost(), reward_parts={}, prompt_rewards={}, **numbers)


def test_a_person_s_own_restarts_do_not_count(restarted):
    starts = restarted(5, tuple((restart, HERE) for restart in range(5)))
    for start in starts:
        start.slurm["SLURM_JOB_ID"] = "11"
    assert not endless_restarts(starts, HERE, limit=6)


def test_a_job_whose_starts_all_die_before_they_have_loaded_anything_gives_up_and_says_so(config, tmp_path, restarted):
    restarted(3)
    with pytest.raises(RuntimeError, match="started 3 times without loading"):
        _start(config, tmp_path)
    manifest = read_manifest(tmp_path / "default/small")
    assert (manifest.status, len(manifest.starts)) == ("failed", 1)


def test_texts_that_are_trained_on_and_held_out_are_reported_once(config, tmp_path, caplog):
    for name in ("train", "test"):
        (tmp_path / name).write_text("a red ball moving left\n")
    files = (f"prompts.{name}={tmp_path / name}" for name in ("train", "test"))
    _start(config, tmp_path, "prompts=file", *files, "rollout.layout.num_prompts=1", "budget.iterations=1")
    assert caplog.text.count("held-out prompts are trained on") == 1


def test_other_texts_in_the_same_files_are_refused(config, tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).write_text("a red ball moving left\na blue ball moving up\n")
    overrides = (
        "prompts=file",
        *(f"prompts.{name}={tmp_path / name}" for name in ("train", "test")),
        "budget.iterations=1",
    )
    directory = _start(config, tmp_path, *overrides)
    copied = tmp_path / "copied"
    copied.write_bytes((tmp_path / "test").read_bytes())
    _start(config, tmp_path, *overrides, f"prompts.test={copied}")
    (tmp_path / "test").write_text("a green ball moving left\n")
    with pytest.raises(build.ConfigError, match=r"other texts than prompts\.train and prompts\.test give now"):
        _start(config, tmp_path, *overrides)
    assert read_manifest(directory).status == "completed"


def test_other_adapters_in_the_same_file_are_refused(tmp_path):
    def lora(init_from):
        return {"optim": {"lora": {"init_from": init_from}}}

    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"adapters")
    other.write_bytes(b"more adapters")
    both = {"transformer": str(one), "transformer_2": str(other)}
    began = manifest.adapters_hash(lora(both))
    manifest.refuse_other_adapters(tmp_path, began, lora(both))
    manifest.refuse_other_adapters(tmp_path, None, lora(both))  # a run of an earlier version
    swapped = {"transformer": str(other), "transformer_2": str(one)}
    one_alone = lora(str(one))
    for wanted in (lora(swapped), one_alone, lora(None), {"optim": {"lora": None}}):
        with pytest.raises(ValueError, match=r"other adapters than optim\.lora\.init_from gives now"):
            manifest.refuse_other_adapters(tmp_path, began, wanted)
    one.write_bytes(b"other adapters")
    with pytest.raises(ValueError, match="put the files back"):
        manifest.refuse_other_adapters(tmp_path, began, lora(both))


# -- failing -------------------------------------------------------------------------------------------------------


def test_an_exception_while_the_models_are_loaded_stands_in_run_json(config, tmp_path, monkeypatch):
    def short_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "prepare_trainer", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        _start(config, tmp_path)
    manifest = read_manifest(tmp_path / "default/small")
    assert (manifest.status, manifest.reason) == ("failed", "OutOfMemoryError: CUDA out of memory")
    assert "in short_of_memory" in manifest.traceback
    monkeypatch.undo()
    _start(config, tmp_path)
    manifest = read_manifest(tmp_path / "default/small")
    assert (manifest.status, manifest.reason, manifest.traceback) == ("completed", "", "")


def test_a_run_refused_while_its_models_are_loaded_leaves_nothing_behind(config, tmp_path):
    with pytest.raises(build.ConfigError):
        _start(config, tmp_path, "model.path=/nowhere")
    assert not list(tmp_path.iterdir())


def test_the_reason_of_the_first_rank_that_fails_is_kept(config, tmp_path):
    cfg = config(*LONG, f"runs_root={tmp_path}")
    described = loop.claim(cfg, "shared").manifest
    ranks = [
        SimpleNamespace(rank=rank, world_size=2, is_main=rank == 0, from_main=lambda value: value, barrier=lambda: None)
        for rank in (0, 1)
    ]
    main, other = (RunDirectory(tmp_path / "default/shared", described, rank, 3) for rank in ranks)
    main.begin(0, 0, 0)
    other.begun = True
    other.fail(ValueError("no such reward"))
    main.fail(RuntimeError("Connection closed by peer"))
    manifest = read_manifest(main.path)
    assert (manifest.status, manifest.reason) == ("failed", "ValueError: no such reward (rank 1 of 2)")
    assert "no such reward" in manifest.traceback
    assert [record["reason"] for record in read_records(main.path)] == [manifest.reason]
    assert len(manifest.starts) == 1


def test_a_directory_of_an_earlier_version_is_refused_in_one_line_and_left_as_it_is(config, tmp_path, uninterrupted):
    directory = tmp_path / "default/small"
    shutil.copytree(uninterrupted, directory)
    described = json.loads((directory / "run.json").read_text())
    del described["format"]
    (directory / "run.json").write_text(json.dumps(described))
    with pytest.raises(build.ConfigError, match=r"was made by another version of this suite \(format 1; ") as refusal:
        _start(config, tmp_path)
    assert "\n" not in str(refusal.value)
    assert json.loads((directory / "run.json").read_text()) == described
    with pytest.raises(ValueError, match="another version"):
        stored.known_run(directory)


def test_a_class_that_has_moved_to_another_room_does_not_make_another_run(config, tmp_path, uninterrupted):
    directory = tmp_path / "default/small"
    shutil.copytree(uninterrupted, directory)
    text = (directory / "run.json").read_text()
    assert "flash_grpo.algorithm.plans.OneStep" in text
    (directory / "run.json").write_text(text.replace("flash_grpo.algorithm.plans", "flash_grpo.plans"))
    assert _start(config, tmp_path) == directory
