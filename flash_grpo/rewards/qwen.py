"""Compute Qwen2-VL with a head on special tokens of an instruction: what HPSv3 and VideoAlign share.

Both were trained with transformers 4.45: their checkpoints use its names of layers, and positions simply count tokens.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLModel


class RewardModel(nn.Module):
    """Qwen2-VL's trunk with random weights, to be loaded, and a head, which stays float32. dtype: of the trunk."""

    def __init__(self, config: Qwen2VLConfig, head: nn.Module, dtype: torch.dtype, device: torch.device):
        super().__init__()
        with torch.device(device):
            self.trunk = Qwen2VLModel._from_config(config, dtype=dtype).eval()
        self.head = head.to(device)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, at_tokens: Sequence[int], **vision: torch.Tensor
    ) -> torch.Tensor:
        """Return the head's outputs [N, tokens, outputs] at the positions of `at_tokens`.

        vision: pixels and grids, named as the trunk names them. ValueError if a row lacks a token or has it twice.
        """
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        hidden = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **vision
        ).last_hidden_state
        here = [input_ids == token for token in at_tokens]
        if not all(bool((is_here.sum(1) == 1).all()) for is_here in here):
            raise ValueError("the instruction must hold each reward token exactly once")
        return self.head(torch.stack([hidden[is_here] for is_here in here], dim=1).float())


def tokenizer_with(tokens: Sequence[str], folder: Path) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer and add special tokens to it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def conversation(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], kind: str, marks: Sequence[int]
) -> BatchEncoding:
    """Return the token ids of conversations in which a user asks about an image or a video.

    asked: the questions. kind: "image" or "video". marks: how many tokens each image or video takes, a quarter of its
    patches.
    """
    mark = f"<|{kind}_pad|>"
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}],
            tokenize=False,
            add_generation_prompt=True,
        ).replace(mark, mark * count)
        for text, count in zip(asked, marks, strict=True)
    ]
    return tokenizer(prompts, padding=True, return_tensors="pt")


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Load a checkpoint with transformers 4.45's names; ValueError if the names or shapes do not fit. file: for the message."""
    state = {_renamed(name): value for name, value in state.items() if not name.startswith("lm_head.")}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # lists mismatched shapes, a line for each
        raise ValueError(f"{file}: not the weights of this model; {str(error).splitlines()[1].strip()}") from error
    if missing or unexpected:
        raise ValueError(
            f"{file}: not the weights of this model; missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)})"
        )


def _renamed(name: str) -> str:
    first, _, rest = name.partition(".")
    ours = {"visual": "trunk.visual.", "model": "trunk.language_model.", "rm_head": "head."}
    return ours.get(first, f"{first}.") + rest


def texts_of(source: Path) -> dict[str, str]:
    """Return the strings that a Python file assigns, by name. The file is read, never imported."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
