"""Any diffusers Wan text-to-video pipeline as a policy. The tiny world is one more folder in diffusers' own layout."""

import copy
import importlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()

TINY = "tiny_wan"


class WanPolicy:
    """A Wan transformer with its frozen text encoder and its frozen decoder, see `policies.Policy`.

    path: a folder in diffusers' pipeline layout; "tiny_wan" is the one that ships with the package.
    frames, height, width: of the decoded video. guidance: classifier-free guidance scale, 1 switches it off.
    """

    def __init__(
        self,
        *,
        path: str,
        frames: int,
        height: int,
        width: int,
        guidance: float,
        negative_prompt: str = "",
        max_text_tokens: int,
        device: torch.device,
    ):
        folder = Path(__file__).parent / TINY if path == TINY else Path(path)
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"model.path={path}: no model_index.json there; expected a folder in diffusers' layout")
        self.transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").to(device)
        self.codec = _codec_class(folder).from_pretrained(folder, subfolder="vae").to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self._text_encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder").to(device).eval()
        self._max_text_tokens, self._cache, self._base = max_text_tokens, {}, None
        self.device, self.guidance, self.negative_prompt = device, guidance, negative_prompt
        self.latent_shape = self.codec.latent_shape(frames, height, width)
        self.evaluations_per_velocity = 1 if guidance == 1 else 2
        self.flops_per_forward = self._count_flops()

    def encode(self, texts: Iterable[str]) -> torch.Tensor:
        return torch.stack([self._embedding(text) for text in texts])

    def velocity(self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor) -> torch.Tensor:
        return self._guided(self.transformer, x_BCFHW, timestep_B, condition_BMD)

    @torch.no_grad()
    def base_velocity(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        return self._guided(self._base, x_BCFHW, timestep_B, condition_BMD)

    def keep_base(self) -> None:
        self._base = copy.deepcopy(self.transformer).requires_grad_(False)

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        video = self.codec.decode(latent_BCFHW)
        return (video.clamp(0, 1) * 255).round().to(torch.uint8)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.transformer.named_parameters() if parameter.requires_grad}

    def _guided(
        self, transformer, x: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        """Both halves of guidance go through in one batch."""
        timestep_B = timestep_B.to(x.device)
        if self.guidance == 1:
            return transformer(x, timestep_B, condition_BMD, return_dict=False)[0].float()
        negative_BMD = self._embedding(self.negative_prompt).expand_as(condition_BMD)
        both = transformer(
            x.repeat(2, 1, 1, 1, 1), timestep_B.repeat(2), torch.cat([condition_BMD, negative_BMD]), return_dict=False
        )[0]
        conditional, unconditional = both.float().chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    @torch.no_grad()
    def _embedding(self, text: str) -> torch.Tensor:
        """[M, D], zero behind the text's end as in WanPipeline; each text is encoded once."""
        if text not in self._cache:
            tokens = self._tokenizer(
                [text], padding="max_length", max_length=self._max_text_tokens, truncation=True, return_tensors="pt"
            ).to(self.device)
            hidden = self._text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
            self._cache[text] = hidden * tokens.attention_mask[0, :, None]
        return self._cache[text]

    def _count_flops(self) -> float:
        x = torch.zeros(1, *self.latent_shape, device=self.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.transformer(x, torch.zeros(1, device=self.device), self.encode([""]), return_dict=False)
        return float(counter.get_total_flops())


def _codec_class(folder: Path) -> type:
    """The decoder's class, as the pipeline's index names it."""
    module, name = json.loads((folder / "model_index.json").read_text())["vae"]
    return getattr(importlib.import_module(module), name)
