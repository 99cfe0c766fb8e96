"""Load the parts of a Wan pipeline from its folder, or make them with random weights."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from flash_grpo.policies.precision import Precision
from flash_grpo.policies.source import INDEX, index_of, pipeline_folder
from flash_grpo.policies.text import RandomConditions, TextConditions
from flash_grpo.policies.vae import WanVideoDecoder

# What a pipeline's index may name for the parts that are loaded. The decoder's class is the only one that is looked up.
CLASSES = {
    "transformer": (("diffusers", "WanTransformer3DModel"),),
    "vae": (("diffusers", "AutoencoderKLWan"), ("flash_grpo.tiny_world.codec", "LinearVideoCodec")),
    "text_encoder": (("transformers", "UMT5EncoderModel"),),
}


@dataclass(frozen=True)
class Loader:
    """Load or make the transformer, the decoder and the text conditions of one policy.

    device: of decoder and conditions, and of a random transformer; a loaded transformer stays on the CPU. precision: of the
    transformer; the text encoder is held in its compute dtype. max_text_tokens: M of the conditions. tiling, slicing: of
    the decoder, see `vae`.
    """

    device: torch.device
    precision: Precision
    max_text_tokens: int
    tiling: bool
    slicing: bool

    def load(
        self,
        weights: str,
        path: str,
        revision: str | None,
        architecture: Mapping[str, Any] | None,
        embedding_cache: str | None,
    ) -> tuple[WanTransformer3DModel, Any, TextConditions | RandomConditions]:
        """Return transformer, decoder and text conditions; for the arguments see `WanPolicy`."""
        if weights == "random":
            return self.random(architecture or {})
        return self.pretrained(path, revision, embedding_cache)

    def random(
        self, architecture: Mapping[str, Any]
    ) -> tuple[WanTransformer3DModel, WanVideoDecoder, RandomConditions]:
        """Make all parts without reading a file. architecture: WanTransformer3DModel's arguments."""
        transformer = random_transformer(architecture, self.precision.held, self.device)
        with torch.device(self.device):
            vae = AutoencoderKLWan()
        width = transformer.config.text_dim
        conditions = RandomConditions(self.max_text_tokens, width, self.device, self.precision.compute)
        return transformer, WanVideoDecoder(vae, self.tiling, self.slicing), conditions

    def pretrained(
        self, path: str, revision: str | None, embedding_cache: str | None
    ) -> tuple[WanTransformer3DModel, Any, TextConditions]:
        """Load all parts from a pipeline's folder, see `source`; ValueError if it is Wan2.2's or a part is unreadable."""
        folder = pipeline_folder(path, revision)
        _refuse_two_experts(folder, path)
        _refuse_other_classes(folder, path)
        transformer = _loaded(WanTransformer3DModel, folder, "transformer", self.precision.held)
        conditions = TextConditions(folder, self.max_text_tokens, self.device, self.precision.compute, embedding_cache)
        return transformer, self._decoder(folder), conditions

    def _decoder(self, folder: Path) -> Any:
        """Load the decoder, of the class that the pipeline's index names, which is one of CLASSES."""
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


def _loaded(kind: type, folder: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        return kind.from_pretrained(folder, subfolder=part, dtype=dtype)
    except OSError as error:
        raise ValueError(f"{folder}: its {part} cannot be loaded ({' '.join(str(error).split())})") from error


def _refuse_two_experts(folder: Path, path: str) -> None:
    index = index_of(folder)
    if (index.get("transformer_2") or [None])[0] or index.get("expand_timesteps"):
        raise ValueError(
            f"model.path={path}: Wan2.2 (two experts, or timesteps per token) is not supported; use Wan2.1"
        )


def _refuse_other_classes(folder: Path, path: str) -> None:
    """Raise ValueError if the index names a class that is not in CLASSES: a folder of a stranger must not choose what runs."""
    index = index_of(folder)
    for part, allowed in CLASSES.items():
        named = index.get(part)
        if not isinstance(named, list) or tuple(named) not in allowed:
            names = " or ".join(".".join(pair) for pair in allowed)
            raise ValueError(f"model.path={path}: its {INDEX} names {str(named)[:80]} as {part}; supported is {names}")
