"""A study priced for another model: small studies with costs that can be computed by hand, and the report's option."""

import csv
import json
import re
from dataclasses import replace

import pytest
from test_study import write_run

from analysis import curves, report
from analysis.pricing import COST, counts, priced, pricing
from analysis.ranking import changed, cost_table, ranking_table, reward_table, scenarios
from analysis.study import load_study
from flash_grpo.records.prices import ModelPrices, Price, Prices

LAYOUT = {"rollout": {"layout": {"num_prompts": 4, "group_size": 16}}}
ROUND = ModelPrices(  # a velocity takes 2 s, an update 20 s
    name="round",
    words="Round 2B",
    device="NVIDIA H100 80GB HBM3",
    evaluations_per_velocity=2,
    reward="judge",
    forward=Price(seconds=1, source="x"),
    recompute=Price(seconds=1, source="x"),
    backward=Price(seconds=8, source="x"),
    decode=Price(seconds=5, source="x"),
)
PRICES = Prices(models={"round": ROUND}, rewards={"judge": Price(seconds=10, source="reported: x")})


def write_counted(run_dir, forwards, backwards, decodes=None, config=LAYOUT, **options):
    """A run that makes this many forwards, backwards and decodes an iteration; None: as before decodes were counted."""
    write_run(run_dir, config=config, seconds=(0.5, 0.05, 0.2), spread=0.0, **options)
    rows = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
    for row in rows:
        done = row["iteration"]
        row["cost"] |= {"forward_evaluations": done * forwards, "backward_evaluations": done * backwards}
        row["cost"] |= {"pflop": done * (forwards + 2 * backwards) * 1e-3}
        row["cost"] |= {"decodes": done * (decodes or 0), "scored_videos": done * (decodes or 0)}
        if decodes is None:
            row["cost"] = {key: row["cost"][key] for key in ("device_seconds", "pflop", "forward_evaluations")}
            row["cost"]["backward_evaluations"] = done * backwards
    (run_dir / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def _iterations(study, name):
    return study.iterations[study.iterations["run"] == name].sort_values("iteration")


def test_a_priced_study_costs_counts_times_prices(tmp_path):
    write_counted(tmp_path / "s" / "a", forwards=110, backwards=10, decodes=3, iterations=4, every=2)
    study = load_study(tmp_path / "s")
    made = priced(study, pricing(PRICES, "round", study))
    rows = _iterations(made, "a")
    each = 100 * 2 + 10 * 20 + 3 * 5 + 3 * 10
    assert rows["cost.device_seconds"].tolist() == [each * done for done in (1, 2, 3, 4)]
    assert made.evaluations["cost.device_seconds"].tolist() == [0, 2 * each, 4 * each]
    phases = {"seconds.rollout": 200, "seconds.update": 200, "seconds.decode": 15, "seconds.reward": 30}
    for name, seconds in phases.items():
        assert rows[name].tolist() == [seconds] * 4, name
    assert not made.on_cpu
    alone = priced(study, pricing(PRICES, "round", study), ("rollout", "update"))
    assert _iterations(alone, "a")["cost.device_seconds"].iloc[-1] == 4 * 400
    assert study.on_cpu and _iterations(study, "a")["cost.device_seconds"].iloc[-1] == pytest.approx(4 * 0.75)


def test_a_run_with_guidance_makes_two_forwards_a_velocity_and_costs_the_same(tmp_path):
    write_counted(tmp_path / "s" / "a", forwards=110, backwards=10, decodes=3)
    guided = LAYOUT | {"model": {"guidance": 4.5}}
    write_counted(tmp_path / "s" / "b", forwards=220, backwards=20, decodes=3, config=guided)
    study = load_study(tmp_path / "s")
    done = priced(study, pricing(PRICES, "round", study)).evaluations
    first, second = (done[done["run"] == name]["cost.device_seconds"].tolist() for name in "ab")
    assert first == second


def test_a_phase_without_guidance_saves_half_of_its_forwards_at_the_price_of_a_model_with_it(tmp_path):
    """100 velocities of two forwards, and ten states of one forward and one backward."""
    config = {"rollout": LAYOUT["rollout"] | {"guidance": 4.5}, "model": {"guidance": 1}}
    write_counted(tmp_path / "s" / "a", forwards=210, backwards=10, decodes=3, config=config, iterations=2, every=1)
    study = load_study(tmp_path / "s")
    rows = _iterations(priced(study, pricing(PRICES, "round", study)), "a")
    assert rows["cost.device_seconds"].tolist() == [done * (100 * 2 + 10 * 20 / 2 + 3 * 5 + 3 * 10) for done in (1, 2)]


def test_old_records_decode_and_score_every_rollout_once(tmp_path):
    write_counted(tmp_path / "s" / "old", forwards=110, backwards=10)
    study = load_study(tmp_path / "s")
    assert study.evaluations["cost.decodes"].isna().all()
    done = counts(study, study.evaluations)
    assert done["decodes"].tolist() == done["scored"].tolist() == [64 * done for done in (0, 5, 10, 15, 20)]


def test_records_that_cannot_be_counted_are_refused_in_a_line_with_the_run(tmp_path, capsys):
    write_counted(tmp_path / "s" / "old", forwards=110, backwards=10, config={})
    with pytest.raises(SystemExit) as left:
        report.main([str(tmp_path / "s"), "--prices", "wan21_1p3b"])
    assert left.value.code == 2
    assert re.search(
        r"error: --prices: old cannot be priced: .*rollout\.layout", capsys.readouterr().err.splitlines()[-1]
    )


def test_rewards_are_asked_for_or_the_study_s_own_or_the_model_s(tmp_path):
    prices = replace(PRICES, rewards={**PRICES.rewards, "colour": Price(seconds=2, source="reported: x")})
    write_counted(tmp_path / "s" / "a", forwards=110, backwards=10, decodes=3)
    study = load_study(tmp_path / "s")
    assert list(pricing(PRICES, "round", study).rewards) == ["judge"]
    assert list(pricing(prices, "round", study).rewards) == ["colour"]  # one of its parts
    both = pricing(prices, "round", study, ["judge", "colour"])
    assert both.seconds_per_score == 12
    assert "judge (10 s a video, reported) + colour (2 s a video, reported): as asked for" in both.note


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """`flash` makes few velocities but many videos; `full` the other way. With free decodes flash gets further.

    At 60 velocities, 20 updates and 2 videos an iteration, full costs 520 s, with decodes 530 s; flash, at 10 velocities, 2
    updates and 100 videos, 60 s and 560 s.
    """
    path = tmp_path_factory.mktemp("runs") / "s"
    for seed in range(3):
        options = {"seed": seed, "iterations": 20, "every": 1, "gain": 0.6}
        write_counted(path / f"full-{seed}", 80, 20, 2, method="full", **options)
        write_counted(path / f"flash-{seed}", 12, 2, 100, method="flash", **options)
    return path


def test_the_ranking_flips_where_decodes_cost(flipped):
    counted = scenarios(load_study(flipped), PRICES)
    rewards = reward_table(counted)
    ranks = ranking_table(rewards)
    assert list(ranks["Method"]) == ["Full trajectory (Flow-GRPO)", "Flash-GRPO (ITG + TGR)"]
    names = list(ranks.columns[3:])
    assert [name.split(" (")[0] for name in names] == [
        "this study's PFLOP", "2B, transformer", "2B, + decodes", "2B, + rewards",
    ]  # fmt: skip
    assert ranks[names].to_numpy().tolist() == [["2", "2", "1", "1"], ["1", "1", "2", "2"]]
    equal = 20 * 60 / 3600  # flash's last evaluation
    assert names[1] == f"2B, transformer ({equal:.3g} h)"
    full, flash = rewards[names[1]]
    assert flash.value == pytest.approx(1.5 + 0.6)
    assert full.value == pytest.approx(1.5 + 0.6 * (20 * 60 / 520) / 20)
    assert (flash.n, full.n) == (3, 3)
    assert changed(ranks) == "In 2 of 2 rows a rank changes with the prices."
    times = cost_table(counted).iloc[:, 3:].to_numpy()
    assert times[0] == pytest.approx([(80 + 40) / (12 + 4), 520 / 60, 530 / 560, 550 / 1560])
    assert times[1] == pytest.approx([1, 1, 1, 1])


def test_the_report_says_on_everything_with_a_cost_that_it_is_an_estimate(flipped, tmp_path, capsys):
    assert report.main([str(flipped), "--prices", "wan21_14b", "--reward", "pickscore", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    words = "estimated device-hours of Wan2.1 14B on NVIDIA H100, prices from flash_grpo/records/prices.toml"
    titles = dict(re.findall(r'<figure class="\w+" id="(\w+)">\s*<h3>(.*?)</h3>', page))
    priced_ones = {
        "verdicts",
        "comparison",
        "reward_against_estimated_hours",
        "training_against_estimated_hours",
        "cost",
    }
    priced_ones |= {
        "claims",
        "ablation",
        "differences",
        "difference_forest_linear",
        "cost_per_iteration",
        "fig5",
        "runs",
        "frontier",
        "reached",
    }
    assert {name for name, title in titles.items() if words in title} == priced_ones
    assert set(titles) - priced_ones >= {"ranking", "ranking_rewards", "prices", "reward_against_pflop", "stability"}
    assert "estimated" in titles["ranking"]
    assert "pickscore (0.12 s a video, estimated): as asked for" in page
    assert "note: Costs are estimates" in capsys.readouterr().out
    for name in ("ranking", "ranking_rewards", "relative_cost", "prices"):
        assert {file.suffix for file in tmp_path.glob(f"{name}.*")} == {".md", ".csv", ".tex"}
    assert words in (tmp_path / "comparison.tex").read_text().replace(r"\_", "_")
    sources = [row["Source"] for row in csv.DictReader((tmp_path / "prices.csv").open())]
    assert len(sources) == 5 and all(sources)


def test_a_priced_report_stands_beside_the_measured_one(flipped):
    report.main([str(flipped), "--prices", "wan21_1p3b"])
    assert (flipped / "report_wan21_1p3b" / "ranking.csv").is_file()
    assert not (flipped / "report").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prices", "gpt2"], "no prices of the model 'gpt2'.*has wan21_1p3b, wan21_14b"),
        (["--prices", "wan21_14b", "--reward", "taste"], "no prices of the reward 'taste'.*has hpsv3, pickscore"),
        (["--reward", "hpsv3"], "--reward: .*--prices MODEL"),
        (["--prices", "wan21_14b", "--cost", "pflop"], "--cost: --prices has an axis of its own"),
    ],
)
def test_what_cannot_be_priced_is_refused_in_one_line(flipped, capsys, options, message):
    with pytest.raises(SystemExit) as left:
        report.main([str(flipped), *options])
    assert left.value.code == 2
    assert re.search(f"error: .*{message}", capsys.readouterr().err.splitlines()[-1])


def test_estimated_hours_are_no_axis_of_a_measured_report(flipped, capsys):
    with pytest.raises(SystemExit):
        report.main([str(flipped), "--cost", COST])
    assert "invalid choice" in capsys.readouterr().err
    assert curves.cost_unit(COST, on_cpu=True) == "estimated device-h"
