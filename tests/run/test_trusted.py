"""A run directory, or a model's folder, of a stranger: real attacks, each of which would leave a file behind if it ran."""

import importlib
import inspect
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from flash_grpo import evaluate, export
from flash_grpo.run import loop
from flash_grpo.run.trusted import SENDS, parts, without_foreign_calls

NODES = ("model", "model.lora", "reward", "prompts", "evaluation.sampler", "evaluation.sampler.schedule", "optim.lora")


class Touch:
    """Unpickled, it creates the file: code that a pickle carries."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    cfg = config(f"runs_root={tmp_path_factory.mktemp('runs')}", "budget.iterations=1")
    return loop.run(cfg, cfg.run_name)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "code_ran"


@pytest.fixture
def stranger(finished, tmp_path):
    """`stranger("model", {…})`: a run's directory whose run.json has this node."""

    def made(key: str, node: object) -> Path:
        run_dir = shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
        manifest = json.loads((finished / "run.json").read_text())
        inner = manifest["config"]
        *groups, last = key.split(".")
        for group in groups:
            inner = inner[group]
        inner[last] = {**inner[last], **node} if isinstance(node, dict) and isinstance(inner.get(last), dict) else node
        (run_dir / "run.json").write_text(json.dumps(manifest))
        return run_dir

    return made


@pytest.fixture
def attacks(tmp_path, canary, monkeypatch) -> dict[str, dict]:
    """Nodes of a configuration, by name, that would create the canary if Hydra built them."""
    pickled = tmp_path / "data.pkl"
    pickled.write_bytes(pickle.dumps(Touch(canary)))
    (tmp_path / "hubconf.py").write_text(
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\ndef make(**_): ...\n"
    )
    (tmp_path / "imported_only.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load = {"f": str(pickled), "weights_only": False}
    return {
        "pandas": {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(pickled)},
        "hub": {"_target_": "torch.hub.load", "repo_or_dir": str(tmp_path), "model": "make", "source": "local"},
        "os": {"_target_": "os.system", "_args_": [f"touch {canary}"]},
        "builtin": {"_target_": "builtins.exec", "_args_": [f"open({str(canary)!r}, 'w')"]},
        "chain": {"_target_": "flash_grpo.policies.wan.torch.load", **load},
        "deeper chain": {
            "_target_": "flash_grpo.run.build.torch.serialization.os.system",
            "_args_": [f"touch {canary}"],
        },
        "own function": {"_target_": "flash_grpo.cluster.node.run_again", "point": str(pickled)},
        "own command": {"_target_": "flash_grpo.cluster.slurm.output_of", "_args_": ["touch", str(canary)]},
        "import alone": {"_target_": "imported_only.anything"},
        "nested": {"inner": [{"deep": {"_target_": "os.system", "_args_": [f"touch {canary}"]}}]},
        "unbuilt children": {"_recursive_": False, "inner": {"_target_": "os.system", "_args_": [f"touch {canary}"]}},
        "partial": {"_partial_": True, "_target_": "os.system", "_convert_": "all"},
        "composed": {"_target_": "os.${oc.env:SYSTEM_CALL,system}", "_args_": [f"touch {canary}"]},
        "yaml text": f"{{_target_: os.system, _args_: ['touch {canary}']}}",
        "no text": {"_target_": ["os.system"]},
    }


ATTACKS = ("pandas", "hub", "os", "builtin", "chain", "deeper chain", "own function", "own command", "import alone")
ATTACKS += ("nested", "unbuilt children", "partial", "composed", "no text")


def _refused(command, arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_stranger_s_run_calls_nothing_foreign(attack, attacks, stranger, canary, capsys):
    for key in NODES:
        run_dir = stranger(key, attacks[attack])
        error = _refused(evaluate.main, [str(run_dir)], capsys)
        assert "run.json" in error and "--trust" in error
        if key.startswith(("model", "optim")):
            _refused(export.main, [str(run_dir)], capsys)
    assert not canary.exists()


def test_a_configuration_that_is_a_text_is_not_read_as_yaml(attacks, finished, tmp_path, canary, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((run_dir / "run.json").read_text())
    for config in (f"model: {attacks['yaml text']}", [attacks["os"]], None):
        (run_dir / "run.json").write_text(json.dumps({**manifest, "config": config}))
        for command in (export.main, evaluate.main):
            assert "config" in _refused(command, [str(run_dir)], capsys)
    assert not canary.exists()


def test_trust_calls_what_run_json_names_and_the_refusal_says_so(attacks, stranger, canary, capsys):
    run_dir = stranger("model", attacks["os"])
    error = _refused(export.main, [str(run_dir)], capsys)
    assert "model._target_='os.system'" in error and "--trust" in error and not canary.exists()
    assert "blocklisted" in _refused(export.main, [str(run_dir), "--trust"], capsys)  # Hydra's own list stays in force
    run_dir = stranger("optim.lora", attacks["import alone"])
    with pytest.raises(SystemExit):
        export.main([str(run_dir), "--trust"])
    assert canary.exists()


def test_a_method_of_one_s_own_needs_no_trust_because_no_command_builds_it(stranger, attacks, canary):
    run_dir = stranger("method.plan", attacks["os"])
    assert export.export(run_dir).is_dir()
    evaluate.main([str(run_dir), "evaluation.sampler.noises_per_prompt=1"])
    assert not canary.exists()


def test_what_the_user_types_is_built_although_the_run_names_another(stranger, attacks, canary, capsys):
    run_dir = stranger("reward", attacks["os"])
    evaluate.main([str(run_dir), "--reward", "brightness"])
    assert "reward" in capsys.readouterr().out and not canary.exists()


def test_reward_servers_of_a_stranger_get_neither_videos_nor_token(stranger, capsys):
    run_dir = stranger("reward", {"_target_": SENDS, "urls": ["http://203.0.113.1:8700"]})
    assert "token" in _refused(evaluate.main, [str(run_dir)], capsys)


def test_every_part_is_an_object_of_this_package_or_an_optimizer():
    for target in parts():
        module, _, name = target.rpartition(".")
        made = getattr(importlib.import_module(module), name)
        if target.startswith("torch.optim."):
            assert issubclass(made, torch.optim.Optimizer)
        else:
            assert f"{made.__module__}.{made.__qualname__}" == target and inspect.getmodule(made) is not None
    assert SENDS not in parts()


def test_a_stored_configuration_stays_as_it_is_except_for_targets_that_nobody_builds():
    config = {
        "model": {"_target_": "flash_grpo.policies.wan.WanPolicy", "path": "x"},
        "seed": 3,
        "list": [1, None, "a"],
    }
    assert without_foreign_calls(config) == config
    assert without_foreign_calls({"method": {"name": "m", "plan": {"_target_": "mine.X"}}}) == {
        "method": {"name": "m", "plan": {}}
    }


def test_continuing_a_stranger_s_run_builds_the_command_line_s_configuration(
    attacks, stranger, config, canary, tmp_path
):
    for key in ("model", "method.plan", "reward", "schedule"):
        run_dir = stranger(key, attacks["os"])
        cfg = config(f"runs_root={run_dir.parents[1]}", f"study={run_dir.parent.name}", "run_name=run")
        with pytest.raises(ValueError, match=r"another configuration .*_target_"):
            loop.run(cfg, "run")
    assert not canary.exists()


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder"])
def test_the_index_of_a_model_s_folder_names_classes_from_a_list(part, wan_folder, tmp_path, stranger, canary, capsys):
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text())
    for named in (
        ["pandas", "read_pickle"],
        ["diffusers", "AutoencoderKL"],
        ["torch.hub", "load"],
        None,
        "os",
        [["os"]],
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, part: named}))
        run_dir = stranger("model", {"path": str(folder)})
        error = _refused(export.main, [str(run_dir)], capsys)
        assert f"as {part}; supported is" in error
    assert not canary.exists()


def test_a_checkpoint_or_weights_that_are_a_pickle_run_no_code(stranger, wan_folder, tmp_path, canary):
    run_dir = stranger("model", {})
    for state in run_dir.glob("checkpoints/*/*.pt"):
        torch.save({"ema": Touch(canary)}, state)
    with pytest.raises(BaseException, match=r"."):
        export.main([str(run_dir)])
    assert not canary.exists()
    folder = shutil.copytree(wan_folder, tmp_path / "wan")
    for weights in list(folder.rglob("*.safetensors")):
        name = "pytorch_model.bin" if weights.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save({"weight": Touch(canary)}, weights.with_name(name))
        weights.unlink()
    with pytest.raises(BaseException, match=r"."):
        export.main([str(stranger("model", {"path": str(folder)}))])
    assert not canary.exists()
