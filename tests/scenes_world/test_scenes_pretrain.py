import json

import pytest
import torch

from flash_grpo.scenes_world import pretrain
from flash_grpo.scenes_world.clips import WORDS, asked
from flash_grpo.scenes_world.gates import CHECKPOINT
from flash_grpo.scenes_world.pretrain import CAPTION_NOISE, HONEST, SAID, WARM_UP, WORLD, draw_caption_pairs


def drawn(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What 200 batches of clips show and what is said of them, without those of which nothing is said."""
    generator = torch.Generator().manual_seed(0)
    pairs = [draw_caption_pairs(generator, progress) for _ in range(200)]
    shown_NA, said_N = (torch.cat(column) for column in zip(*pairs, strict=True))
    assert abs((said_N < len(SAID)).float().mean() - 0.9) < 0.02
    return shown_NA[said_N < len(SAID)], asked(SAID)[said_N[said_N < len(SAID)]]


def test_captions_are_true_at_first_and_then_lie_as_often_as_their_noise_says():
    shown_NA, said_NA = drawn(HONEST - 1e-6)
    assert shown_NA.equal(said_NA)
    shown_NA, said_NA = drawn(HONEST)
    right_A = (shown_NA == said_NA).float().mean(0).tolist()
    for (name, words), right in zip(WORDS.items(), right_A, strict=True):
        assert right == pytest.approx(1 - CAPTION_NOISE[name] * (1 - 1 / len(words)), abs=0.02), name


def test_nothing_that_is_held_out_is_said():
    assert len(SAID) == 288
    assert WORLD.captions == SAID


def test_the_learning_rate_rises_stays_and_falls_to_nothing_while_captions_lie():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rate, steps, rates = WORLD.rate(optimizer, 1000), 1000, []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rate.step()
    assert rates[0] == 1 / WARM_UP
    assert set(rates[WARM_UP - 1 : round(HONEST * steps)]) == {1.0}
    assert rates[-1] == pytest.approx(1 / (1 - HONEST) / steps)


def test_the_command_writes_what_it_did_and_what_it_measured(tmp_path):
    threads = str(torch.get_num_threads())
    pretrain.main(["--output", str(tmp_path), "--steps", "2", "--threads", threads, "--seed", "3"])
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert (record["steps"], record["seed"]) == (2, 3)
    assert set(record) >= {"base", "ceiling", "headroom", "codec_psnr_db", "command", "failed"}
    assert record["failed"]  # after two steps


def test_the_shipped_checkpoint_is_small_and_was_made_by_the_command():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= 6e6
    assert "flash_grpo.scenes_world.pretrain" in json.loads((CHECKPOINT / "pretraining.json").read_text())["command"]
