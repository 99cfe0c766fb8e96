"""What the README says of the cost of the paper's tables follows from the sweeps and the unit prices."""

import re
from math import prod
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from flash_grpo.records.prices import load_prices
from flash_grpo.run.compose import CONF

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 300  # the paper's held-out prompts
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \+ (\d+) \| ([\d,]+) \| (\d+) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "README.md").read_text())


def test_the_table_has_every_sweep_of_real_models():
    sweeps = {path.stem for path in (ROOT / "sweeps").glob("*.yaml") if "recipe: wan21" in path.read_text()}
    assert {row[0] for row in ROWS} == sweeps


@pytest.mark.parametrize(("sweep", "runs", "gpus", "budget", "evaluation", "total", "hours"), ROWS)
def test_a_sweep_costs_what_its_row_says(sweep, runs, gpus, budget, evaluation, total, hours):
    with initialize_config_dir(CONF, version_base="1.3"):
        chosen = [f"sweeps={sweep}", "prompts.train=x", "prompts.test=y", "run_name=x"]
        cfg = compose("config", overrides=chosen, return_hydra_config=True)
    params = cfg.hydra.sweeper.params
    assert int(runs) == prod(len(str(values).split(",")) for values in params.values())
    profile = yaml.safe_load((ROOT / f"slurm/gpu{gpus}.yaml").read_text())["hydra"]["launcher"]
    assert int(gpus) == profile["nodes"] * profile["gpus_per_node"]
    prices = load_prices()
    model = prices.model("wan21_14b" if "14b" in sweep else "wan21_1p3b")
    steps = cfg.evaluation.sampler.schedule.num_steps
    video = steps * model.velocity + model.decode.seconds + prices.reward(model.reward).seconds
    of_evaluations = (1 + round(1 / cfg.evaluation.every)) * PROMPTS * video / 3600
    assert (int(budget), int(evaluation)) == (cfg.budget.device_hours, round(of_evaluations))
    whole = cfg.budget.device_hours + of_evaluations
    assert int(total.replace(",", "")) == pytest.approx(int(runs) * whole, abs=1)
    assert int(hours) == round(whole / int(gpus))
