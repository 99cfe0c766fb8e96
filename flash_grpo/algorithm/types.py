"""The nouns of the suite.

Shape legend: B rollouts on this rank, T denoising steps, S = T + 1 sigmas, N trained transitions, C F H W latent
channel, frame, height, width (videos: frame, height, width, colour), M D text token and text width.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """The rollouts that one rank makes in one iteration, before they are made.

    `prompt_B` is the group key: the prompt's slot 0..num_prompts-1 in this iteration, over all ranks. `sibling_B` is the
    index in the group. `(iteration, prompt, sibling)` names a rollout everywhere, whatever the number of ranks.
    `optimizer_step_B` tells which optimizer step of each epoch trains on it.
    """

    iteration: int
    num_prompts: int
    group_size: int
    text: tuple[str, ...]
    prompt_B: torch.Tensor
    sibling_B: torch.Tensor
    optimizer_step_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.text)

    def split(self, size: int) -> "list[PromptBatch]":
        """Return the same rollouts in parts of whole groups: as many groups as fit into `size` rollouts, at least one."""
        starts = [row for row in range(len(self)) if not row or self.prompt_B[row] != self.prompt_B[row - 1]]
        parts: list[list[int]] = []
        for first, end in zip(starts, [*starts[1:], len(self)], strict=True):
            if parts and len(parts[-1]) + end - first <= size:
                parts[-1] += range(first, end)
            else:
                parts.append(list(range(first, end)))
        return [self.rows(torch.tensor(rows)) for rows in parts]

    def rows(self, row_B: torch.Tensor) -> "PromptBatch":
        """Return these rollouts alone."""
        return replace(
            self,
            text=tuple(self.text[row] for row in row_B.tolist()),
            prompt_B=self.prompt_B[row_B],
            sibling_B=self.sibling_B[row_B],
            optimizer_step_B=self.optimizer_step_B[row_B],
        )


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """One denoising grid, and the stochastic step of an SDE on it.

    Every SDE of the suite takes the step x_next = x_factor·x + v_factor·dt·v + noise_std·ε with ε ~ N(0, 1). The Euler step
    of the ODE has factors 1, 1 and no noise.
    """

    sigma_S: torch.Tensor
    """Step t goes from `sigma_S[t]` to `sigma_S[t + 1]`; 1 is noise, 0 is data."""

    timestep_T: torch.Tensor
    """What the transformer is given: 1000·σ cut to an integer."""

    dt_T: torch.Tensor
    """σ of the next step minus σ of this one, < 0."""

    x_factor_T: torch.Tensor
    v_factor_T: torch.Tensor
    noise_std_T: torch.Tensor

    def __len__(self) -> int:
        return len(self.dt_T)


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """N trained steps of the rank's rollouts, out of S distinct states: siblings that share their noise so far share one.

    `len` is N.
    """

    rollout_N: torch.Tensor
    """Which of the rank's rollouts."""

    step_N: torch.Tensor
    """Which denoising step, 0..T-1."""

    state_N: torch.Tensor
    """From which state: the row of `x_SCFHW`. All transitions from a state are at one step and of one prompt."""

    x_SCFHW: torch.Tensor
    """Where the steps began."""

    x_next_NCFHW: torch.Tensor
    """Where they ended; [N, 0] where the target does not need it."""

    logp_old_N: torch.Tensor
    """Their log-probability under the policy that made them; 0 for a deterministic step, which has none."""

    def __len__(self) -> int:
        return len(self.step_N)

    @property
    def step_S(self) -> torch.Tensor:
        """Return the step of each state [S]."""
        return self._of_states(self.step_N)

    @property
    def rollout_S(self) -> torch.Tensor:
        """Return a rollout that came through each state [S]; all that did have one prompt."""
        return self._of_states(self.rollout_N)

    def chosen(self, row_N: torch.Tensor) -> "Transitions":
        """Return the transitions in these rows, with the states that they need and no others."""
        state_S, state_N = self.state_N[row_N].unique(return_inverse=True)
        return Transitions(
            rollout_N=self.rollout_N[row_N],
            step_N=self.step_N[row_N],
            state_N=state_N,
            x_SCFHW=self.x_SCFHW[state_S],
            x_next_NCFHW=self.x_next_NCFHW[row_N],
            logp_old_N=self.logp_old_N[row_N],
        )

    def rows_of(self, states: torch.Tensor) -> torch.Tensor:
        """Return the rows that begin at one of these states."""
        wanted_S = torch.zeros(len(self.x_SCFHW), dtype=torch.bool).index_fill_(0, states, True)
        return wanted_S[self.state_N].nonzero().flatten()

    def cpu(self) -> "Transitions":
        return Transitions(**{name: value.cpu() for name, value in vars(self).items()})

    def _of_states(self, value_N: torch.Tensor) -> torch.Tensor:
        return value_N.new_empty(len(self.x_SCFHW)).index_put_((self.state_N,), value_N)


@dataclass(frozen=True, kw_only=True)
class UnitFlops:
    """The FLOPs of each kind of work on one sample, attention included."""

    forward: float
    """Of one transformer forward, adapters included."""

    backward: float
    """Of one transformer backward. With adapters only, frozen weights have no gradient, so it is less than two forwards."""

    recompute: float = 0.0
    """Of what gradient checkpointing computes again in a backward; 0 without it."""

    decode: float = 0.0
    """Of decoding one video."""

    score: float = 0.0
    """Of scoring one video by the networks of the reward, see `protocols.score_flops`."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What one iteration's denoising made on this rank. `condition_BMD` is the text condition the policy was given, on the
    policy's device; videos, transitions and x_0 lie on the CPU. x_0_BCFHW: the latents, [B, 0] where the target does not
    need them.
    """

    batch: PromptBatch
    condition_BMD: torch.Tensor
    video_BFHWC: torch.Tensor
    transitions: Transitions
    x_0_BCFHW: torch.Tensor = torch.empty(0, 0)  # noqa: RUF009 -- never written to; checkpoints of earlier versions lack it


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A reward's verdict on B videos: the trained total and its named parts, each float32 [B], higher is better.

    device_seconds: what it cost on devices that are no rank's own (a reward server's).
    source: what a reward server says of the reward that it serves, "key=value" each; empty of a reward in this process.
    """

    total_B: torch.Tensor
    parts: dict[str, torch.Tensor]
    device_seconds: float = 0.0
    source: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """The surrogate per transition, not yet averaged, and what it says of the update; all but `loss_N` are detached."""

    loss_N: torch.Tensor
    ratio_N: torch.Tensor
    clipped_N: torch.Tensor
    approx_kl_N: torch.Tensor
    base_kl_N: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an iteration's optimizer steps were made of, per trained transition of this rank, and their gradient norms."""

    terms: list[LossTerms]
    weight_N: torch.Tensor
    advantage_N: torch.Tensor
    step_N: torch.Tensor
    gradient_norms: list[float]
    first_ratio_N: torch.Tensor
    expert_norms: tuple[dict[str, float], ...] = ()
    """Of each optimizer step, by the name of the expert; empty where there is one. Earlier checkpoints lack it."""


def joined_trained(parts: list[Trained]) -> Trained:
    return Trained(
        terms=[term for part in parts for term in part.terms],
        weight_N=torch.cat([part.weight_N for part in parts]),
        advantage_N=torch.cat([part.advantage_N for part in parts]),
        step_N=torch.cat([part.step_N for part in parts]),
        gradient_norms=[norm for part in parts for norm in part.gradient_norms],
        first_ratio_N=parts[0].first_ratio_N,
        expert_norms=tuple(norms for part in parts for norms in part.expert_norms),
    )
