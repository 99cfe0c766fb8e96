import itertools
import json
import socket
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from flash_grpo.tiny_world import pretrain, pretraining
from flash_grpo.tiny_world.clips import COLOURS, DIRECTIONS, SHAPES, captions
from flash_grpo.tiny_world.codec import LinearVideoCodec
from flash_grpo.tiny_world.reward import ShapesReward

CHECKPOINT = Path(pretrain.__file__).parent / "checkpoint"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("the checkpoint was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def encode(folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    return pretraining.encode_text(tokenizer, UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder"), texts)


def load_transformer(folder: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")


@torch.no_grad()
def mean_reward(transformer: WanTransformer3DModel) -> float:
    """Of one clip per caption, by 20 Euler steps on a grid of shift 3."""
    condition_BMD = encode(CHECKPOINT, captions())
    uniform_S = torch.linspace(1, 0, 21)
    sigma_S = 3 * uniform_S / (1 + 2 * uniform_S)
    x = torch.randn(32, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for now, then in itertools.pairwise(sigma_S):
        x = x + (then - now) * transformer(x, (now * 1000).expand(32), condition_BMD, return_dict=False)[0]
    video = LinearVideoCodec.from_pretrained(CHECKPOINT, subfolder="vae").decode(x).clamp(0, 1)
    return ShapesReward().score(video, tuple(captions()))["total"].mean().item()


def run_command(output: Path, seed: int) -> dict[str, torch.Tensor]:
    threads = str(torch.get_num_threads())
    pretrain.main(["--output", str(output), "--steps", "3", "--threads", threads, "--seed", str(seed)])
    return load_transformer(output).state_dict()


def test_the_command_writes_a_checkpoint_that_loads_and_its_seed_decides_it(tmp_path):
    first, again, other = (run_command(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)
    assert encode(tmp_path / "a", ["", captions()[0]]).shape == (2, 8, 32)
    assert LinearVideoCodec.from_pretrained(tmp_path / "a", subfolder="vae").latent_shape(9, 16, 16) == (16, 3, 4, 4)
    record = json.loads((tmp_path / "a" / "pretraining.json").read_text())
    assert record["steps"] == 3
    assert record["seed"] == 0
    assert "--steps 3" in record["command"]
    folders = {name for name in json.loads((tmp_path / "a" / "model_index.json").read_text()) if name[0] != "_"}
    assert folders == {path.name for path in (tmp_path / "a").iterdir() if path.is_dir()}


def test_captions_lie_about_colour_and_direction_but_never_about_the_shape():
    generator = torch.Generator().manual_seed(0)
    pairs = [pretrain.draw_caption_pairs(generator) for _ in range(200)]
    shown_N, said_N = (torch.cat(column) for column in zip(*pairs, strict=True))
    spoken_N = said_N < 32
    assert abs(spoken_N.float().mean() - 0.9) < 0.02
    sizes = (len(COLOURS), len(SHAPES), len(DIRECTIONS))
    shown, said = (torch.unravel_index(index_N[spoken_N], sizes) for index_N in (shown_N, said_N))
    colour, shape, direction = ((a == b).float().mean().item() for a, b in zip(shown, said, strict=True))
    assert shape == 1
    assert colour == pytest.approx(1 - 0.3 * 3 / 4, abs=0.02)
    assert direction == pytest.approx(1 - 0.3 * 3 / 4, abs=0.02)


def test_conditions_are_zero_beyond_the_text_and_differ_between_captions(offline):
    condition_BMD = encode(CHECKPOINT, [*captions(), ""])
    assert (condition_BMD[:32, 6:] == 0).all()
    assert (condition_BMD[32, 1:] == 0).all()
    assert torch.pdist(condition_BMD.flatten(1)).min() > 1


def test_the_shipped_checkpoint_is_small_and_was_made_by_the_command():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= 3e6
    assert "flash_grpo.tiny_world.pretrain" in json.loads((CHECKPOINT / "pretraining.json").read_text())["command"]


def test_the_shipped_transformer_draws_better_than_an_untrained_one_and_leaves_room(offline):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = pretrain.WORLD.build_transformer()
    trained = mean_reward(load_transformer(CHECKPOINT))
    assert mean_reward(untrained) + 0.5 < trained
    assert 1.5 < trained < 2.2
