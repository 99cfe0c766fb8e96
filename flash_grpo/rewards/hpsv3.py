"""Score images by HPSv3: Qwen2-VL-7B with a small head on the last hidden state of a special token.

Its PyPI package fails on current transformers; here its weights and its instruction are loaded into transformers' own
Qwen2-VL.
"""

import importlib.util
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil

from flash_grpo.hub import local_folder
from flash_grpo.rewards.clip import as_images
from flash_grpo.rewards.flops import qwen_flops
from flash_grpo.rewards.frames import scorer_device
from flash_grpo.rewards.qwen import RewardModel, conversation, load_weights, texts_of, tokenizer_with

REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28  # every image is resized to these: HPSv3 was trained so


class HPSv3:
    """Score images by how well they look and fit their texts; unbounded, about -1 to 15. See `frames.ImageScorer`.

    path, revision: MizzenAI/HPSv3, with HPSv3.safetensors. base, base_revision: Qwen/Qwen2-VL-7B-Instruct; only its
    configuration and tokenizer are read, not its weights. instruction: None takes it from the hpsv3 package, which must
    then be installed (`pip install --no-deps hpsv3`) and is read, never imported. dtype: torch's name of the trunk's dtype.
    pixels: of an image after resizing. device: see `frames.scorer_device`.
    """

    def __init__(
        self,
        *,
        path: str,
        base: str,
        revision: str | None = None,
        base_revision: str | None = None,
        instruction: str | None = None,
        dtype: str = "bfloat16",
        pixels: int = PIXELS,
        device: str = "auto",
    ):
        device = scorer_device(device)
        weights = local_folder(path, revision, "reward.scorer.path") / "HPSv3.safetensors"
        folder = local_folder(base, base_revision, "reward.scorer.base")
        if not weights.is_file():
            raise ValueError(f"reward.scorer.path: {weights} is not there")
        self._instruction = self.instruction_of(instruction)
        self._tokenizer = tokenizer_with([REWARD_TOKEN], folder)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._images.size = {"shortest_edge": pixels, "longest_edge": pixels}
        config = Qwen2VLConfig.from_pretrained(folder)
        config.text_config.vocab_size = len(self._tokenizer)
        self.model = RewardModel(config, ranknet(config.text_config.hidden_size), getattr(torch, dtype), device)
        load_weights(self.model, load_file(weights), weights)
        self._device = device

    @staticmethod
    def instruction_of(given: str | None) -> str:
        return given or packaged_instruction()

    @torch.no_grad()
    def __call__(self, image_NHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        """Return the mean of each predicted Gaussian; its spread, the second output, is not used."""
        inputs = self.prepared(as_images(image_NHWC), text)
        token = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        score_N1O = self.model(**inputs.to(self._device), at_tokens=[token])
        return score_N1O[:, 0, 0]

    def flops(self, image_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one image (H, W, 3)."""
        inputs = self.prepared(as_images(torch.zeros(1, *image_shape, dtype=torch.uint8)), [text])
        return qwen_flops(self.model.trunk.config, inputs.image_grid_thw[0].tolist(), inputs.input_ids.shape[1])

    def prepared(self, images: list[Image.Image], text: list[str]):
        """Return the inputs that Qwen2-VL's processor would make: one image token for each merged patch of an image."""
        pixels = self._images(images, return_tensors="pt")
        patches_N = pixels.image_grid_thw.prod(-1) // self._images.merge_size**2
        asked = [self._instruction.format(text_prompt=line) for line in text]
        inputs = conversation(self._tokenizer, asked, "image", patches_N.tolist())
        inputs.update(pixels)
        return inputs


def ranknet(width: int) -> nn.Sequential:
    """Make HPSv3's head: mean and spread of a score from a hidden state. An identity stands for each dropout of training."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def packaged_instruction() -> str:
    """Return HPSv3's instruction with its closing request, from the text of the installed package."""
    package = importlib.util.find_spec("hpsv3")
    if package is None:
        raise ValueError(
            "reward.scorer.instruction: not given, and hpsv3 is not installed: pip install --no-deps hpsv3"
        )
    texts = texts_of(Path(package.submodule_search_locations[0]) / "dataset" / "data_collator_qwen.py")
    return texts["INSTRUCTION"] + texts["prompt_with_special_token"]
