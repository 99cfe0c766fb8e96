"""Our HPSv3 against the source of the published package, which does not run beside current transformers: it is read."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from flash_grpo.rewards.hpsv3 import PIXELS, REWARD_TOKEN, packaged_instruction, ranknet

PACKAGE = Path(sys.prefix) / "to_read" / "hpsv3"

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(),
    reason="hpsv3's source is not here: pip install --no-deps --target .venv/to_read hpsv3==1.0.0 (make .venv does)",
)


def _nodes(file: str, kind: type) -> list:
    return [node for node in ast.walk(ast.parse((PACKAGE / file).read_text())) if isinstance(node, kind)]


def test_the_instruction_is_the_package_s_and_asks_for_the_token_once(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE.parent))
    instruction = packaged_instruction()
    assert "hpsv3" not in sys.modules
    assert instruction.count("{text_prompt}") == instruction.count(REWARD_TOKEN) == 1
    assert instruction.index("{text_prompt}") < instruction.index(REWARD_TOKEN)
    assert f'"{REWARD_TOKEN}"' in (PACKAGE / "train.py").read_text()


def test_images_come_before_texts_and_have_the_pixels_of_training():
    (reward, prepare) = (
        next(node for node in _nodes("inference.py", ast.FunctionDef) if node.name == name)
        for name in ("reward", "prepare_batch")
    )
    names = [argument.arg for argument in reward.args.args]
    assert names == ["self", "image_paths", "prompts"]  # as frames.ImageScorer
    pixels = [eval(ast.unparse(node.value)) for node in ast.walk(prepare) if isinstance(node, ast.Assign)
              and getattr(node.targets[0], "id", "") in ("min_pixels", "max_pixels")]  # fmt: skip
    assert pixels == [PIXELS, PIXELS]
    assert "add_generation_prompt=True" in ast.unparse(prepare)
    kinds = [
        item.value for item in ast.walk(prepare) if isinstance(item, ast.Constant) and item.value in ("image", "text")
    ]
    assert kinds.index("image") < kinds.index("text")


def test_the_head_has_the_package_s_names_and_shapes():
    made = [ast.unparse(node.value) for node in _nodes("model/qwen2vl_trainer.py", ast.Assign)
            if ast.unparse(node.targets[0]) == "self.rm_head"]  # fmt: skip
    (written,) = [text for text in made if "1024" in text]
    theirs = eval(written, {"nn": nn, "config": SimpleNamespace(hidden_size=32), "output_dim": 2}).state_dict()
    ours = ranknet(32).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
