"""Loading a study, and `write_study`: synthetic runs with known answers for the other analysis tests."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import style
from analysis.archive import main as archive
from analysis.curves import run_summaries
from analysis.study import load_study
from flash_grpo.algorithm import schedule
from flash_grpo.records.files import RECORDS, RecordWriter, as_json, write_manifest
from flash_grpo.records.schema import Cost, EvalRecord, IterationRecord, RunManifest

METHODS = ("full", "window", "naive_one_step", "no_rectification", "no_iso_temporal", "flash", "shared_noise")
PROMPTS = [f"a {colour} ball moving {way}" for colour in ("red", "green", "blue") for way in ("left", "right", "up")]


def write_study(path: Path, methods=METHODS, seeds=range(8), noise="linear", **options) -> Path:
    """A study directory; `options` go to `write_run`."""
    for method in methods:
        for seed in seeds:
            write_run(path / f"{method}-{noise}-seed{seed}", method=method, seed=seed, noise=noise, **options)
    return path


def write_run(
    run_dir: Path,
    *,
    method="flash",
    seed=0,
    noise="linear",
    gain=0.5,
    spread=0.1,
    iterations=20,
    every=5,
    seconds=(0.5, 0.05, 0.2),
    status="completed",
    reason="",
    config=None,
    base=1.5,
    model="tiny",
    part="colour",
) -> Path:
    """One run whose evaluation reward rises linearly from `base` by `gain[method]` and noise of size `spread`."""
    run_dir.mkdir(parents=True)
    random = np.random.default_rng([seed, *method.encode()])
    rise = (gain.get(method, 0.0) if isinstance(gain, dict) else gain) + spread * random.normal()
    slower = 2.0 if method == "full" else 1.0
    config = {"seed": seed, "schedule": {"noise": noise}, "method": {"name": method}} | (config or {})
    write_manifest(run_dir, manifest(run_dir, method, seed, config, status, reason, model))
    writer = RecordWriter(run_dir, 0)
    for index in range(iterations + 1):
        cost = Cost(device_seconds=index * slower * sum(seconds), pflop=0.01 * index, forward_evaluations=1280 * index)
        if index:
            writer.append(
                iteration(index, cost, [slower * part for part in seconds], base + rise * index / iterations, random)
            )
        if index % every == 0:
            writer.append(evaluation(index, cost, base + rise * index / iterations, part))
    return run_dir


def manifest(run_dir: Path, method, seed, config, status="completed", reason="", model="tiny") -> RunManifest:
    return RunManifest(
        run_name=run_dir.name,
        study=run_dir.parent.name,
        method=method,
        model=model,
        seed=seed,
        config=config,
        config_hash="0",
        schedule={},
        schedule_hash="0",
        git={"commit": "0123456789abcdef", "dirty": False},
        packages={},
        hardware={"device_type": "cpu", "device": "x86_64"},
        world_size=1,
        status=status,
        reason=reason,
    )


def iteration(
    index: int, cost: Cost, seconds: list[float], reward: float, random: np.random.Generator
) -> IterationRecord:
    return IterationRecord(
        iteration=index,
        optimizer_steps=index,
        cost=cost,
        evaluation_seconds=0.5,
        seconds=dict(zip(("rollout", "reward", "update"), seconds, strict=True)),
        reward_mean=reward + 0.05 * random.normal(),
        reward_std=0.4,
        reward_parts={"colour": 0.9, "motion": 0.3},
        within_group_std=0.3,
        groups_without_spread=0.0,
        transitions=64,
        steps=[0.1] * 10 + [0.0] * 10,
        weight_min=0.5,
        weight_max=1.6,
        advantage_abs_mean=0.8,
        ratio_mean=1.0,
        ratio_max=1.001,
        ratio_drift=float(10 ** (-6 + 0.3 * random.normal())),
        clip_fraction=float(random.uniform(0, 0.3)),
        approx_kl=1e-5,
        base_kl=0.0,
        loss=0.001,
        gradient_norm=float(0.3 * np.exp(0.3 * random.normal())),
        lr=1e-4,
    )


def evaluation(index: int, cost: Cost, reward: float, part: str = "colour") -> EvalRecord:
    around = np.linspace(-0.4, 0.4, len(PROMPTS))
    return EvalRecord(
        iteration=index,
        optimizer_steps=index,
        cost=cost,
        evaluation_seconds=0.5,
        reward_mean=reward,
        reward_sem=float(around.std(ddof=1) / len(around) ** 0.5),
        reward_parts={part: 0.9, "motion": 0.3} if part == "colour" else {part: reward},
        prompt_rewards=dict(zip(PROMPTS, (reward + around).tolist(), strict=True)),
        n=4 * len(PROMPTS),
    )


def test_records_come_back_as_frames_with_nested_fields_flattened(tmp_path):
    study = load_study(write_study(tmp_path / "s", seeds=[3]))
    assert study.notes == []
    assert len(study.runs) == 7
    assert len(study.iterations) == 7 * 20
    assert len(study.evaluations) == 7 * 5
    first = study.iterations[study.iterations["method"] == "flash"].iloc[0]
    assert first["cost.device_seconds"] == pytest.approx(0.75)
    assert first["seconds.rollout"] == 0.5
    assert first["reward_parts.colour"] == 0.9
    assert first["steps.9"] == 0.1
    assert first["seed"] == 3
    assert study.on_cpu


def test_a_last_line_cut_short_is_left_out_and_noted(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    write_run(tmp_path / "s" / "b", seed=1)
    with open(run / RECORDS, "a") as file:
        file.write('{"kind": "iteration", "itera')
    study = load_study(tmp_path / "s")
    assert len(study.iterations) == 40
    assert [note for note in study.notes if note.startswith("a:") and "cut short" in note]


def test_an_unreadable_line_keeps_what_came_before_it_and_is_noted(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    lines = (run / RECORDS).read_text().splitlines(keepends=True)
    (run / RECORDS).write_text("".join([*lines[:10], "not json\n", *lines[10:]]))
    study = load_study(tmp_path / "s")
    assert len(study.iterations) + len(study.evaluations) == 10
    assert any("line 11" in note for note in study.notes)


def test_a_field_that_older_records_lack_is_missing_and_noted(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    records = [json.loads(line) for line in (run / RECORDS).read_text().splitlines()]
    for record in records[:8]:
        record.pop("ratio_drift", None)
        record["cost"].pop("pflop")
    (run / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    study = load_study(tmp_path / "s")
    assert study.iterations["ratio_drift"].isna().sum() == 6
    assert study.iterations["ratio_drift"].notna().sum() == 14
    assert any("iteration records lack" in note and "ratio_drift" in note for note in study.notes)
    assert any("lack" in note and "cost.pflop" in note for note in study.notes)


def test_a_manifest_that_lacks_a_field_is_read_and_noted(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: manifest[key] for key in ("method", "seed", "status", "config")}))
    study = load_study(tmp_path / "s")
    assert list(study.runs["method"]) == ["flash"]
    assert any("lacks config_hash" in note for note in study.notes)


def test_a_run_with_slurm_s_bill_reads_as_one_without(tmp_path):
    billed, plain = write_run(tmp_path / "s" / "a"), write_run(tmp_path / "s" / "b", seed=1)
    manifest = json.loads((billed / "run.json").read_text())
    (billed / "run.json").write_text(json.dumps({**manifest, "bill": {"starts": [], "device_seconds": 7}}))
    del manifest["bill"]
    (plain / "run.json").write_text(json.dumps({**manifest, "seed": 1}))
    study = load_study(tmp_path / "s")
    assert list(study.runs["run"]) == ["a", "b"]
    assert not study.notes


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}', None])
def test_a_run_without_a_readable_manifest_is_left_out_with_a_note(tmp_path, text):
    write_run(tmp_path / "s" / "good")
    bad = write_run(tmp_path / "s" / "bad", seed=1)
    (bad / "run.json").unlink()
    if text is not None:
        (bad / "run.json").write_text(text)
    study = load_study(tmp_path / "s")
    assert list(study.runs["run"]) == ["good"]
    assert len(study.iterations) == 20
    assert any(note.startswith("bad: left out") for note in study.notes)


def test_failed_and_running_runs_are_noted_and_not_compared(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(3))
    write_run(tmp_path / "s" / "x", seed=8, status="failed", reason="reward is not finite")
    write_run(tmp_path / "s" / "y", seed=9, status="running")
    study = load_study(tmp_path / "s")
    assert len(study.runs) == 5
    assert set(study.iterations["run"]) >= {"x", "y"}
    assert set(run_summaries(study)["seed"]) == {0, 1, 2}
    assert any("1 of 5 runs failed" in note and "reward is not finite" in note for note in study.notes)
    assert any("1 of 5 runs running" in note for note in study.notes)


def test_while_no_run_has_completed_all_count_and_a_note_says_so(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(2), status="running")
    study = load_study(tmp_path / "s")
    assert study.runs["finished"].all()
    assert any("No run has completed (2 running)" in note for note in study.notes)


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_study_is_a_note_and_empty_frames(tmp_path, exists):
    if exists:
        (tmp_path / "s").mkdir()
    study = load_study(tmp_path / "s")
    assert study.empty
    assert len(study.notes) == 1
    assert len(run_summaries(study)) == 0


def test_a_run_without_records_is_noted(tmp_path):
    write_run(tmp_path / "s" / "a")
    write_run(tmp_path / "s" / "b", seed=1)
    (tmp_path / "s" / "b" / RECORDS).write_text("")
    study = load_study(tmp_path / "s")
    assert any(note.startswith("b: no records yet") for note in study.notes)
    assert any("Not evaluated" in note and "b" in note for note in study.notes)


def test_not_finite_numbers_are_missing_values(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    with open(run / RECORDS, "a") as file:
        file.write(as_json(evaluation(25, Cost(device_seconds=30.0), float("nan"))) + "\n")
    study = load_study(tmp_path / "s")
    assert np.isnan(study.evaluations["reward_mean"].iloc[-1])
    assert run_summaries(study)["final"].notna().all()


def test_runs_of_one_method_that_differ_in_a_setting_are_kept_apart(tmp_path):
    for seed in range(2):
        for lr in (1e-4, 3e-4):
            write_run(tmp_path / "s" / f"{lr}-{seed}", seed=seed, config={"optim": {"lr": lr}, "threads": seed})
    study = load_study(tmp_path / "s")
    assert set(study.runs["arm"]) == {"flash optim.lr=0.0001", "flash optim.lr=0.0003"}
    assert any("differ in optim.lr" in note for note in study.notes)


def test_seeds_that_differ_in_what_follows_the_seed_or_changes_no_result_are_averaged(tmp_path):
    for seed in range(2):
        bookkeeping = {
            "optim": {"lora": {"seed": seed}, "lr": 1e-4},
            "rollout": {"batch": 1 + seed},
            "reward": {"urls": [f"http://node{seed}:8700"]},
        }
        write_run(tmp_path / "s" / str(seed), seed=seed, config=bookkeeping)
    assert set(load_study(tmp_path / "s").runs["arm"]) == {"flash"}


def test_a_seed_that_ran_twice_counts_once_and_the_longer_run_stays(tmp_path):
    write_run(tmp_path / "s" / "short", iterations=10)
    write_run(tmp_path / "s" / "long", iterations=20)
    study = load_study(tmp_path / "s")
    assert list(run_summaries(study)["run"]) == ["long"]
    assert any("short repeats flash, seed 0" in note for note in study.notes)


def test_several_studies_are_read_as_one_with_runs_named_apart(tmp_path):
    write_study(tmp_path / "ablation", methods=["flash"], seeds=[0])
    write_study(tmp_path / "ablation_flow", methods=["flash"], seeds=[0], noise="flow")
    study = load_study(tmp_path / "ablation", tmp_path / "ablation_flow")
    assert set(study.runs["noise"]) == {"linear", "flow"}
    assert study.runs["run"].is_unique
    assert study.runs["finished"].all()


def test_an_archive_reads_like_the_study_it_was_made_from(tmp_path):
    whole = load_study(write_study(tmp_path / "s", seeds=range(3)))
    (tmp_path / "s" / "flash-linear-seed0" / "checkpoints").mkdir()
    (tmp_path / "s" / "flash-linear-seed0" / "checkpoints" / "weights").write_text("large")
    archive([str(tmp_path / "s"), str(tmp_path / "s.tar.xz")])
    packed = load_study(tmp_path / "s.tar.xz")
    assert packed.notes == []
    assert packed.name == "s"
    for column in ("final", "device_seconds", "area"):
        np.testing.assert_allclose(run_summaries(packed)[column], run_summaries(whole)[column], rtol=1e-5)
    assert not list(packed.paths[0].rglob("weights"))
    size = sum(file.stat().st_size for file in (tmp_path / "s").rglob("records.jsonl"))
    assert (tmp_path / "s.tar.xz").stat().st_size < size / 10


def test_loading_takes_at_most_twice_as_long_as_parsing_the_json(tmp_path):
    """1,000 runs of 300 records then load in under 10 s: 5 s of them are json.loads. A ratio, for a busy machine."""
    run = write_run(tmp_path / "s" / "run0", iterations=270, every=9)
    text = (run / RECORDS).read_text()
    for seed in range(1, 40):
        other = tmp_path / "s" / f"run{seed}"
        other.mkdir()
        write_manifest(other, manifest(other, "flash", seed, {"seed": seed}))
        (other / RECORDS).write_text(text)
    start = time.process_time()
    study = load_study(tmp_path / "s")
    loaded = time.process_time()
    for other in (tmp_path / "s").iterdir():
        records = [json.loads(line) for line in (other / RECORDS).read_text().splitlines()]
        assert len(records) == 301
    parsed = time.process_time()
    assert len(study.iterations) + len(study.evaluations) == 40 * 301
    assert loaded - start < 2 * (parsed - loaded) + 0.2
    assert (loaded - start) * 1000 / 40 < 20


def test_a_note_that_many_runs_share_is_said_once(tmp_path):
    write_study(tmp_path / "study", ["flash", "full"], seeds=range(3))
    for run_dir in (tmp_path / "study").iterdir():
        records = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
        for record in records:
            record["cost"].pop("decodes")
        (run_dir / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    notes = [note for note in load_study(tmp_path / "study").notes if "decodes" in note]
    assert sorted(notes) == [
        f"6 of 6 runs: {kind} records lack cost.decodes (older version?): shown as missing."
        for kind in ("evaluation", "iteration")
    ]


@pytest.mark.parametrize("noise", ["linear", "flow", "cps"])
def test_every_sde_of_the_suite_is_read_and_has_a_name(tmp_path, noise):
    study = load_study(write_study(tmp_path / "study", ["flash"], seeds=range(2), noise=noise))
    assert set(study.runs["noise"]) == {noise}
    assert style.noise_name(noise) != noise
    assert set(schedule.NOISE_LEVELS) == set(style.NOISES)


def test_runs_of_different_rewards_are_noted_and_those_of_one_are_not(tmp_path):
    for name, method in (("Honest", "flash"), ("Flawed", "full")):
        write_study(tmp_path / name, [method], range(3), config={"reward": {"_target_": f"some.{name}"}})
    both = load_study(tmp_path / "Honest", tmp_path / "Flawed")
    assert [note for note in both.notes if "different rewards (Honest: flash; Flawed: full)" in note]
    assert not any("different rewards" in note for note in load_study(tmp_path / "Honest").notes)
