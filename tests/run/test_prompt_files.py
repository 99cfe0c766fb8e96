import json

import pytest

from flash_grpo.run.prompt_files import from_files


def test_prompt_files_are_read_line_by_line_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\n two \n")
    (tmp_path / "empty.txt").write_text("\n")
    read = from_files(str(tmp_path / "train.txt"), str(tmp_path / "train.txt"))
    assert read.train == ("one", "two")
    with pytest.raises(ValueError, match=r"prompts\.test=nowhere\.txt"):
        from_files(str(tmp_path / "train.txt"), "nowhere.txt")
    with pytest.raises(ValueError, match="holds no prompt"):
        from_files(str(tmp_path / "empty.txt"), str(tmp_path / "train.txt"))


def test_jsonl_prompts_are_read_and_a_bad_line_is_named(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": " one ", "source": "x"}\n\n{"prompt": "two"}\n')
    read = from_files(str(file), str(file))
    assert read.train == read.test == ("one", "two")
    assert read.metadata == {"one": {"source": "x"}}
    for line, message in (
        ("{", "line 1"),
        ('{"text": "a"}', "KeyError"),
        ("[]", "TypeError"),
        ('{"prompt": 3}', "no text"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=message):
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
    oddities = "\n".join(prompts.oddities)
    assert "prompts.train: 1 prompts stand there more than once, 'a' for one" in oddities
    assert "1 of 2 held-out prompts are trained on, 'b' for one" in oddities
