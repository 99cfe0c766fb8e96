"""State what a target needs: this is kept, counted and saved, and nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a target of `targets` needs of the rollouts and of the method."""

    where: str
    """Where velocities are trained. transition: at the trained steps, which are stochastic; state: at the trained steps,
    which are deterministic; x_0: at fresh noisings of the finished latents, to the trained steps' sigmas.
    """

    siblings: str = ""
    """What it needs of all siblings: their x_0, their x_next (one Euler step from the state), or nothing."""

    old_velocity: bool = False
    """The velocity, at the same states, of the policy that made the rollouts."""

    ratio: bool = False
    """It has a ratio of new to old policy, which `method.ratio_clip` bounds."""

    restraint: bool = False
    """Unbounded below: it needs `method.ratio_clip` or `method.kl_weight`."""

    def old_velocities(self, off_policy: bool) -> bool:
        """Return True if velocities before the update are needed. off_policy: the rollouts' policy was another one."""
        return self.old_velocity or (self.ratio and off_policy)

    @property
    def stochastic(self) -> bool:
        return self.where == "transition"

    @property
    def x_0(self) -> bool:
        return "x_0" in (self.where, self.siblings)


TRANSITION = Needs(where="transition", ratio=True)
"""What is needed of a stochastic step."""
