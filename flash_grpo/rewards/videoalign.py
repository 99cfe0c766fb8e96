"""VideoReward (VideoAlign, arXiv 2501.13918): Qwen2-VL-2B that looks at a whole video and sees its motion.

It answers in three numbers, each the same linear head's at a token of its own: VQ (visual quality), MQ (motion quality)
and TA (text alignment). What its checkpoint expects is told by github.com/KwaiVGI/VideoAlign, which does not run on
current transformers; here transformers' own Qwen2-VL and peft take its weights.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import BatchFeature, Qwen2VLConfig, Qwen2VLImageProcessorPil

from flash_grpo.algorithm.types import Scores
from flash_grpo.hub import local_folder
from flash_grpo.rewards.clip import as_images
from flash_grpo.rewards.frames import scorer_device
from flash_grpo.rewards.qwen import RewardModel, conversation, load_weights, texts_of, tokenizer_with

PARTS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{part}_reward|>" for part in PARTS)
WEIGHTS = "checkpoint-11352/model.pth"
MIN_PIXELS, MIN_FRAMES = 128 * 28 * 28, 4  # its vision_process.py


class VideoAlign:
    """VQ + MQ + TA, each less its mean and in units of its standard deviation as the checkpoint's model_config.json has them.

    base, base_revision: Qwen/Qwen2-VL-2B-Instruct, of which configuration and tokenizer are read, no weights. path,
    revision: KlingTeam/VideoReward, with model_config.json and checkpoint-11352. instruction: prompt_template.py of
    VideoAlign's repository, which is read, never imported. video_fps: of the scored videos.

    The frame policy says which frames the model sees. every: each n-th, from the first; None: `fps` a second, at least 4,
    evenly from the first to the last, as VideoReward was trained. The score is the whole video's, so there is no frame
    mean or minimum, and no best share. pixels: at most so many of a frame. batch: videos scored at once.
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
        if (every is not None and every < 1) or batch < 1 or min(fps, video_fps) <= 0 or pixels < MIN_PIXELS:
            raise ValueError(
                f"reward.every={every}, batch={batch}, fps={fps}, video_fps={video_fps}, pixels={pixels}: every and batch "
                f"must be at least 1, fps and video_fps positive, pixels at least {MIN_PIXELS}"
            )
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
        """The instruction with the three reward tokens, word for word as in training; `{text_prompt}` stands for the text."""
        name = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
        file = Path(source or "").expanduser()
        found = texts_of(file).get(name) if file.is_file() else None
        if not found:
            raise ValueError(
                f"reward.instruction={source}: not a file with {name}; `git clone https://github.com/KwaiVGI/VideoAlign` "
                "and name its prompt_template.py"
            )
        return found

    @torch.no_grad()
    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        """Scores of uint8 videos [B, F, H, W, 3]; ValueError below two frames."""
        rows = torch.arange(len(text)).split(self._batch)
        logit_B3 = torch.cat([self._logits(video_BFHWC[some], [text[row] for row in some.tolist()]) for some in rows])
        part_B3 = (logit_B3 - self._mean_3) / self._std_3
        return Scores(total_B=part_B3.sum(1), parts=dict(zip(PARTS, part_B3.unbind(1), strict=True)))

    def _logits(self, video_BFHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        tokens = self._tokenizer.convert_tokens_to_ids(list(TOKENS))
        inputs = self.prepared(video_BFHWC, text).to(self._device)
        return self.model(**inputs, at_tokens=tokens)[..., 0].cpu()

    def prepared(self, video_BFHWC: torch.Tensor, text: list[str]):
        """The conversations, and the chosen frames in pairs as Qwen2-VL takes them."""
        chosen = video_BFHWC[:, self.frames(video_BFHWC.shape[1])]
        pixels = [self._paired(video_FHWC) for video_FHWC in chosen]
        grid_B3 = torch.stack([one["video_grid_thw"] for one in pixels])
        asked = [self._instruction.format(text_prompt=one) for one in text]
        marks_B = grid_B3.prod(1) // self._images.merge_size**2
        inputs = conversation(self._tokenizer, asked, "video", marks_B.tolist())
        inputs.update({"pixel_values_videos": torch.cat([one["pixel_values_videos"] for one in pixels])})
        inputs.update({"video_grid_thw": grid_B3})
        return inputs

    def frames(self, count: int) -> list[int]:
        """Which of `count` frames the model sees, an even number of them; the last one twice where it must."""
        if count < 2:
            raise ValueError(f"VideoAlign judges motion: a video needs at least 2 frames, not {count}")
        if self._every:
            chosen = list(range(0, count, self._every))
            return chosen + chosen[-1:] * (len(chosen) % 2)
        asked = min(max(count / self._video_fps * self._fps, MIN_FRAMES), count // 2 * 2)
        return torch.linspace(0, count - 1, 2 * round(asked / 2)).round().long().tolist()

    def _paired(self, video_FHWC: torch.Tensor) -> BatchFeature:
        """Patches of a video from those of its frames: as an image, each frame fills both halves of its patches."""
        images = self._images(as_images(video_FHWC), return_tensors="pt")
        _, height, width = images.image_grid_thw[0].tolist()
        patch_FNC2P = images.pixel_values.reshape(len(video_FHWC), height * width, 3, 2, -1)
        paired = torch.stack([patch_FNC2P[0::2, :, :, 0], patch_FNC2P[1::2, :, :, 1]], dim=3)
        grid = torch.tensor([len(video_FHWC) // 2, height, width])
        return BatchFeature({"pixel_values_videos": paired.flatten(2).flatten(0, 1), "video_grid_thw": grid})


def adapted_model(config: Qwen2VLConfig, lora: dict, weights: Path, dtype: str, device: torch.device) -> RewardModel:
    """The trained model: a whole state dict with the adapters of peft beside the layers that they adapt."""
    if not weights.is_file():
        raise ValueError(f"reward.path: {weights} is not there")
    saved = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    state = {name.removeprefix("base_model.model."): value for name, value in saved.items()}
    head = nn.Linear(config.text_config.hidden_size, 1, bias=False)
    model = RewardModel(config, head, getattr(torch, dtype), device)
    adapted = sorted({name.split(".lora_")[0].removeprefix("model.") for name in state if ".lora_" in name})
    scale = {"lora_alpha": lora["lora_alpha"], "use_rslora": lora.get("use_rslora", False)}
    described = LoraConfig(r=lora["lora_r"], target_modules=adapted, **scale)
    inject_adapter_in_model(described, model.trunk.language_model)
    load_weights(model, state, weights)
    return model.eval().requires_grad_(False)


def _described(published: Path) -> dict:
    """What the checkpoint says of itself: {inference_config: {VQ_mean, ...}, peft_lora_config: {lora_r, ...}, ...}."""
    file = published / "model_config.json"
    if not file.is_file():
        raise ValueError(f"reward.path: {file} is not there; hf download KlingTeam/VideoReward has it")
    return json.loads(file.read_text())
