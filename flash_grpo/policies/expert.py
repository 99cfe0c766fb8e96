"""Hold one transformer of a policy, with its adapters and what it computed before any training."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from flash_grpo.policies.lora import add_lora, holding, save_lora, start_from, without_lora
from flash_grpo.policies.precision import Precision

# The first is the name that `WanPipeline.load_lora_weights(FOLDER)` looks for; the second goes into transformer_2.
LORA_FILES = {
    "transformer": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}


@dataclass(kw_only=True)
class Expert:
    """A transformer whose velocity is guided.

    prefix: begins the names of its parameters, "" of the only one.
    lora: settings of its adapters, see `lora.add_lora`; None trains every weight. Its init_from is a file of adapters to
    begin with, or of a policy of several one for each by name; its kl_base, "model" or "init_from", says whether these
    belong to the base. trained: False freezes it as it is.
    token_timesteps: give the transformer the timestep once for each token, as Wan2.2-TI2V-5B takes it.
    """

    transformer: WanTransformer3DModel
    precision: Precision
    prefix: str = ""
    lora: Mapping[str, Any] | None = None
    trained: bool = True
    token_timesteps: bool = False

    def __post_init__(self) -> None:
        self._base: WanTransformer3DModel | None = None
        self._first: dict[str, torch.Tensor] = {}
        if not self.trained:
            self.transformer.requires_grad_(False)
        elif self.lora:
            add_lora(self.transformer, prefix=self.prefix, **self.lora)
            if file := _file_of(self.lora.get("init_from"), self.prefix):
                start_from(self.transformer, file, rank=self.lora["rank"], alpha=self.lora["alpha"])

    def velocity(
        self,
        x_BCFHW: torch.Tensor,
        timestep_B: torch.Tensor,
        condition_BMD: torch.Tensor,
        guidance: float,
        negative_1MD: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the velocity, guided at this scale. negative_1MD: condition of the negative prompt, None without guidance."""
        return self._guided(self.transformer, x_BCFHW, timestep_B, condition_BMD, guidance, negative_1MD)

    @torch.no_grad()
    def base_velocity(
        self,
        x_BCFHW: torch.Tensor,
        timestep_B: torch.Tensor,
        condition_BMD: torch.Tensor,
        guidance: float,
        negative_1MD: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what `velocity` returned when `keep_base` was called."""
        inputs = x_BCFHW, timestep_B, condition_BMD, guidance, negative_1MD
        if not (self.trained and self.lora):
            return self._guided(self._base or self.transformer, *inputs)
        as_it_began = holding(self.trainable(), self._first) if self._first else without_lora(self.transformer)
        with as_it_began:
            return self._guided(self.transformer, *inputs)

    def keep_base(self) -> None:
        if self.trained and not self.lora:
            self._base = copy.deepcopy(self.transformer).requires_grad_(False)
        elif self.trained and self.lora and self.lora.get("kl_base") == "init_from":
            self._first = {name: parameter.detach().clone() for name, parameter in self.trainable().items()}

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training changes, by name."""
        named = self.transformer.named_parameters()
        return {f"{self.prefix}{name}": parameter for name, parameter in named if parameter.requires_grad}

    def own(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return those of a policy's parameters that are this expert's, under the transformer's own names."""
        return {
            name.removeprefix(self.prefix): value for name, value in parameters.items() if name.startswith(self.prefix)
        }

    def export(self, folder: Path, name: str, parameters: dict[str, torch.Tensor]) -> None:
        """Write these parameters for WanPipeline: LoRA weights, or a whole transformer under this name."""
        if self.lora:
            settings = {key: self.lora[key] for key in ("rank", "alpha", "targets")}
            save_lora(folder, parameters, file=LORA_FILES[name], **settings)
        else:
            self.transformer.load_state_dict(parameters, strict=False)
            self.transformer.save_pretrained(folder / name)

    def _guided(
        self,
        transformer: WanTransformer3DModel,
        x_BCFHW: torch.Tensor,
        timestep_B: torch.Tensor,
        condition_BMD: torch.Tensor,
        guidance: float,
        negative_1MD: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the velocity with guidance, whose two halves share one forward."""
        timestep = self._of_tokens(x_BCFHW, timestep_B) if self.token_timesteps else timestep_B
        if negative_1MD is None:
            return self.precision.forward(transformer, x_BCFHW, timestep, condition_BMD)
        both = torch.cat([condition_BMD, negative_1MD.expand_as(condition_BMD)])
        twice = x_BCFHW.repeat(2, 1, 1, 1, 1), timestep.repeat(2, *[1] * (timestep.ndim - 1))
        conditional, unconditional = self.precision.forward(transformer, *twice, both).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _of_tokens(self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        """Return the timestep of each token [B, tokens]: in text-to-video all tokens of a latent have the same."""
        sides = zip(x_BCFHW.shape[2:], self.transformer.config.patch_size, strict=True)
        tokens = torch.Size(size // patch for size, patch in sides).numel()
        return timestep_B[:, None].expand(-1, tokens)


def _file_of(init_from: str | Mapping[str, str] | None, prefix: str) -> str | None:
    """Return the file of the adapters that an expert begins with; ValueError where it is not said for which one it is."""
    if isinstance(init_from, str) and prefix:
        raise ValueError(
            f"optim.lora.init_from={init_from}: the model has two transformers; name a file for each, as in "
            "optim.lora.init_from={transformer: FILE, transformer_2: FILE}"
        )
    if init_from is None or isinstance(init_from, str):
        return init_from
    if not prefix or init_from.keys() - LORA_FILES.keys():
        raise ValueError(
            f"optim.lora.init_from: names {', '.join(init_from)}; give a file, or one for each of two transformers"
        )
    return init_from.get(prefix.removesuffix("."))
