"""Compute a transformer's forward in one dtype while its weights are held in the same or in another."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a plan reads the settings of a model without the seconds that this import takes
    from diffusers import WanTransformer3DModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a transformer. held: of its weights. compute: of its forward, by autocast if they differ.

    device_type: "cpu", "cuda" or "meta", for autocast.
    """

    held: torch.dtype
    compute: torch.dtype
    device_type: str

    def forward(
        self,
        transformer: "WanTransformer3DModel",
        x_BCFHW: torch.Tensor,
        timestep: torch.Tensor,
        condition_BMD: torch.Tensor,
    ) -> torch.Tensor:
        """Return the float32 velocity [B, C, F, H, W]. timestep: [B], or [B, tokens] of a model that takes one for each."""
        inputs = x_BCFHW.to(self.held), timestep.to(x_BCFHW.device), condition_BMD.to(self.held)
        with torch.autocast(self.device_type, self.compute) if self.held != self.compute else nullcontext():
            return transformer(*inputs, return_dict=False)[0].float()


def precision_of(dtype: str, device: torch.device, *, frozen: bool) -> Precision:
    """Return the precision of a model that computes in `dtype`; ValueError if the dtype is not supported.

    frozen: whether the transformer's own weights stay as they are. Trained ones are held in float32, so that small steps
    are not lost.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype}: allowed are {', '.join(DTYPES)}")
    return Precision(DTYPES[dtype] if frozen else torch.float32, DTYPES[dtype], device.type)
