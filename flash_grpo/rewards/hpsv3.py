"""HPSv3: Qwen2-VL-7B with a small head, read off at a special token of its instruction. Images only.

Its PyPI package fails on current transformers; here transformers' own Qwen2-VL takes its weights and its instruction.
"""

import ast
import importlib.util
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from flash_grpo.hub import local_folder
from flash_grpo.rewards.clip import as_images
from flash_grpo.rewards.frames import scorer_device

REWARD_TOKEN, IMAGE = "<|Reward|>", "<|image_pad|>"
PIXELS = 256 * 28 * 28  # of every image, whatever its size: HPSv3 was trained so


class HPSv3:
    """Images and texts to scores, unbounded, about -1 to 15; see `frames.ImageScorer`.

    base, base_revision: Qwen/Qwen2-VL-7B-Instruct, of which configuration and tokenizer are read, no weights. path,
    revision: MizzenAI/HPSv3, with HPSv3.safetensors. instruction: None takes it from the hpsv3 package, which must then be
    installed (`pip install --no-deps hpsv3`) and is read, never imported.
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
        weights = local_folder(path, revision, "reward.scorer.path")
        folder = local_folder(base, base_revision, "reward.scorer.base")
        self._instruction = instruction or packaged_instruction()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
        self._tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._images.size = {"shortest_edge": pixels, "longest_edge": pixels}
        config = Qwen2VLConfig.from_pretrained(folder)
        config.text_config.vocab_size = len(self._tokenizer)
        self.model = RewardModel(config, outputs=2, dtype=getattr(torch, dtype), device=device)
        load_weights(self.model, weights / "HPSv3.safetensors")
        self._device = device

    @torch.no_grad()
    def __call__(self, image_NHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        """The mean of the predicted Gaussian; its spread, the second output, is not used."""
        inputs = self.prepared(as_images(image_NHWC), text)
        token = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        logit_NO = self.model(**inputs.to(self._device), at_token=token)
        return logit_NO[:, 0]

    def prepared(self, images: list[Image.Image], text: list[str]):
        """What Qwen2-VL's processor makes of the conversation: each image's mark repeated as often as it has patches."""
        pixels = self._images(images, return_tensors="pt")
        patches_N = pixels.image_grid_thw.prod(-1) // self._images.merge_size**2
        said = [
            self._asked(one).replace(IMAGE, IMAGE * count) for one, count in zip(text, patches_N.tolist(), strict=True)
        ]
        inputs = self._tokenizer(said, padding=True, return_tensors="pt")
        inputs.update(pixels)
        return inputs

    def _asked(self, text: str) -> str:
        asked = [{"type": "image"}, {"type": "text", "text": self._instruction.format(text_prompt=text)}]
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )


class RewardModel(nn.Module):
    """Qwen2-VL's trunk and HPSv3's head ("ranknet"), which stays float32."""

    def __init__(self, config: Qwen2VLConfig, outputs: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        width = config.text_config.hidden_size
        with torch.device(device):
            self.trunk = Qwen2VLModel._from_config(config, dtype=dtype).eval()
            self.head = nn.Sequential(
                nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, outputs)
            )

    def forward(
        self, input_ids, attention_mask, pixel_values, image_grid_thw, at_token: int, **unused: object
    ) -> torch.Tensor:
        """[N, outputs] at each row's `at_token`. Positions count tokens: HPSv3 was trained without Qwen's 3-D ones."""
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        hidden = self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
        ).last_hidden_state
        here = input_ids == at_token
        if not bool((here.sum(1) == 1).all()):
            raise ValueError(f"the instruction must hold {REWARD_TOKEN} exactly once")
        return self.head(hidden[here].float())


def load_weights(model: RewardModel, file: Path) -> None:
    """HPSv3's checkpoint has transformers 4.45's names."""
    if not file.is_file():
        raise ValueError(f"reward.scorer.path: {file} is not there")
    state = {_renamed(name): value for name, value in load_file(file).items() if not name.startswith("lm_head.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{file}: not HPSv3's weights for this model; missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)})"
        )


def _renamed(name: str) -> str:
    first, rest = name.split(".", 1)
    return {"visual": "trunk.visual.", "model": "trunk.language_model.", "rm_head": "head."}[first] + rest


def packaged_instruction() -> str:
    """HPSv3's instruction with its closing request, from the text of the installed package."""
    found = importlib.util.find_spec("hpsv3")
    if found is None:
        raise ValueError(
            "reward.scorer.instruction: not given, and hpsv3 is not installed: pip install --no-deps hpsv3"
        )
    source = Path(found.submodule_search_locations[0]) / "dataset" / "data_collator_qwen.py"
    texts = {
        node.targets[0].id: node.value.value
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    return texts["INSTRUCTION"] + texts["prompt_with_special_token"]
