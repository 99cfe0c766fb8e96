"""Score videos by VideoReward (VideoAlign, arXiv 2501.13918): Qwen2-VL-2B on a whole video, so that it sees motion.

It gives three numbers: one linear head, applied at a token for each of VQ (visual quality), MQ (motion quality) and TA
(text alignment). How its checkpoint must be used is taken from github.com/KwaiVGI/VideoAlign, which does not run on current
transformers; here its weights are loaded into transformers' own Qwen2-VL and peft.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import BatchFeature, Qwen2VLConfig, Qwen2VLImageProcessorPil

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import Scores
from flash_grpo.hub import local_folder
from flash_grpo.rewards.clip import as_images
from flash_grpo.rewards.flops import qwen_flops
from flash_grpo.rewards.frames import scorer_device
from flash_grpo.rewards.qwen import RewardModel, conversation, load_weights, texts_of, tokenizer_with

PARTS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{part}_reward|>" for part in PARTS)
WEIGHTS = "checkpoint-11352/model.pth"
MIN_PIXELS, MIN_FRAMES = 128 * 28 * 28, 4  # its vision_process.py


class VideoAlign:
    """Score videos by VQ + MQ + TA, each standardised by the mean and deviation of the checkpoint's model_config.json.

    path, revision: KlingTeam/VideoReward, with model_config.json and checkpoint-11352. base, base_revision:
    Qwen/Qwen2-VL-2B-Instruct; only its configuration and tokenizer are read, not its weights. instruction:
    prompt_template.py of VideoAlign's repository, which is read, never imported.

    every: show the model each n-th frame, from the first. None shows it `fps` frames a second, at least 4, evenly from the
    first to the last, as VideoReward was trained. video_fps: frames a second of the scored videos. The score is the whole
    video's: there are no frame mean, frame minimum or best share. pixels: of a frame, at most. batch: videos scored at
    once. dtype: torch's name of the trunk's dtype. device: see `frames.scorer_device`.
    Parts: VQ, MQ, TA.
    """

    def __init__(
        self,
        *,
        path: str,
        base: str,
        instruction: str | None,
        revision: str | None = None,
        base_revision: str | None = None,
        every: int | None = None,
        fps: float = 2.0,
        video_fps: float = 16.0,
        pixels: int = 200_704,
        batch: int = 2,
        dtype: str = "bfloat16",
        device: str = "auto",
    ):
        ranges.whole("reward.every", every, null=True)
        ranges.whole("reward.batch", batch)
        ranges.number("reward.fps", fps, above=0)
        ranges.number("reward.video_fps", video_fps, above=0)
        ranges.whole("reward.pixels", pixels, at_least=MIN_PIXELS)
        device = scorer_device(device)
        published = local_folder(path, revision, "reward.path")
        folder = local_folder(base, base_revision, "reward.base")
        self._instruction, described = self.instruction_of(instruction), _described(published)
        self._mean_3, self._std_3 = (
            torch.tensor([described["inference_config"][f"{part}_{moment}"] for part in PARTS])
            for moment in ("mean", "std")
        )
        self._tokenizer = tokenizer_with(TOKENS, folder)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._images.size = {"shortest_edge": MIN_PIXELS, "longest_edge": pixels}
        config = Qwen2VLConfig.from_pretrained(folder)
        config.text_config.vocab_size = len(self._tokenizer)
        self.model = adapted_model(config, described["peft_lora_config"], published / WEIGHTS, dtype, device)
        self._every, self._fps, self._video_fps, self._batch, self._device = every, fps, video_fps, batch, device

    @staticmethod
    def instruction_of(source: str | None) -> str:
        """Return the instruction that the model was trained with, `{text_prompt}` in place of the text.

        source: the file that holds it; ValueError if it does not.
        """
        name = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
        file = Path(source or "").expanduser()
        instruction = texts_of(file).get(name) if file.is_file() else None
        if not instruction:
            raise ValueError(
                f"reward.instruction={source}: not a file with {name}; `git clone https://github.com/KwaiVGI/VideoAlign` "
                "and name its prompt_template.py"
            )
        return instruction

    @torch.no_grad()
    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        """Score uint8 videos [B, F, H, W, 3]; ValueError if they have fewer than two frames."""
        rows = torch.arange(len(text)).split(self._batch)
        logit_B3 = torch.cat([self._logits(video_BFHWC[some], [text[row] for row in some.tolist()]) for some in rows])
        part_B3 = (logit_B3 - self._mean_3) / self._std_3
        return Scores(total_B=part_B3.sum(1), parts=dict(zip(PARTS, part_B3.unbind(1), strict=True)))

    def flops(self, video_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one video (F, H, W, 3), its adapters included."""
        inputs, trunk = self.prepared(torch.zeros(1, *video_shape, dtype=torch.uint8), [text]), self.model.trunk
        adapters = sum(value.numel() for name, value in trunk.named_parameters() if ".lora_" in name)
        grid = inputs["video_grid_thw"][0].tolist()
        return qwen_flops(trunk.config, grid, inputs["input_ids"].shape[1], adapters)

    def _logits(self, video_BFHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        tokens = self._tokenizer.convert_tokens_to_ids(list(TOKENS))
        inputs = self.prepared(video_BFHWC, text).to(self._device)
        return self.model(**inputs, at_tokens=tokens)[..., 0].cpu()

    def prepared(self, video_BFHWC: torch.Tensor, text: list[str]):
        """Return the model's inputs: the conversations, and the chosen frames in pairs, as Qwen2-VL takes them."""
        chosen = video_BFHWC[:, self.frames(video_BFHWC.shape[1])]
        pixels = [_paired(self._images(as_images(video_FHWC), return_tensors="pt")) for video_FHWC in chosen]
        grid_B3 = torch.stack([patches["video_grid_thw"] for patches in pixels])
        asked = [self._instruction.format(text_prompt=line) for line in text]
        marks_B = grid_B3.prod(1) // self._images.merge_size**2
        inputs = conversation(self._tokenizer, asked, "video", marks_B.tolist())
        inputs.update({"pixel_values_videos": torch.cat([patches["pixel_values_videos"] for patches in pixels])})
        inputs.update({"video_grid_thw": grid_B3})
        return inputs

    def frames(self, count: int) -> list[int]:
        """Return the indices of the frames that the model sees, out of `count`; their number is even.

        An odd number is made even by repeating the last frame. ValueError if `count` is below 2.
        """
        if count < 2:
            raise ValueError(f"VideoAlign judges motion: a video needs at least 2 frames, not {count}")
        if self._every:
            chosen = list(range(0, count, self._every))
            return chosen + chosen[-1:] * (len(chosen) % 2)
        asked = min(max(count / self._video_fps * self._fps, MIN_FRAMES), count // 2 * 2)
        return torch.linspace(0, count - 1, 2 * round(asked / 2)).round().long().tolist()


def _paired(images: BatchFeature) -> BatchFeature:
    """Return a video's patches, made from the patches of its frames.

    A patch holds two frames. The image processor fills both halves with the same frame; here two consecutive frames fill them.
    """
    frames, (_, height, width) = len(images.image_grid_thw), images.image_grid_thw[0].tolist()
    patch_FNC2P = images.pixel_values.reshape(frames, height * width, 3, 2, -1)
    paired = torch.stack([patch_FNC2P[0::2, :, :, 0], patch_FNC2P[1::2, :, :, 1]], dim=3)
    grid = torch.tensor([frames // 2, height, width])
    return BatchFeature({"pixel_values_videos": paired.flatten(2).flatten(0, 1), "video_grid_thw": grid})


def adapted_model(config: Qwen2VLConfig, lora: dict, weights: Path, dtype: str, device: torch.device) -> RewardModel:
    """Load the trained model: a whole state dict, with peft's adapters beside the layers that they adapt.

    lora: the checkpoint's peft_lora_config. ValueError if the weights are missing or another model's.
    """
    if not weights.is_file():
        raise ValueError(f"reward.path: {weights} is not there")
    saved = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    state = {name.removeprefix("base_model.model."): value for name, value in saved.items()}
    head = nn.Linear(config.text_config.hidden_size, 1, bias=False)
    model = RewardModel(config, head, getattr(torch, dtype), device)
    adapted = sorted({name.split(".lora_")[0].removeprefix("model.") for name in state if ".lora_" in name})
    scale = {"lora_alpha": lora["lora_alpha"], "use_rslora": lora.get("use_rslora", False)}
    inject_adapter_in_model(LoraConfig(r=lora["lora_r"], target_modules=adapted, **scale), model.trunk.language_model)
    load_weights(model, state, weights)
    return model.eval().requires_grad_(False)


def _described(published: Path) -> dict:
    """Read the checkpoint's model_config.json: {inference_config: {VQ_mean, ...}, peft_lora_config: {lora_r, ...}, ...}."""
    file = published / "model_config.json"
    if not file.is_file():
        raise ValueError(f"reward.path: {file} is not there; hf download KlingTeam/VideoReward has it")
    return json.loads(file.read_text())
