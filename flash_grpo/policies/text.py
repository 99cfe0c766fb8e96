"""Encode texts into conditions, each text once. With a cache on disk the encoder leaves the device afterwards."""

import hashlib
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5EncoderModel

from flash_grpo.policies.source import fingerprint
from flash_grpo.policies.weights import variant_of

IN_MEMORY = 1024  # embeddings of the latest texts, on the CPU; at most 4 MB each


class TextConditions:
    """Encode texts as WanPipeline does: `conditions(texts)` is [B, M, D], zero behind each text's end.

    folder: of the pipeline. max_tokens: M. device: of encoder and conditions. dtype: of the encoder. cache: a folder of
    embeddings, which runs and ranks may share; None keeps the encoder on the device.
    """

    def __init__(self, folder: Path, max_tokens: int, device: torch.device, dtype: torch.dtype, cache: str | None):
        self._folder, self._max_tokens, self._device, self._dtype = folder, max_tokens, device, dtype
        self._cache = Path(cache).expanduser() if cache else None
        self._identity = f"{fingerprint(folder, ('text_encoder', 'tokenizer'))} {max_tokens} {dtype}"
        self._memory: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", trust_remote_code=False)
        self._encoder: UMT5EncoderModel | None = None

    def __call__(self, texts: Iterable[str]) -> torch.Tensor:
        texts = list(texts)
        embeddings = self._embeddings(texts)
        return torch.stack([self._padded(embeddings[text]) for text in texts])

    def prefetch(self, texts: Iterable[str]) -> None:
        """Encode the texts that are not cached yet, all in one go, so that the encoder is moved to the device only once."""
        self._embeddings(texts)

    def _embeddings(self, texts: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the embeddings by text, without padding, [tokens, D] each, on the CPU."""
        cached = {text: self._cached(text) for text in texts}
        return cached | self._encoded([text for text, embedding_MD in cached.items() if embedding_MD is None])

    def file(self, text: str) -> Path:
        """Return the file of a text's embedding; its name is a hash of text, encoder, tokenizer, length and dtype."""
        return self._cache / f"{hashlib.sha256(f'{self._identity} {text}'.encode()).hexdigest()}.safetensors"

    def _cached(self, text: str) -> torch.Tensor | None:
        if text in self._memory:
            self._memory.move_to_end(text)
        elif self._cache and self.file(text).is_file():
            self._remember(text, load_file(self.file(text))["embedding"])
        return self._memory.get(text)

    def _remember(self, text: str, embedding_MD: torch.Tensor) -> None:
        self._memory[text] = embedding_MD
        if len(self._memory) > IN_MEMORY:
            self._memory.popitem(last=False)

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Encode one text at a time, so that an embedding does not depend on the other texts."""
        encoder = self._encoder_on_device() if texts else None
        encoded = {}
        for text in texts:
            encoded[text] = self._embedding(encoder, text)
            if self._cache:
                self._write(text, encoded[text])
            self._remember(text, encoded[text])
        if encoder and self._cache:
            encoder.to("cpu")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return encoded

    def _embedding(self, encoder: UMT5EncoderModel, text: str) -> torch.Tensor:
        tokens = self._tokenizer(
            [prompt_clean(text)],
            padding="max_length",
            max_length=self._max_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        hidden_MD = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return hidden_MD[: int(tokens.attention_mask.sum())].to("cpu", copy=True)  # a view would keep the padding too

    def _encoder_on_device(self) -> UMT5EncoderModel:
        if self._encoder is None:
            self._encoder = UMT5EncoderModel.from_pretrained(
                self._folder,
                subfolder="text_encoder",
                dtype=self._dtype,
                variant=variant_of(self._folder, "text_encoder"),
            ).eval()
        return self._encoder.to(self._device)

    def _padded(self, embedding_MD: torch.Tensor) -> torch.Tensor:
        rest = self._max_tokens - len(embedding_MD)
        return torch.nn.functional.pad(embedding_MD.to(self._device), (0, 0, 0, rest))

    def _write(self, text: str, embedding_MD: torch.Tensor) -> None:
        """Write the embedding under a temporary name, then rename it: ranks and runs may encode the same text at once."""
        file = self.file(text)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        save_file({"embedding": embedding_MD}, aside)
        os.replace(aside, file)


class RandomConditions:
    """Return noise of a condition's shape [B, M, D], for benchmarks without a text encoder. width: D."""

    def __init__(self, max_tokens: int, width: int, device: torch.device, dtype: torch.dtype):
        self._shape, self._device, self._dtype = (max_tokens, width), device, dtype

    def __call__(self, texts: Iterable[str]) -> torch.Tensor:
        return torch.randn(len(list(texts)), *self._shape, generator=torch.Generator().manual_seed(0)).to(
            self._device, self._dtype
        )

    def prefetch(self, texts: Iterable[str]) -> None:
        pass
