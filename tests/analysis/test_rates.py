"""The rule by which learning rates are chosen, on rewards made by hand."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_study import write_run

from analysis.rates import chosen, finals, main, table
from analysis.study import load_study

ROOT = Path(__file__).resolve().parents[2]


def test_the_largest_mean_is_taken_where_the_others_are_clearly_worse():
    rewards = pd.DataFrame({1e-4: [1.0, 1.1, 1.2], 2e-4: [2.0, 2.1, 2.2], 4e-4: [1.5, 1.6, 1.7]})
    assert chosen(rewards) == (2e-4, "")


def test_a_smaller_rate_within_one_standard_error_of_the_best_is_taken_instead():
    rewards = pd.DataFrame({1e-4: [1.0, 1.0, 1.0], 2e-4: [2.0, 2.4, 2.0], 4e-4: [2.6, 1.9, 2.2], 8e-4: [1.0, 1.0, 1.0]})
    behind = (rewards[4e-4] - rewards[2e-4]).mean()
    assert 0 < behind < (rewards[4e-4] - rewards[2e-4]).std(ddof=1) / 3**0.5
    assert chosen(rewards) == (2e-4, "")


def test_differences_are_paired_over_seeds_not_compared_by_the_spread_of_all():
    rewards = pd.DataFrame({1e-4: [1.0, 2.0, 3.0], 2e-4: [1.1, 2.1, 3.1], 4e-4: [0.0, 0.0, 0.0]})
    assert chosen(rewards) == (2e-4, "")


@pytest.mark.parametrize(("best", "said"), [(1e-4, "smaller"), (4e-4, "larger")])
def test_a_best_rate_at_the_end_of_the_grid_asks_for_the_next(best, said):
    rewards = pd.DataFrame({rate: [2.0 if rate == best else 1.0] * 2 for rate in (1e-4, 2e-4, 4e-4)})
    assert chosen(rewards)[0] == best
    assert said in chosen(rewards)[1]


def test_the_table_reads_rates_and_final_rewards_from_a_study(tmp_path, capsys):
    gains = {1e-4: 0.1, 2e-4: 0.6, 4e-4: 0.3}
    for rate, gain in gains.items():
        for seed in (100, 101):
            config = {"optim": {"optimizer": {"lr": rate}}}
            write_run(tmp_path / "lr" / f"flash-{rate}-{seed}", seed=seed, gain=gain, spread=0, config=config)
    study = load_study(tmp_path / "lr")
    assert sorted(finals(study)["reward"]) == pytest.approx([1.6, 1.6, 1.8, 1.8, 2.1, 2.1])
    [row] = table(study).to_dict("records")
    assert (row["Method"], row["n"], row["0.0002"], row["Rate"], row["Missing"]) == ("flash", 2, "2.100", "0.0002", "")
    main([str(tmp_path / "lr")])
    assert "2.100" in capsys.readouterr().out


RATES = ROOT / "analysis/fixtures/rates"
SCENES = RATES / "lr_scenes.tar.xz"


@pytest.mark.parametrize("archive", sorted({*RATES.glob("*.tar.xz")} - {SCENES}), ids=lambda path: path.name)
def test_the_tiny_world_s_rates_are_those_that_the_rule_takes_from_the_committed_sweep(archive):
    configured = yaml.safe_load((ROOT / "flash_grpo/conf/optim/tiny.yaml").read_text())["lr_of"]
    configured["constant"] = configured["linear"]  # as the file says
    few = 2 if archive.name == "lr_presets.tar.xz" else 4
    for row in table(load_study(archive)).to_dict("records"):
        assert row["n"] == (4 if row["Method"] == "longcat" and row["SDE noise"] == "linear" else few)
        assert row["Missing"] == ""
        assert configured[row["SDE noise"]][row["Method"]] == float(row["Rate"])


def test_the_scenes_world_s_rates_are_those_that_the_rule_takes_but_for_flash():
    configured = yaml.safe_load((ROOT / "flash_grpo/conf/recipe/scenes.yaml").read_text())["optim"]["lr_of"]["linear"]
    taken = {row["Method"]: float(row["Rate"]) for row in table(load_study(SCENES)).to_dict("records")}
    assert taken == configured | {"flash": 3e-4}  # which collapses with the whole budget, see analysis/LOG.md
