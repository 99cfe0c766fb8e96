import json
from collections import Counter

import pytest
import torch

from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.run.prompt_files import from_files
from flash_grpo.tiny_world.prompts import from_shapes

TEXTS = Prompts(train=tuple("abcdefg"), test=("z",))


def test_every_pass_over_the_prompts_visits_each_once_in_an_order_of_its_own():
    drawn = [text for iteration in range(1, 15) for text in TEXTS.drawn(iteration, 3, seed=0)]
    passes = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list("abcdefg") for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert TEXTS.drawn(1, 7, seed=0) != TEXTS.drawn(1, 7, seed=1)


@pytest.mark.parametrize("optimizer_steps", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_optimizer_step_evenly_and_nothing_is_made_twice(optimizer_steps, world_size):
    layout = Layout(num_prompts=4, group_size=6, optimizer_steps=optimizer_steps, world_size=world_size)
    batches = [layout.batch(1, list("abcd"), rank) for rank in range(world_size)]
    made = Counter(pair for b in batches for pair in zip(b.prompt_B.tolist(), b.sibling_B.tolist(), strict=True))
    assert made == {(prompt, sibling): 1 for prompt in range(4) for sibling in range(6)}
    shares = [torch.bincount(layout.optimizer_step_of(b.prompt_B)).tolist() for b in batches]
    assert shares == [[24 // optimizer_steps // world_size] * optimizer_steps] * world_size
    assert all(b.text[row] == "abcd"[b.prompt_B[row]] for b in batches for row in range(len(b)))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"optimizer_steps": 3}, "optimizer_steps=3"),
        ({"world_size": 5}, "5 ranks"),
    ],
)
def test_a_layout_that_cannot_work_says_which_key(bad, named):
    with pytest.raises(ValueError, match=named):
        Layout(**{"num_prompts": 4, "group_size": 6, **bad})


def test_prompt_files_are_read_line_by_line_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\n two \n")
    (tmp_path / "empty.txt").write_text("\n")
    read = from_files(str(tmp_path / "train.txt"), str(tmp_path / "train.txt"))
    assert read.train == ("one", "two")
    with pytest.raises(ValueError, match=r"prompts\.test=nowhere\.txt"):
        from_files(str(tmp_path / "train.txt"), "nowhere.txt")
    with pytest.raises(ValueError, match="holds no prompt"):
        from_files(str(tmp_path / "empty.txt"), str(tmp_path / "train.txt"))


def test_the_tiny_world_asks_for_all_of_its_captions():
    assert len(set(from_shapes().train)) == 32 == len(from_shapes().test)


def test_jsonl_prompts_and_what_is_wrong_with_a_line(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": " one ", "source": "x"}\n\n{"prompt": "two"}\n')
    read = from_files(str(file), str(file))
    assert read.train == read.test == ("one", "two")
    assert read.metadata == {"one": {"source": "x"}}
    for line, told in (
        ("{", "line 1"),
        ('{"text": "a"}', "KeyError"),
        ("[]", "TypeError"),
        ('{"prompt": 3}', "no text"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=told):
            from_files(str(file), str(file))


def test_a_text_is_cut_at_line_feeds_alone_and_read_as_utf_8(tmp_path):
    texts = ("a\u2028b", "c\x85d", "e\x0bf", "ü 猫")
    (tmp_path / "test.txt").write_bytes("\r\n".join(texts).encode())
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "test.jsonl").write_bytes("\n".join(lines).encode("utf-8-sig"))
    for name in ("test.txt", "test.jsonl"):
        assert from_files(str(tmp_path / name), str(tmp_path / name)).test == texts
    (tmp_path / "test.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.test=.*test\.txt: not UTF-8"):
        from_files(str(tmp_path / "test.jsonl"), str(tmp_path / "test.txt"))


def test_duplicates_and_overlap_are_named(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\na\n")
    (tmp_path / "test.txt").write_text("b\nc\n")
    prompts = from_files(str(tmp_path / "train.txt"), str(tmp_path / "test.txt"))
    assert prompts.train == ("a", "b", "a")
    told = "\n".join(prompts.oddities)
    assert "prompts.train: 1 prompts stand there more than once, 'a' for one" in told
    assert "1 of 2 held-out prompts are trained on, 'b' for one" in told
