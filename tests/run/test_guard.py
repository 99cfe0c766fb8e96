"""A run that a guard ends, and the checkpoint that it keeps as the best."""

import json
import signal
from contextlib import suppress

import pytest
import torch
from untimed import untimed

from flash_grpo import evaluate, export
from flash_grpo.cluster.run_state import run_states
from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.records.schema import BestCheckpoint
from flash_grpo.run import checkpoint, loop, stop, stored
from flash_grpo.run.rehearsal import rehearse
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.trainer import Trainer

FOUR = (
    "budget.iterations=4",
    "evaluation.every=0.25",
    "checkpoint.every=2",
    "optim.optimizer.lr=1e-3",
    "schedule.num_steps=5",
)
FOUR += ("method.plan.last_step=3",)
STOPPING = (*FOUR, "stop_when.base_distance_above=1e-9")  # at the first evaluation of what was trained
BEST = (*FOUR, "checkpoint.best_by=held_out", "checkpoint.keep=1", "reward@evaluation.held_out=fidelity")


def _evaluations(directory) -> list[dict]:
    return [record for record in read_records(directory) if record["kind"] == "evaluation"]


# -- stop_when -----------------------------------------------------------------------------------------------------


def test_a_guard_ends_the_run_which_is_complete_and_says_why_everywhere(train, tmp_path, caplog, capsys):
    directory = train(*STOPPING)
    reason = read_manifest(directory).reason
    assert read_manifest(directory).status == "completed"
    assert reason.startswith("stopped by stop_when.base_distance_above at iteration 1: the distance from the base ")
    assert [(record["iteration"], record["flags"]) for record in _evaluations(directory)] == [
        (0, []),
        (1, ["base_distance_above"]),
    ]
    assert sum(reason in line for line in caplog.messages) == 1
    assert (directory / "samples/end.png").exists()
    assert f"ended early       {reason}" in stored.summary(directory)
    [state] = run_states(directory.parent, None)
    assert (state.state, state.why) == ("complete", reason)


def test_the_same_command_has_nothing_to_do_and_without_the_guard_the_run_goes_on(train, caplog):
    directory = train(*STOPPING)
    before = [(path.name, path.read_bytes()) for path in sorted((directory / "checkpoints").rglob("*.pt"))]
    reason, records = read_manifest(directory).reason, (directory / "records.jsonl").read_bytes()
    assert train(*STOPPING) == directory
    assert (directory / "records.jsonl").read_bytes() == records
    assert [(path.name, path.read_bytes()) for path in sorted((directory / "checkpoints").rglob("*.pt"))] == before
    assert (read_manifest(directory).status, read_manifest(directory).reason) == ("completed", reason)
    train(*FOUR)
    whole = train(*FOUR, "run_name=whole")
    assert (read_manifest(directory).status, read_manifest(directory).reason) == ("completed", "")
    mine, theirs = ([{**untimed(record), "flags": []} for record in _evaluations(path)] for path in (directory, whole))
    assert mine == theirs and len(mine) == 5


def test_a_run_that_has_spent_its_budget_was_not_stopped(train):
    directory = train(*FOUR, "stop_when.base_distance_above=1e-9", "budget.iterations=1")
    assert _evaluations(directory)[-1]["flags"] == ["base_distance_above"]
    assert read_manifest(directory).reason == ""
    train(*FOUR, "stop_when.base_distance_above=1e-9", "budget.iterations=2")
    assert read_manifest(directory).reason.startswith("stopped by stop_when.base_distance_above at iteration 1")


def test_a_run_that_is_interrupted_in_the_evaluation_that_ends_it_ends_alike(config, train, tmp_path, monkeypatch):
    whole = train(*STOPPING, "run_name=whole")
    from flash_grpo.training.evaluated_part import PartEvaluator

    part, parts = PartEvaluator.part, []

    def interrupting(self, *args):
        parts.append(args)
        if len(parts) == 6:  # the second part of the second evaluation
            signal.raise_signal(signal.SIGTERM)
        return part(self, *args)

    monkeypatch.setattr(PartEvaluator, "part", interrupting)
    small = (*STOPPING, "evaluation.sampler.batch=8")
    with pytest.raises(stop.Interrupted, match="in the evaluation after iteration 1"):
        train(*small)
    monkeypatch.setattr(PartEvaluator, "part", part)
    directory = train(*small)
    assert read_manifest(directory).reason.startswith("stopped by stop_when.base_distance_above at iteration 1")
    mine, theirs = (_evaluations(path)[-1]["flags"] for path in (directory, whole))
    assert mine == theirs == ["base_distance_above"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stop_when.held_out_falls=3",), "stop_when.held_out_falls: there is no held-out reward"),
        (("checkpoint.best_by=held_out",), "checkpoint.best_by: there is no held-out reward"),
        (("checkpoint.best_by=diversity",), "checkpoint.best_by=diversity: allowed are null, reward, held_out"),
        (("stop_when.diversity_below=0.5",), "stop_when.diversity_below: needs evaluation.sampler.noises_per_prompt"),
        (("stop_when.diversity_below=1.5",), "stop_when.diversity_below=1.5: must be a positive number, at most 1"),
        (("stop_when.held_out_falls=0",), "stop_when.held_out_falls=0: must be an integer, at least 1"),
        (("stop_when.base_distance_above=0",), "stop_when.base_distance_above=0: must be a positive number"),
        (("+stop_when.reward_falls=3",), "stop_when.reward_falls: nothing reads this key"),
        (("stop_when=null",), "stop_when=null: must be a section of keys"),
    ],
)
def test_a_guard_that_could_never_hold_is_refused_before_any_work(config, tmp_path, overrides, message):
    cfg = config(f"runs_root={tmp_path / 'runs'}", *overrides)
    for attempt in (lambda: loop.claim(cfg, "refused"), lambda: rehearse(cfg, 1)):
        with pytest.raises(ConfigError) as refusal:
            attempt()
        assert str(refusal.value).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_fall_of_a_single_prompt_cannot_be_judged(config, tmp_path):
    (tmp_path / "one.txt").write_text("a red ball moving left\n")
    files = [f"prompts.{part}={tmp_path / 'one.txt'}" for part in ("train", "test")]
    asked = ("reward@evaluation.held_out=fidelity", "stop_when.held_out_falls=3")
    with pytest.raises(ConfigError, match=r"stop_when\.held_out_falls: compares prompts, and there is one"):
        loop.claim(config(f"runs_root={tmp_path}", "prompts=file", *files, *asked), "refused")


# -- the best checkpoint -------------------------------------------------------------------------------------------


def _best_of(evaluations: list[dict], by: str) -> dict:
    return max(evaluations, key=lambda record: record[by])


def test_the_checkpoint_of_the_best_evaluation_stays_beside_the_newest_and_holds_its_weights(
    train, tmp_path, monkeypatch
):
    seen, state = {}, Trainer.state

    def noted(self):
        seen.setdefault(
            self.updater.stepper.optimizer_steps,
            {name: value.clone() for name, value in self.updater.stepper.ema.state().items()},
        )
        return state(self)

    monkeypatch.setattr(Trainer, "state", noted)
    directory = train(*BEST)
    best = _best_of(_evaluations(directory), "held_out")
    assert 0 < best["iteration"] < 4, "otherwise the test shows nothing"
    assert read_manifest(directory).best == BestCheckpoint(
        iteration=best["iteration"], by="held_out", value=best["held_out"]
    )
    assert [path.name for path in checkpoint.complete(directory)] == [f"{best['iteration']:06d}", "000004"]
    kept = stored.saved_state(directory, best["iteration"])["ema"]
    assert all(torch.equal(kept[name], value) for name, value in seen[best["optimizer_steps"]].items())


def test_an_interrupted_run_keeps_the_same_best_checkpoint(config, train, monkeypatch):
    whole = train(*BEST, "run_name=whole")
    update, updates = Trainer.update, []

    def interrupting(self, *args):
        updates.append(args)
        if len(updates) in (2, 5):
            signal.raise_signal(signal.SIGTERM)
        return update(self, *args)

    monkeypatch.setattr(Trainer, "update", interrupting)
    for _ in range(4):
        with suppress(stop.Interrupted):
            directory = train(*BEST)
            break
    assert len(read_manifest(directory).starts) == 3
    assert read_manifest(directory).best == read_manifest(whole).best
    first, second = (
        {path.name: torch.load(path / "state.pt")["ema"] for path in checkpoint.complete(run)}
        for run in (directory, whole)
    )
    assert first.keys() == second.keys()
    for name, weights in first.items():
        assert all(torch.equal(weights[key], second[name][key]) for key in weights)


def test_a_run_without_a_criterion_keeps_the_newest_alone(train):
    directory = train(*FOUR, "checkpoint.keep=1")
    assert [path.name for path in checkpoint.complete(directory)] == ["000004"]
    assert read_manifest(directory).best is None


def test_export_and_evaluate_take_the_best(train, capsys):
    directory = train(*BEST)
    best = read_manifest(directory).best.iteration
    chosen, by_number = directory / "best", directory / "number"
    export.main([str(directory), "--best", "--output", str(chosen)])
    export.main([str(directory), "--iteration", str(best), "--output", str(by_number)])
    files = sorted(path.relative_to(chosen) for path in chosen.rglob("*") if path.is_file())
    assert files and all((chosen / file).read_bytes() == (by_number / file).read_bytes() for file in files)
    evaluate.main([str(directory), "--best", "--output", str(directory / "judged")])
    result = json.loads((directory / "judged/evaluation.json").read_text())
    [recorded] = [record for record in _evaluations(directory) if record["iteration"] == best]
    assert result[f"{best:06d}"]["reward_mean"] == pytest.approx(recorded["reward_mean"], abs=1e-4)


def test_a_run_that_keeps_no_best_checkpoint_has_none_to_export(train, capsys):
    directory = train("budget.iterations=1")
    for command in (export.main, evaluate.main):
        with pytest.raises(SystemExit, match="2"):
            command([str(directory), "--best"])
        assert "it keeps no best checkpoint; checkpoint.best_by=reward, or held_out" in capsys.readouterr().err
