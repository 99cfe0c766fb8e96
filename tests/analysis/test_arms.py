"""Runs of one method with several settings: which share an arm, what it is called, and which are at a common rate."""

import numpy as np
import pandas as pd
import pytest
from test_study import write_run, write_study

from analysis import arms
from analysis.ablation import SWITCHES
from analysis.curves import run_summaries
from analysis.study import load_study

TUNED = {"naive_one_step": 1.5e-4, "no_rectification": 3e-4, "no_iso_temporal": 1.5e-4, "flash": 1.5e-4, "full": 6e-4}


def at(rate: float, lr_of=TUNED, **rest) -> dict:
    return {"optim": {"optimizer": {"lr": rate}, "lr_of": lr_of}, **rest}


def write_tuned(path, methods=tuple(TUNED), seeds=range(3), noise="linear", **options):
    for method in methods:
        write_study(path, [method], seeds, noise, config=at(TUNED[method], schedule={"noise": noise}), **options)
    return path


@pytest.mark.parametrize(
    "lr_of", [{"flash": 1e-4}, {"flash": {"linear": 1e-4, "flow": 3e-4}}, {"linear": {"flash": 1e-4}, "flow": {}}]
)
def test_a_rate_is_tuned_if_the_configuration_has_it_for_the_method_and_sde(lr_of):
    assert arms.is_tuned(at(1e-4, lr_of), "flash", "linear")
    assert not arms.is_tuned(at(3e-4, lr_of), "flash", "linear")
    assert not arms.is_tuned(at(1e-4, lr_of), "full", "linear")


@pytest.mark.parametrize("config", [None, [], {}, {"optim": 3}, {"optim": {"optimizer": {"lr": None}}}])
def test_a_configuration_without_a_rate_has_none_and_is_not_tuned(config):
    assert np.isnan(arms.learning_rate(config))
    assert not arms.is_tuned(config, "flash", "linear")


def test_runs_at_the_tuned_rate_keep_the_methods_name_beside_runs_at_another(tmp_path):
    write_tuned(tmp_path / "s")
    write_run(tmp_path / "s" / "common", method="no_rectification", config=at(1.5e-4))
    study = load_study(tmp_path / "s")
    assert set(study.runs["arm"]) == {*TUNED, "no_rectification optim.optimizer.lr=0.00015"}
    [note] = [note for note in study.notes if "differ" in note]
    assert "optim.optimizer.lr (no_rectification): they are kept apart" in note


def test_an_arm_of_a_few_methods_leaves_the_names_of_the_others_alone(tmp_path):
    """As an arm with two inner epochs in another study of the same archive."""
    write_study(
        tmp_path / "main", ["flash", "full", "window", "naive_one_step"], range(3), config={"training": {"n": 1}}
    )
    write_study(tmp_path / "epochs", ["flash", "full"], range(3), config={"training": {"n": 2}})
    study = load_study(tmp_path / "main", tmp_path / "epochs")
    assert set(study.runs["arm"]) == {
        "flash",
        "full",
        "window",
        "naive_one_step",
        "flash training.n=2",
        "full training.n=2",
    }


def test_a_setting_that_older_configurations_lack_is_the_same_as_none(tmp_path):
    write_run(tmp_path / "s" / "old", seed=0)
    write_run(tmp_path / "s" / "new", seed=1, config={"schedule": {"noise": "linear", "max_std": None}})
    assert set(load_study(tmp_path / "s").runs["arm"]) == {"flash"}


def test_two_tables_of_rates_do_not_make_two_arms_and_two_tuned_rates_are_never_averaged(tmp_path):
    for seed, other in enumerate((1e-4, 2e-4)):
        write_run(tmp_path / "s" / str(seed), seed=seed, config=at(1.5e-4, {"flash": 1.5e-4, "full": other}))
    assert set(load_study(tmp_path / "s").runs["arm"]) == {"flash"}
    write_run(tmp_path / "s" / "2", seed=2, config=at(6e-4, {"flash": 6e-4}))
    named = {"flash optim.optimizer.lr=0.00015", "flash optim.optimizer.lr=0.0006"}
    assert set(load_study(tmp_path / "s").runs["arm"]) == named


def test_tuned_runs_at_the_common_rate_count_as_common_ones(tmp_path):
    write_tuned(tmp_path / "s")
    for seed in range(3):
        write_run(tmp_path / "s" / f"c{seed}", seed=seed, method="no_rectification", config=at(1.5e-4))
        write_run(tmp_path / "s" / f"e{seed}", seed=seed, config=at(1.5e-4, training={"n": 2}))
    summaries = run_summaries(load_study(tmp_path / "s"))
    assert arms.common_rate(summaries, SWITCHES) == 1.5e-4
    some = arms.at_rate(summaries, 1.5e-4)
    assert some.groupby("arm")["seed"].apply(list).to_dict() == {arm: [0, 1, 2] for arm in SWITCHES}
    assert not some["run"].str.startswith("e").any()


def test_without_a_rate_that_all_methods_ran_there_is_no_common_rate(tmp_path):
    tuned = run_summaries(load_study(write_tuned(tmp_path / "s")))
    assert np.isnan(arms.common_rate(tuned, SWITCHES))
    assert np.isnan(arms.common_rate(run_summaries(load_study(tmp_path / "none")), SWITCHES))
    unknown = run_summaries(load_study(write_study(tmp_path / "u", seeds=range(2))))
    assert np.isnan(arms.common_rate(unknown, SWITCHES))
    several = pd.concat([tuned.assign(lr=rate, arm=tuned["method"]) for rate in (1e-4, 3e-4)])
    fewer = several[(several["lr"] == 3e-4) | (several["seed"] > 0)]
    assert arms.common_rate(fewer, SWITCHES) == 3e-4


def test_many_runs_made_twice_are_one_note(tmp_path):
    write_study(tmp_path / "a", ["flash", "full"], range(3))
    write_study(tmp_path / "b", ["flash", "full"], range(3))
    study = load_study(tmp_path / "a", tmp_path / "b")
    assert "6 runs repeat an arm and seed of longer runs: left out, a seed counts once." in study.notes
    assert study.runs["finished"].sum() == 6


def test_runs_from_before_a_setting_existed_are_of_the_arm_with_its_default(tmp_path):
    write_study(tmp_path, ["flash"], range(2), config={"rollout": {}})
    write_study(tmp_path, ["flash"], range(2, 4), config={"rollout": {"train_fraction": 1.0}})
    write_study(tmp_path, ["flash"], range(4, 6), config={"rollout": {"train_fraction": 0.5}})
    assert set(load_study(tmp_path).runs["arm"]) == {
        "flash rollout.train_fraction=1.0",
        "flash rollout.train_fraction=0.5",
    }
