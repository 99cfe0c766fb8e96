"""Bring together what an update trains: the steps of this rank's rollouts, with what their target needs besides."""

from dataclasses import dataclass, replace

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.advantage import largest
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.needs import Needs
from flash_grpo.algorithm.noise import Key, noise_keys
from flash_grpo.algorithm.transitions import all_of
from flash_grpo.algorithm.types import FlowSchedule, PromptBatch, Rollouts, Transitions
from flash_grpo.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Steps:
    """N trained steps of this rank's rollouts, on the CPU. Of a target that is trained at x_0, x is x_0 here."""

    taken: Transitions
    advantage_N: torch.Tensor
    prompt_N: torch.Tensor
    key_N: tuple[Key, ...]
    """Of the noise with which x_0 is noised."""

    trained_N: torch.Tensor
    """bool: False where the loss has no gradient, because advantages are 0 (the release drops them), and for rollouts that are
    not among those to be trained, see `rollout.train_fraction`.
    """

    advantage_PG: torch.Tensor
    groups: dict[int, torch.Tensor]
    """x_0 or x_next of all siblings [G, C, F, H, W], by prompt; empty where the target does not need them."""

    old_NCFHW: torch.Tensor | None = None
    """Velocities of the policy that made the rollouts; None where it is the present one."""

    def __len__(self) -> int:
        return len(self.taken)

    def chosen(self, row_N: torch.Tensor) -> "Steps":
        """Return these rows alone."""
        return replace(
            self,
            taken=self.taken.chosen(row_N),
            advantage_N=self.advantage_N[row_N],
            prompt_N=self.prompt_N[row_N],
            key_N=tuple(self.key_N[row] for row in row_N.tolist()),
            trained_N=self.trained_N[row_N],
            old_NCFHW=None if self.old_NCFHW is None else self.old_NCFHW[row_N],
        )

    def siblings(self) -> torch.Tensor | None:
        """Return what each row needs of its siblings [N, G, C, F, H, W]."""
        return torch.stack([self.groups[prompt] for prompt in self.prompt_N.tolist()]) if self.groups else None

    def noised(self, schedule: FlowSchedule) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_0 noised to each step's sigma, (1 - σ)·x_0 + σ·ε, and the velocity ε - x_0 through it [N, C, F, H, W]."""
        x_0 = self.taken.x_SCFHW
        noise = keyed.normals(tuple(x_0.shape[1:]), self.key_N).to(x_0)
        sigma_N = schedule.sigma_S[self.taken.step_N].to(x_0).reshape(-1, 1, 1, 1, 1)
        return (1 - sigma_N) * x_0 + sigma_N * noise, noise - x_0


def trained_steps(
    method: Method,
    rollouts: Rollouts,
    advantage_PG: torch.Tensor,
    num_steps: int,
    seed: int,
    ranks: Ranks,
    fraction: float = 1.0,
) -> Steps:
    """Return the steps that the method trains. Collective where the target needs siblings, which may lie on other ranks.

    fraction: of each group's rollouts, those with the largest |advantage|; the others cost a rollout and no update.
    """
    needs, batch, taken = method.needs, rollouts.batch, rollouts.transitions
    if needs.where == "x_0":
        taken = all_of(method.plan(batch, num_steps, seed), rollouts.x_0_BCFHW)
    prompt_N, sde_B = batch.prompt_B[taken.rollout_N], noise_keys(batch, seed, method.initial_noise).sde_B
    advantage_N = advantage_PG[batch.prompt_B, batch.sibling_B][taken.rollout_N]
    rows = zip(taken.rollout_N.tolist(), taken.step_N.tolist(), strict=True)
    return Steps(
        taken=taken,
        advantage_N=advantage_N,
        prompt_N=prompt_N,
        key_N=tuple((*sde_B[rollout], step) for rollout, step in rows),
        trained_N=trained_PG(needs, advantage_PG, fraction)[batch.prompt_B, batch.sibling_B][taken.rollout_N],
        advantage_PG=advantage_PG,
        groups=_groups(needs.siblings, rollouts, ranks),
    )


def trained_PG(needs: Needs, advantage_PG: torch.Tensor, fraction: float = 1.0) -> torch.Tensor:
    """Return which rollouts are trained, bool [P, G]."""
    if needs.siblings:
        return (advantage_PG != 0).any(1, keepdim=True).expand_as(advantage_PG)
    return (advantage_PG != 0) & largest(advantage_PG, fraction)


def _groups(of: str, rollouts: Rollouts, ranks: Ranks) -> dict[int, torch.Tensor]:
    """Return x_0 or x_next of all siblings of each prompt that has rollouts here.

    Prompt by prompt, so that a rank holds whole groups of its own prompts only. Sums with zeros are exact, so a group is the
    same however it lies on ranks.
    """
    if not of:
        return {}
    batch, taken, groups = rollouts.batch, rollouts.transitions, dict[int, torch.Tensor]()
    value_B = rollouts.x_0_BCFHW if of == "x_0" else taken.x_next_NCFHW[taken.rollout_N.argsort()]
    for prompt in range(batch.num_prompts):
        group = ranks.sum(_own_of_group(value_B, batch, prompt))
        if (batch.prompt_B == prompt).any():
            groups[prompt] = group
    return groups


def _own_of_group(value_B: torch.Tensor, batch: PromptBatch, prompt: int) -> torch.Tensor:
    """Return the values of the prompt's siblings [G, ...]: zeros for those that other ranks have."""
    mine_B = batch.prompt_B == prompt
    group = value_B.new_zeros(batch.group_size, *value_B.shape[1:])
    group[batch.sibling_B[mine_B]] = value_B[mine_B]
    return group
