"""Load the parts of a Wan pipeline from its folder, or make them with random weights."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from flash_grpo.policies.precision import Precision
from flash_grpo.policies.source import Wanted, index_of, pipeline_folder
from flash_grpo.policies.text import RandomConditions, TextConditions
from flash_grpo.policies.vae import WanVideoDecoder
from flash_grpo.policies.weights import variant_of

Transformers = dict[str, WanTransformer3DModel]  # by name, high noise first


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Load or make the transformers, the decoder and the text conditions of one policy.

    names: of the transformers. wanted: of the pipeline's folder. device: of decoder and conditions, and of random
    transformers; loaded ones stay on the CPU. precision: of the transformers; the text encoder is held in its compute dtype.
    max_text_tokens: M of the conditions. tiling, slicing: of the decoder, see `vae`.
    """

    names: tuple[str, ...]
    wanted: Wanted
    device: torch.device
    precision: Precision
    max_text_tokens: int
    tiling: bool
    slicing: bool

    def random(
        self, architecture: Mapping[str, Any], vae: Mapping[str, Any]
    ) -> tuple[Transformers, WanVideoDecoder, RandomConditions]:
        """Make all parts without reading a file. architecture, vae: arguments of WanTransformer3DModel, AutoencoderKLWan."""
        made = {name: random_transformer(architecture, self.precision.held, self.device) for name in self.names}
        with torch.device(self.device):
            decoder = WanVideoDecoder(random_vae(vae), self.tiling, self.slicing)
        width = made[self.names[0]].config.text_dim
        return made, decoder, RandomConditions(self.max_text_tokens, width, self.device, self.precision.compute)

    def pretrained(
        self, path: str, revision: str | None, embedding_cache: str | None
    ) -> tuple[Transformers, Any, TextConditions]:
        """Load all parts from a pipeline's folder, see `source`; ValueError in one line if it is not what is wanted."""
        folder = pipeline_folder(path, revision, self.wanted)
        parts = {name: self.names[0] if self.wanted.split else name for name in self.names}
        loaded = {
            name: _loaded(WanTransformer3DModel, folder, part, self.precision.held) for name, part in parts.items()
        }
        conditions = TextConditions(folder, self.max_text_tokens, self.device, self.precision.compute, embedding_cache)
        return loaded, self._decoder(folder), conditions

    def _decoder(self, folder: Path) -> Any:
        """Load the decoder, of the class that the pipeline's index names, which is one of `source.CLASSES`."""
        module, name = index_of(folder)["vae"]
        vae = _loaded(getattr(importlib.import_module(module), name), folder, "vae", torch.float32).to(self.device)
        return WanVideoDecoder(vae, self.tiling, self.slicing) if isinstance(vae, AutoencoderKLWan) else vae


def random_transformer(
    architecture: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> WanTransformer3DModel:
    """Make a transformer as torch initialises it, in the dtypes that a loaded one has.

    architecture: WanTransformer3DModel's arguments. The weights are always the same.
    """
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(**architecture)
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def random_vae(arguments: Mapping[str, Any]) -> AutoencoderKLWan:
    """Make a decoder of AutoencoderKLWan's arguments; one of another width than Wan2.1's has latents of mean 0 and std 1."""
    channels = arguments.get("z_dim")
    scaled = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels} if channels else {}
    return AutoencoderKLWan(**scaled, **arguments)


def _loaded(kind: type, folder: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        return kind.from_pretrained(folder, subfolder=part, dtype=dtype, variant=variant_of(folder, part))
    except OSError as error:
        raise ValueError(f"{folder}: its {part} cannot be loaded ({' '.join(str(error).split())})") from error
