"""`python -m flash_grpo.mechanism study=NAME`: why the methods differ, measured without training, on the tiny world.

gradient_norm   the policy gradient's norm when only step t is stochastic, before and after rectification, against λ.
variance_share  first-order share of the within-group reward variance that the step, the initial noise and the SDE noise
                explain: correlation of two rollouts that have that source in common and draw the others anew.
alignment       cosine of one iteration's ascent direction with the exact gradient of the expected evaluation reward,
                which the tiny world's differentiable reward and decoder allow to compute through the whole ODE.

Writes `mechanism.json` into the study; `python -m analysis.report` draws it. `measure.*` says how much is measured.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from flash_grpo import cli
from flash_grpo.algorithm import keyed
from flash_grpo.run import compose

log = logging.getLogger(__name__)
SOURCES = ("step", "initial_noise", "sde_noise")


def measure(cfg: DictConfig) -> None:
    from flash_grpo.records.files import write_atomically
    from flash_grpo.run.build import device, prepare_trainer
    from flash_grpo.training.ranks import Ranks

    ranks, found = Ranks(device(cfg)), []
    for noise in cfg.measure.noises:
        trainer = prepare_trainer(OmegaConf.merge(cfg, {"schedule": {"noise": noise}}), ranks)
        bench = Workbench(trainer=trainer, noise=noise, cfg=cfg)
        for quantity in cfg.measure.quantities:
            found += getattr(bench, quantity)()
    path = Path(cfg.runs_root) / cfg.study / "mechanism.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"kind": "mechanism", "measurements": found}, indent=0) + "\n")
    print(digest(found))
    print(f"measurements      {path}")


@dataclass(kw_only=True)
class Workbench:
    """A trainer whose weights never change, and one method per quantity that it measures under one SDE noise."""

    trainer: Any
    noise: str
    cfg: DictConfig

    def gradient_norm(self) -> list[dict[str, Any]]:
        """Every repeat uses the same prompts and initial noise at all steps, so that only the step differs."""
        from flash_grpo.algorithm.plans import OneStep
        from flash_grpo.algorithm.sde import rectification_factor
        from flash_grpo.algorithm.weighting import inverse_lambda, uniform

        lambda_T = rectification_factor(self.trainer.schedule)
        weight_TW = {"uniform": uniform(self.trainer.schedule), "inverse_lambda": inverse_lambda(self.trainer.schedule)}
        found = []
        for repeat in self._repeats("gradient_norm"):
            for step in range(len(lambda_T) - 1):
                method = replace(self.trainer.method, plan=OneStep(first_step=step, last_step=step))
                rollouts, advantage_PG = self._rollouts(method, 1 + repeat)
                for weighting, weight_T in weight_TW.items():
                    gradient = self._ascent(rollouts, advantage_PG, weight_T / weight_T[:10].mean())
                    found.append(
                        {
                            "quantity": "gradient_norm",
                            "noise": self.noise,
                            "step": step,
                            "lambda": float(lambda_T[step]),
                            "weighting": weighting,
                            "value": float(gradient.norm()),
                            "repeat": repeat,
                        }
                    )
        return found

    def variance_share(self) -> list[dict[str, Any]]:
        """Pick-freeze: source shared, others redrawn. One value per repeat and source, over all groups of an iteration."""
        found = []
        for repeat in self._repeats("variance_share"):
            first_PG = self._rewards(1 + repeat, dict.fromkeys(SOURCES, 0))
            for index, source in enumerate(SOURCES):
                seeds = {other: 0 if other == source else 1 + index for other in SOURCES}
                second_PG = self._rewards(1 + repeat, seeds)
                value = float(_within(first_PG).mul(_within(second_PG)).mean())
                scale = float(_within(first_PG).square().mean() + _within(second_PG).square().mean()) / 2
                found.append(
                    {
                        "quantity": "variance_share",
                        "noise": self.noise,
                        "source": source,
                        "value": value / scale,
                        "repeat": repeat,
                    }
                )
        return found

    def alignment(self) -> list[dict[str, Any]]:
        """Every method on the same iterations; device-seconds are those of its rollout, reward and gradient."""
        exact, found = self._exact_gradient(), []
        for name, method in self._methods():
            for repeat in self._repeats("alignment", name):
                start = time.process_time()
                rollouts, advantage_PG = self._rollouts(method, 1 + repeat)
                weight_T = method.weigh(self.trainer.schedule)
                gradient = self._ascent(rollouts, advantage_PG, weight_T)
                found.append(
                    {
                        "quantity": "alignment",
                        "method": name,
                        "noise": self.noise,
                        "value": float(torch.cosine_similarity(gradient, exact, dim=0)),
                        "device_seconds": time.process_time() - start,
                        "repeat": repeat,
                    }
                )
        return found

    def _repeats(self, quantity: str, name: str = "") -> Iterable[int]:
        return tqdm(range(self.cfg.measure.repeats[quantity]), desc=f"{quantity} {self.noise} {name}", disable=None)

    def _methods(self) -> Iterator[tuple[str, Any]]:
        """The methods of the ablation sweep, by their Hydra names."""
        from flash_grpo.run.build import build

        for ablation in self.cfg.measure.ablations:
            method = build(compose.composed([f"ablations={ablation}"]).method, "method")
            yield method.name, method

    def _batch(self, iteration: int) -> Any:
        trainer = self.trainer
        text_P = trainer.prompts.drawn(iteration, trainer.layout.num_prompts, trainer.seed)
        return trainer.layout.batch(iteration, text_P, rank=0)

    def _rollouts(self, method: Any, iteration: int) -> tuple[Any, torch.Tensor]:
        trainer = self.trainer
        trainer.method = method
        rollouts = trainer.rollout(self._batch(iteration))
        scores = trainer.reward(rollouts.video_BFHWC, rollouts.batch.text)
        return rollouts, method.advantage(trainer.over_ranks(rollouts.batch, scores.total_B))

    def _ascent(self, rollouts: Any, advantage_PG: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
        """Minus the gradient of the loss, flat; nothing is stepped."""
        taken, batch, policy = rollouts.transitions, rollouts.batch, self.trainer.policy
        advantage_N = advantage_PG[batch.prompt_B[taken.rollout_N], batch.sibling_B[taken.rollout_N]]
        share = self.trainer.backward(taken, rollouts.condition_BMD, advantage_N, weight_T[taken.step_N], len(taken))
        for _ in share:
            pass
        return -_taken_gradient(policy)

    def _rewards(self, iteration: int, seeds: dict[str, int]) -> torch.Tensor:
        """Rewards [P, G] of independent one-step rollouts, each source of randomness drawn from a seed of its own."""
        from flash_grpo.algorithm.denoise import initial_noise, sde_noise
        from flash_grpo.algorithm.plans import OneStep

        trainer, batch = self.trainer, self._batch(iteration)
        shape = trainer.policy.latent_shape
        rollouts = trainer.rollout_from(
            batch,
            mask_BT=OneStep(first_step=0, last_step=9, shared_by="rollout")(
                batch, len(trainer.schedule), seeds["step"]
            ),
            noise_BCFHW=initial_noise(batch, shape, seeds["initial_noise"], "independent"),
            draw=sde_noise(batch, shape, seeds["sde_noise"]),
        )
        return trainer.over_ranks(batch, trainer.reward(rollouts.video_BFHWC, batch.text).total_B)

    def _exact_gradient(self) -> torch.Tensor:
        """The gradient of the mean reward over all prompts through the ODE, from `measure.exact_noises` noises each."""
        trainer = self.trainer
        texts, policy = trainer.prompts.test, trainer.policy
        count = self.cfg.measure.exact_noises
        for index in tqdm(range(count), desc=f"exact gradient {self.noise}", disable=None):
            noise = torch.stack([keyed.normal(policy.latent_shape, trainer.seed, "exact", t, index) for t in texts])
            reward_B = self._differentiable_reward(noise, texts)
            (reward_B.mean() / count).backward()
        return _taken_gradient(policy)

    def _differentiable_reward(self, x: torch.Tensor, texts: tuple[str, ...]) -> torch.Tensor:
        from flash_grpo.algorithm.sde import ode_step

        trainer, condition = self.trainer, self.trainer.policy.encode(texts)
        for step, timestep in enumerate(trainer.schedule.timestep_T):
            x = ode_step(x, trainer.policy.velocity(x, timestep.expand(len(x)), condition), trainer.schedule.dt_T[step])
        return trainer.reward.score(trainer.policy.codec.decode(x).clamp(0, 1), texts)["total"]


def digest(found: list[dict[str, Any]]) -> str:
    """What the measurements say, in a few lines."""
    lines = []
    for noise in dict.fromkeys(one["noise"] for one in found):
        of_noise = [one for one in found if one["noise"] == noise]
        lines += [line for digested in (_norms, _shares, _cosines) for line in digested(of_noise, noise)]
    return "\n".join(lines)


def _norms(found: list[dict[str, Any]], noise: str) -> Iterator[str]:
    norms = [one for one in found if one["quantity"] == "gradient_norm"]
    if not norms:
        return
    lambdas = {one["step"]: one["lambda"] for one in norms}
    mean = {
        weighting: torch.tensor([_mean(norms, step=step, weighting=weighting) for step in lambdas])
        for weighting in ("uniform", "inverse_lambda")
    }
    points = torch.stack([mean["uniform"].log(), torch.tensor(list(lambdas.values())).log()])
    spread = {
        weighting: float(values[:10].std(correction=0) / values[:10].mean()) for weighting, values in mean.items()
    }
    correlation = float(torch.corrcoef(points)[0, 1])
    yield f"{noise:6s} gradient norm against λ: log-log correlation {correlation:.3f} over {len(lambdas)} steps"
    yield (
        f"{noise:6s} coefficient of variation over steps 0-9: {spread['uniform']:.3f}, "
        f"rectified {spread['inverse_lambda']:.3f}"
    )


def _shares(found: list[dict[str, Any]], noise: str) -> Iterator[str]:
    for source in SOURCES:
        values = [one["value"] for one in found if one["quantity"] == "variance_share" and one["source"] == source]
        if values:
            yield f"{noise:6s} within-group reward variance explained by the {source}: {_estimate(values)}"


def _cosines(found: list[dict[str, Any]], noise: str) -> Iterator[str]:
    cosines = [one for one in found if one["quantity"] == "alignment"]
    for method in dict.fromkeys(one["method"] for one in cosines):
        values = [one["value"] for one in cosines if one["method"] == method]
        yield f"{noise:6s} alignment of {method}: {_estimate(values)}"


def _estimate(values: list[float]) -> str:
    value_M = torch.tensor(values)
    return f"{value_M.mean():.4f} ± {1.96 * value_M.std() / len(values) ** 0.5:.4f} (95 %, n = {len(values)})"


def _mean(found: list[dict[str, Any]], **where: Any) -> float:
    values = [one["value"] for one in found if all(one[key] == value for key, value in where.items())]
    return sum(values) / len(values)


def _within(reward_PG: torch.Tensor) -> torch.Tensor:
    return reward_PG - reward_PG.mean(1, keepdim=True)


def _taken_gradient(policy: Any) -> torch.Tensor:
    """The accumulated gradient, flat, and zero again behind it."""
    parameters = list(policy.trainable().values())
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return flat


main = cli.command(measure)

if __name__ == "__main__":
    main()
