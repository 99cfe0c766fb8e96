"""Score images by CLIP: PickScore, and LAION's aesthetic predictor."""

from itertools import pairwise

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPVisionModelWithProjection

from flash_grpo.hub import local_folder
from flash_grpo.rewards.flops import clip_flops, clip_vision_flops
from flash_grpo.rewards.frames import scorer_device


class PickScore:
    """Score images by a CLIP that was fine-tuned on human choices: exp(logit scale) x cosine, about 15 to 25.

    path, revision: of the model (yuvalkirstain/PickScore_v1). processor, processor_revision: of CLIP ViT-H-14, from which
    it was fine-tuned. device: see `frames.scorer_device`.
    """

    def __init__(
        self,
        path: str,
        processor: str,
        revision: str | None = None,
        processor_revision: str | None = None,
        device: str = "auto",
    ):
        device = scorer_device(device)
        self._model = CLIPModel.from_pretrained(local_folder(path, revision, "reward.scorer.path")).eval().to(device)
        folder = local_folder(processor, processor_revision, "reward.scorer.processor")
        self._images, self._tokenizer = (
            CLIPImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )
        self._device = device

    def flops(self, image_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one image; every image is resized, and a text counts with the greatest length."""
        return clip_flops(self._model.config)

    @torch.no_grad()
    def __call__(self, image_NHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            text, padding=True, truncation=True, max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )  # fmt: skip
        pixels = self._images(as_images(image_NHWC), return_tensors="pt").pixel_values
        out = self._model(**tokens.to(self._device), pixel_values=pixels.to(self._device))
        return self._model.logit_scale.exp() * (out.text_embeds * out.image_embeds).sum(-1)  # both have length 1


class Aesthetic:
    """Score images by LAION's aesthetic predictor, 1 to 10: a small network on CLIP ViT-L/14's image embedding.

    The text is ignored. path, revision: of CLIP (openai/clip-vit-large-patch14). head: the file
    sac+logos+ava1-l14-linearMSE.pth. device: see `frames.scorer_device`.
    """

    def __init__(self, path: str, head: str, revision: str | None = None, device: str = "auto"):
        device, folder = scorer_device(device), local_folder(path, revision, "reward.scorer.path")
        self._model = CLIPVisionModelWithProjection.from_pretrained(folder).eval().to(device)
        self._images = CLIPImageProcessorPil.from_pretrained(folder)
        self._head, self._device = aesthetic_head(self._model.config.projection_dim).eval().to(device), device
        try:
            state = torch.load(head, map_location=device, weights_only=True)
        except OSError as error:
            raise ValueError(
                f"reward.scorer.head={head}: there is no such file; see conf/reward/aesthetic.yaml"
            ) from error
        self._head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})

    def flops(self, image_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one image; every image is resized."""
        return clip_vision_flops(self._model.config)

    @torch.no_grad()
    def __call__(self, image_NHWC: torch.Tensor, text: list[str]) -> torch.Tensor:
        pixels = self._images(as_images(image_NHWC), return_tensors="pt").pixel_values.to(self._device)
        embedding_ND = torch.nn.functional.normalize(self._model(pixels).image_embeds, dim=-1)
        return self._head(embedding_ND)[:, 0]


def aesthetic_head(width: int) -> torch.nn.Sequential:
    """Make the predictor's layers: all linear, with dropout between them in training. width: of the embedding."""
    sizes, dropout = [width, 1024, 128, 64, 16, 1], [0.2, 0.2, 0.1]
    layers: list[torch.nn.Module] = []
    for index, (before, after) in enumerate(pairwise(sizes)):
        layers.append(torch.nn.Linear(before, after))
        layers.extend(torch.nn.Dropout(p) for p in dropout[index : index + 1])
    return torch.nn.Sequential(*layers)


def as_images(image_NHWC: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.numpy()) for image in image_NHWC.cpu()]
