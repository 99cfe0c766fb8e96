"""Price a study for another model: its counts times the unit prices of `flash_grpo/records/prices.toml`.

A priced study is a study whose device-seconds are estimates for that model; every table and figure draws it like any other.
Work is priced as this study counted it, video by video: its steps, its batch and its shared states, not those of the model's
own recipe. Only guidance, recomputation and the size of a video are the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.study import Study
from flash_grpo.records.prices import SHOWN, WORK, ModelPrices, Price, Prices

PHASES = ("rollout", "update", "decode", "reward")
TRANSFORMER = ("rollout", "update")
COST = "estimated_hours"  # a key of `curves.COSTS`


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """The prices of a model, and of the rewards that score each video. chosen: why these rewards."""

    model: ModelPrices
    rewards: dict[str, Price]
    chosen: str

    @property
    def title(self) -> str:
        """Return the words that every title of an estimate has."""
        return f"estimated device-hours of {self.model.words} on {self.device}, prices from {SHOWN}"

    @property
    def device(self) -> str:
        return " ".join(self.model.device.split()[:2])  # NVIDIA H100

    @property
    def seconds_per_score(self) -> float:
        return sum(price.seconds for price in self.rewards.values())

    @property
    def note(self) -> str:
        """Return what a reader must know about the estimate, for the head of the page."""
        rewards = " + ".join(
            f"{name} ({price.seconds:.3g} s a video, {price.known})" for name, price in self.rewards.items()
        )
        return (
            f"Costs are estimates, not measurements: this study's counts × the unit prices of {self.model.words} on "
            f"{self.device} ({SHOWN}). A velocity takes {self.model.velocity:.3g} s, an update of one state "
            f"{self.model.update:.3g} s (guided, with gradient checkpointing, AdamW included), a decode "
            f"{self.model.decode.seconds:.3g} s. Every video is scored by {rewards}: {self.chosen}. Steps, batch and "
            "shared states are as this study counted them, priced per video; text encoding, saving, communication and idle "
            "devices are not in it."
        )


def pricing(prices: Prices, model: str, study: Study, rewards: Sequence[str] = ()) -> Pricing:
    """Return a model's prices and its rewards'.

    rewards: names; by default the study's own if they are networks with a price, else the model's usual one. ValueError for
    a model or reward without prices.
    """
    chosen, why = list(rewards), "as asked for"
    if not chosen:
        chosen = [name for name in prices.rewards if f"reward_parts.{name}" in study.evaluations]
        why = "the study's own reward"
    if not chosen:
        chosen = [prices.model(model).reward]
        why = f"the usual reward of {prices.model(model).words}, since the study's own is not a network with a price"
    return Pricing(model=prices.model(model), rewards={name: prices.reward(name) for name in chosen}, chosen=why)


def priced(study: Study, by: Pricing, phases: Sequence[str] = PHASES) -> Study:
    """Return the study with estimated device-seconds; ValueError if records lack the counts.

    phases: those that are in the cost. In the frames, `cost.device_seconds` and `cost.*_seconds` are cumulative, `seconds.*`
    of one iteration.
    """
    priced_runs = study.runs.assign(on_cpu=False)
    iterations = _priced(study, study.iterations, by, phases)
    per_run = iterations.groupby("run", sort=False)
    each = {
        f"seconds.{phase}": (cumulative := iterations[f"cost.{phase}_seconds"])
        - per_run[cumulative.name].shift(fill_value=0.0)
        for phase in phases
    }
    wall = [name for name in iterations if name.startswith("seconds.")]
    return replace(
        study,
        runs=priced_runs,
        iterations=iterations.drop(columns=wall).assign(**each),
        evaluations=_priced(study, study.evaluations, by, phases),
    )


def _priced(study: Study, frame: pd.DataFrame, by: Pricing, phases: Sequence[str]) -> pd.DataFrame:
    done = counts(study, frame)
    seconds = {
        "rollout": done["velocities"] * by.model.velocity,
        "update": done["states"] * by.model.update,
        "decode": done["decodes"] * by.model.decode.seconds,
        "reward": done["scored"] * by.seconds_per_score,
    }
    return frame.assign(
        **{f"cost.{phase}_seconds": seconds[phase] if phase in phases else 0.0 for phase in PHASES},
        **{"cost.device_seconds": sum(seconds[phase] for phase in phases)},
    )


def counts(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each record the cumulative velocities without gradient, states updated, videos decoded and videos scored.

    A run's own guidance is divided out. Velocities include those of a KL to the base. Records from before `Cost` had
    `decodes` have none: every rollout is decoded and scored once, so they are iterations × prompts × group size. ValueError
    if a run has neither.
    """
    configs = study.runs.set_index("run")["config"]
    forwards, backwards = frame["cost.forward_evaluations"], frame["cost.backward_evaluations"]
    evaluations = frame["run"].map(configs.map(_evaluations_per_velocity))
    videos = frame["iteration"] * frame["run"].map(configs.map(_videos_per_iteration)).astype(float)
    done = pd.DataFrame(
        {
            "velocities": (forwards - backwards) / evaluations,
            "states": backwards / evaluations,
            "decodes": frame["cost.decodes"].fillna(videos),
            "scored": frame["cost.scored_videos"].fillna(videos),
        }
    )
    if lacking := sorted(set(frame.loc[done.isna().any(axis=1), "run"])):
        raise ValueError(
            f"--prices: {', '.join(lacking[:3])}{' …' * (len(lacking) > 3)} cannot be priced: the records lack counts "
            "(cost.forward_evaluations, cost.decodes) and run.json lacks rollout.layout to derive them"
        )
    return done


def _evaluations_per_velocity(config: dict) -> int:
    """Return the forwards of one velocity in this run: 2 with classifier-free guidance in rollouts, in training or in both.

    A phase that differs from the other saves half of its forwards on a model whose price is one with guidance, too.
    """
    models = config.get("model", {}).get("guidance", 1)
    phases = [(config.get(phase) or {}).get("guidance") for phase in ("rollout", "training")]
    return 2 if any((models if own is None else own) != 1 for own in phases) else 1


def _videos_per_iteration(config: dict) -> float:
    layout = config.get("rollout", {}).get("layout", {})
    return layout.get("num_prompts", np.nan) * layout.get("group_size", np.nan)


def price_table(by: Pricing) -> pd.DataFrame:
    """Return the unit prices that were used, with their sources."""
    work = {f"{name} of the transformer": getattr(by.model, name) for name in WORK[:-1]}
    work |= {"decode of one video": by.model.decode}
    work |= {f"{name}, one video": price for name, price in by.rewards.items()}
    return pd.DataFrame(
        [{"Work": name, "Seconds": price.seconds, "Source": price.source} for name, price in work.items()]
    )
