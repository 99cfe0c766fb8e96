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
        ("{", "line 1: not JSON"),
        ('{"text": "a"}', "line 1: expected an object"),
        ("[]", "line 1: expected an object"),
        ("[" * 100_000, "line 1: not JSON"),
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


BUND = "The bund Shanghai, oil painting"
OIL = {"appearance_style": {"appearance_style": "oil painting"}}
ANIMALS = {"multiple_objects": {"object": "dog and horse"}}
VBENCH = [  # three entries as in VBench_full_info.json, where a text may stand twice
    {"prompt_en": "a dog and a horse", "dimension": ["multiple_objects"], "auxiliary_info": ANIMALS},
    {"prompt_en": BUND, "dimension": ["appearance_style"], "auxiliary_info": OIL},
    {"prompt_en": BUND, "dimension": ["overall_consistency", "aesthetic_quality"]},
]


def _read(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text.encode())
    return from_files(str(file), str(file))


@pytest.mark.parametrize("name", ["VBench_full_info.json", "info.JSON"])
def test_vbench_s_own_json_is_read_with_its_dimensions(name, tmp_path):
    prompts = _read(tmp_path, name, json.dumps(VBENCH, indent=1))
    assert prompts.test == tuple(entry["prompt_en"] for entry in VBENCH)
    bund = {"dimension": ["appearance_style", "overall_consistency", "aesthetic_quality"]}
    dog = {"dimension": ["multiple_objects"], "auxiliary_info": ANIMALS}
    assert prompts.metadata == {"a dog and a horse": dog, BUND: {**bund, "auxiliary_info": OIL}}
    assert "1 prompts stand there more than once" in prompts.oddities[0]


def test_a_table_is_read_by_its_header_with_quotes_and_line_feeds_inside_cells(tmp_path):
    text = '\ufeffdimension,prompt\r\ncolor,"a red ball, moving\nleft"\r\n\r\nmotion, two \r\n'
    prompts = _read(tmp_path, "prompts.csv", text)
    assert prompts.test == ("a red ball, moving\nleft", "two")
    assert prompts.metadata == {"a red ball, moving\nleft": {"dimension": "color"}, "two": {"dimension": "motion"}}
    prompts = _read(tmp_path, "prompts.TSV", "prompt_en\tsource\na cat, a dog\tx\n")
    assert (prompts.test, prompts.metadata) == (("a cat, a dog",), {"a cat, a dog": {"source": "x"}})
    assert _read(tmp_path, "one.csv", "prompt\na cat\n").metadata == {}


def test_a_suffix_in_capital_letters_means_the_same(tmp_path):
    assert _read(tmp_path, "prompts.JSONL", '{"prompt": "a", "k": 1}\n').metadata == {"a": {"k": 1}}
    for name in ("prompts.TXT", "prompts"):
        assert _read(tmp_path, name, "a\nb\n").test == ("a", "b")


def test_texts_that_only_resemble_another_kind_are_prompts(tmp_path):
    texts = ("[Scene 1] a prompt, a cat", "{a} cat", "prompt: a dog", "a dog\tand a cat", "a prompt", "prompts, many")
    for first in range(len(texts)):
        lines = texts[first:] + texts[:first]
        assert _read(tmp_path, "prompts.txt", "\n".join(lines)).test == lines


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", json.dumps(VBENCH), "looks like JSON"),
        ("a.txt", json.dumps(VBENCH, indent=1), "looks like JSON"),
        ("a.txt", '\n{"prompt": "a"}\n{"prompt": "b"}\n', "looks like JSON"),
        ("a.txt", '["a", "b"]', "looks like JSON"),
        ("a.txt", "prompt,dimension\na cat,color\n", "looks like a table"),
        ("a.txt", "dimension\tprompt\ncolor\ta cat\n", "looks like a table"),
        ("a.txt", '"id";"prompt"\n1;a cat\n', "looks like a table"),
        ("a.txt", "prompt\na cat\n", "looks like a table"),
        ("a.txt", "1\ta cat\n2\ta dog\n", "a tab in every line"),
        ("a.txt", "<!DOCTYPE html>\n<html>", "looks like a web page"),
        ("a.json", "<html><body>404</body>", "looks like a web page"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("a.txt", "PK\x03\x04a", "not a text file"),
        ("a.txt", "a\0b", "not a text file"),
        ("a.parquet", "a", r"expected \.txt, \.jsonl, \.json, \.csv, \.tsv"),
        ("a.txt.gz", "a", "not a prompt file by its name"),
        ("prompts", '{"prompt": "a"}', "looks like JSON"),
        ("a.yaml", "- a", "not a prompt file by its name"),
        ("a.json", '{"prompt": "a"}', "expected a list"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', "not JSON"),
        ("a.json", '["a", "b"]', "entry 1: expected an object"),
        ("a.json", "[]", "holds no prompt"),
        ("a.json", '[{"prompt_en": 3}]', "entry 1: its prompt has no text"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.csv", "a cat\na dog\n", "no column prompt, only a cat"),
        ("a.csv", "prompt;dimension\na cat;color\n", "no column prompt, only prompt;dimension"),
        ("a.csv", "prompt\tdimension\na cat\tcolor\n", "no column prompt"),
        ("a.csv", '{"prompt": "a"}\n', "no column prompt"),
        ("a.csv", "", "no column prompt, only nothing"),
        ("a.csv", "prompt,k\n", "holds no prompt"),
        ("a.csv", "prompt,k\na cat, a dog,color\n", "line 2: 3 cells under 2 columns"),
        ("a.csv", "k,prompt\ncolor\n", "line 2: 1 cells under 2 columns"),
        ("a.csv", "prompt,prompt\na,b\n", "names a column twice"),
        ("a.csv", 'prompt,k\n"a" cat,color\n', "line 2"),
        ("a.csv", 'prompt,k\n"a cat,color\n', "unexpected end"),
        ("a.csv", "prompt,k\n ,color\n", "its prompt has no text"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_a_line(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        _read(tmp_path, name, text)
    assert str(refused.value).startswith(f"prompts.train={tmp_path / name}: ")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
