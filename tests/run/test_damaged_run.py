"""A run whose files are damaged: it goes on from what is whole, to the same end, or is refused in one line."""

import json
import logging
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from damage import DEEP, flipped
from untimed import untimed

from flash_grpo import export
from flash_grpo.records.files import read_manifest, read_newest_first, read_records
from flash_grpo.run import checkpoint, loop, stop, stored
from flash_grpo.run.build import ConfigError
from flash_grpo.training.trainer import Trainer

SHORT = (
    "schedule.num_steps=5",
    "method.plan.last_step=3",
    "budget.iterations=3",
    "checkpoint.every=1",
    "checkpoint.keep=3",
)


def _start(config, root: Path, *overrides: str) -> Path:
    cfg = config(*SHORT, f"runs_root={root}", *overrides)
    return loop.run(cfg, cfg.run_name)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    return _start(config, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def left(config, tmp_path_factory) -> Path:
    """The same run, left in the middle of its third iteration."""
    update, before = Trainer.update, signal.getsignal(signal.SIGTERM)

    def interrupted(self, rollouts, *more):
        if rollouts.batch.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(self, rollouts, *more)

    root = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch, suppress(stop.Interrupted):
        patch.setattr(Trainer, "update", interrupted)
        _start(config, root)
    signal.signal(signal.SIGTERM, before)
    return root / "default/small"


@pytest.fixture
def run_dir(left, tmp_path) -> Path:
    """A copy of the left run, to be damaged."""
    return Path(shutil.copytree(left, tmp_path / "default/small"))


def _change(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


# -- checkpoints ---------------------------------------------------------------------------------------------------

MIDDLE, BEFORE = "checkpoints/000002+001", "checkpoints/000002"
DAMAGE = {
    "a flipped bit of the weights": {f"{MIDDLE}/state.pt": lambda data: flipped(data, len(data) // 2, 1)},
    "half a state": {f"{MIDDLE}/state.pt": lambda data: data[: len(data) // 2]},
    "an empty state": {f"{MIDDLE}/state.pt": lambda data: b""},
    "no state": {f"{MIDDLE}/state.pt": None},
    "a flipped bit of a rank's results": {f"{MIDDLE}/rank000.pt": lambda data: flipped(data, len(data) // 2, 16)},
    "no results of a rank": {f"{MIDDLE}/rank000.pt": None},
    "no checksums": {f"{MIDDLE}/SHA256SUMS": None},
    "empty checksums": {f"{MIDDLE}/SHA256SUMS": lambda data: b""},
    "two damaged": {f"{MIDDLE}/state.pt": lambda data: b"", f"{BEFORE}/state.pt": lambda data: flipped(data, 99, 2)},
    "records of its iteration lost": {"records.jsonl": lambda data: data[: data.rindex(b"\n", 0, -1) + 1]},
    "a record of its iteration that is none": {
        "records.jsonl": lambda data: flipped(data, data.rindex(b"\n", 0, -1) + 1, 8)
    },
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_as_if_nothing_had_been(config, how, run_dir, whole, caplog):
    for name, change in DAMAGE[how].items():
        (run_dir / name).unlink() if change is None else _change(run_dir / name, change)
    with caplog.at_level(logging.WARNING):
        assert _start(config, run_dir.parents[1]) == run_dir
    said = [record.getMessage() for record in caplog.records if "goes on from" in record.getMessage()]
    goes_on = "000001" if how == "two damaged" or "records.jsonl" in DAMAGE[how] else "000002"
    assert said and all(line.endswith(f"the run goes on from {goes_on}") and "\n" not in line for line in said)
    assert str(run_dir / next(iter(DAMAGE[how])).replace("SHA256SUMS", "state.pt")) in said[0]
    assert [len(start.set_aside) for start in read_manifest(run_dir).starts] == [0, len(said)]
    assert not list((run_dir / "checkpoints").glob("unusable-*")), "a newer one stands"
    assert [untimed(record) for record in read_records(run_dir)] == [untimed(record) for record in read_records(whole)]
    ended, expected = (checkpoint.newest(directory)["parameters"] for directory in (run_dir, whole))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_without_a_whole_checkpoint_the_run_is_refused_in_one_line_that_names_them(config, run_dir, capsys):
    names = checkpoint.names(run_dir)
    for name in names:
        _change(run_dir / "checkpoints" / name / "state.pt", lambda data: flipped(data, 50, 1))
    with pytest.raises(ConfigError) as refusal:
        _start(config, run_dir.parents[1])
    line = str(refusal.value)
    assert "\n" not in line and all(str(run_dir / "checkpoints" / name / "state.pt") in line for name in names)
    assert f"Put one back from a copy, or delete {run_dir} to begin again" in line
    assert checkpoint.names(run_dir) == names, "nothing is set aside"
    with pytest.raises(SystemExit) as end:
        export.main([str(run_dir)])
    assert end.value.code == 2
    assert "state.pt: its checksum is not the one in SHA256SUMS" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_over_its_records(config, run_dir):
    before = (run_dir / "records.jsonl").read_bytes()
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ConfigError, match="its records reach iteration 2, and it has no checkpoint"):
        _start(config, run_dir.parents[1])
    assert (run_dir / "records.jsonl").read_bytes() == before


def test_only_a_whole_checkpoint_is_evaluated_or_exported(run_dir):
    _change(run_dir / BEFORE / "state.pt", lambda data: flipped(data, len(data) - 1, 1))
    with pytest.raises(
        ValueError, match=r"000002/state.pt: its checksum .*, or take another with --iteration: \[0, 1\]$"
    ):
        stored.saved_state(run_dir, None)
    assert stored.saved_state(run_dir, 1)["progress"]["iteration"] == 1


def test_checkpoints_of_an_earlier_version_are_used_once_they_have_checksums(config, run_dir, whole):
    sums = list(run_dir.rglob("SHA256SUMS"))
    for file in sums:
        subprocess.run(
            ["sha256sum", "--check", "--strict", file.name], cwd=file.parent, check=True, capture_output=True
        )
        file.unlink()
    with pytest.raises(ConfigError, match=r"there is no SHA256SUMS beside it .* if you trust it: ") as refusal:
        _start(config, run_dir.parents[1])
    commands = [
        part.partition("if you trust it: ")[2].rpartition(")")[0] + ")" for part in str(refusal.value).split(" | ")
    ]
    for command in commands:
        subprocess.run(command, shell=True, check=True)
    _start(config, run_dir.parents[1])
    assert [untimed(record) for record in read_records(run_dir)] == [untimed(record) for record in read_records(whole)]


def test_a_crash_while_a_checkpoint_is_replaced_leaves_one_that_is_whole(tmp_path, monkeypatch):
    """After an evaluation an iteration's state replaces the one from before it, in three steps. Each may be the last."""
    for steps in range(4):
        folder, done = tmp_path / str(steps), []
        checkpoint.save(folder, 1, {"weight": torch.zeros(9)}, keep=1)

        def replace(source, target, done=done, steps=steps, replace=checkpoint.os.replace):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(target)
            replace(source, target)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(checkpoint.os, "replace", replace)
            checkpoint.save(folder, 1, {"weight": torch.ones(9)}, keep=1)
        assert len(done) == min(steps, 3)
        assert torch.equal(checkpoint.newest(folder)["weight"], torch.full((9,), float(steps >= 2)))


# -- run.json ------------------------------------------------------------------------------------------------------


def _with(**values):
    return lambda data: json.dumps({**json.loads(data), **values}).encode()


def _without(*names):
    return lambda data: json.dumps({key: value for key, value in json.loads(data).items() if key not in names}).encode()


MANIFESTS = {
    "empty": (lambda data: b"", "is empty"),
    "blank": (lambda data: b" \n\n", "is empty"),
    "halved": (lambda data: data[: len(data) // 2], "is not JSON"),
    "garbage": (lambda data: b"\xff\xfe\x00garbage", "is not text"),
    "NUL bytes": (lambda data: b"\x00" * len(data), "is not JSON"),
    "two of them": (lambda data: data + data, "is not JSON (Extra data"),
    "a list": (lambda data: b"[" + data + b"]", "is not a JSON object but a list"),
    "a number": (lambda data: b"7", "is not a JSON object but 7"),
    "a text": (lambda data: b'"run"', 'is not a JSON object but "run"'),
    "null": (lambda data: b"null", "is not a JSON object but null"),
    "NaN": (lambda data: data.replace(b'"seed": 0', b'"seed": NaN', 1), "NaN is not a number"),
    "deep": (lambda data: b"[" * 100_000, "nests too deeply"),
    "a deep configuration": (_with(config=DEEP), "nests too deeply"),
    "no keys": (lambda data: b"{}", "lacks"),
    "a missing key": (_without("schedule_hash"), "lacks schedule_hash"),
    "a config that is a text": (_with(config="x"), 'config: expected an object, got "x"'),
    "starts that are no list": (_with(starts={"a": 1}), "starts: expected a list, got an object"),
    "a start that is none": (_with(starts=[7]), "starts: 7 is not a JSON object"),
    "a start without time": (_with(starts=[{"iteration": 0}]), "lacks time"),
    "a start at no time": (_with(starts=[{"time": "noon"}]), "'noon' does not match"),
    "a start of no job": (_with(starts=[{"time": "2026-01-01T00:00:00+0000", "slurm": {"SLURM_JOB_ID": 7}}]), "got 7"),
    "a bill that is none": (_with(bill=[1]), "bill: a list is not a JSON object"),
    "a seed that is a text": (_with(seed="0"), 'seed: expected a whole number, got "0"'),
    "a huge number": (_with(world_size=10**400), "world_size: expected a whole number, got a huge number"),
    "half a character": (_with(reason="\ud800"), "is not text"),
    "another version": (_with(format=99, schedule=[1]), "(another version's: format 99, this one has 2)"),
}


@pytest.mark.parametrize("way", MANIFESTS)
def test_a_damaged_run_json_is_refused_in_one_line_and_left_as_it_is(config, way, run_dir):
    damage, said = MANIFESTS[way]
    _change(run_dir / "run.json", damage)
    before = (run_dir / "run.json").read_bytes()
    cfg = config(*SHORT, f"runs_root={run_dir.parents[1]}")
    for read in (lambda: loop.claim(cfg, cfg.run_name), lambda: stored.known_run(run_dir)):
        with pytest.raises(ValueError, match=r"run\.json: ") as refusal:
            read()
        line = str(refusal.value)
        assert line.startswith(f"{run_dir / 'run.json'}: ") and said in line and "\n" not in line and line.encode()
        assert "put it back from a copy, or move it away and give the run's command again" in line
    assert (run_dir / "run.json").read_bytes() == before


def test_a_run_json_that_is_a_directory_is_refused_in_one_line(config, run_dir):
    (run_dir / "run.json").unlink()
    (run_dir / "run.json").mkdir()
    with pytest.raises(ConfigError, match=r"run.json: cannot be read \(Is a directory\)"):
        _start(config, run_dir.parents[1])


def test_the_way_out_of_a_damaged_run_json_continues_the_run(config, run_dir, whole):
    (run_dir / "run.json").rename(run_dir / "run.json.damaged")
    _start(config, run_dir.parents[1])
    assert read_manifest(run_dir).status == "completed"
    assert [untimed(record) for record in read_records(run_dir)] == [untimed(record) for record in read_records(whole)]


def _called(*program: str) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, cwd=root, check=False)


def test_commands_end_with_exit_code_2_and_one_line_and_the_table_goes_on(run_dir, small):
    """The command lines themselves: training, exporting, and the table of a study."""
    _change(run_dir / "run.json", lambda data: data[:99])
    named = f"{run_dir / 'run.json'}: is not JSON"
    train = ["train.py", *small, *SHORT, f"runs_root={run_dir.parents[1]}"]
    for done in (_called(*train), _called("-m", "flash_grpo.export", str(run_dir))):
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {named}")
    table = _called("-m", "flash_grpo.jobs", str(run_dir.parent))
    assert table.returncode == 0 and named in " ".join(table.stdout.split()), table.stderr


# -- records.jsonl -------------------------------------------------------------------------------------------------


def _line(change):
    """Change the third of the lines."""

    def changed(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        return b"".join([*lines[:2], change(lines[2].rstrip(b"\n")) + b"\n", *lines[3:]])

    return changed


RECORDS = {
    "garbage": (_line(lambda line: b"garbage \xff"), "is not text"),
    "not JSON": (_line(lambda line: b"garbage"), "is not JSON"),
    "NUL bytes": (_line(lambda line: b"\x00" * len(line)), "is not JSON"),
    "half a line": (_line(lambda line: line[:40]), "is not JSON"),
    "a list": (_line(lambda line: b"[1]"), "is not a JSON object but a list"),
    "a number": (_line(lambda line: b"1"), "is not a JSON object but 1"),
    "no kind": (_line(lambda line: b"{}"), "is not a record: it has no kind"),
    "a missing key": (_line(_without("cost")), "lacks cost"),
    "no device-seconds": (_line(_with(cost={})), "lacks device_seconds"),
    "NaN": (_line(lambda line: line.replace(b'"loss": ', b'"loss": NaN, "x": ')), "NaN is not a number"),
    "a wrong type": (_line(_with(iteration="2")), 'iteration: expected a whole number, got "2"'),
    "a wrong type within": (
        _line(_with(cost={"device_seconds": []})),
        "cost: device_seconds: expected a finite number",
    ),
    "an infinite number": (
        _line(lambda line: line.replace(b'"loss": ', b'"loss": 1e999, "x": ')),
        "loss: expected a finite",
    ),
    "a huge number": (_line(_with(lr=10**400)), "lr: expected a finite number, got a huge number"),
}


@pytest.mark.parametrize("way", RECORDS)
def test_a_damaged_record_is_named_with_its_line_and_the_way_out(way, run_dir):
    damage, said = RECORDS[way]
    _change(run_dir / "records.jsonl", damage)
    way_out = (
        f"put the file back from a copy, or give this line up: LC_ALL=C sed -i '3s/./ /g' {run_dir / 'records.jsonl'}"
    )
    for read in (read_records, read_newest_first, stored.summary):
        with pytest.raises(ValueError, match="line 3") as refusal:
            list(read(run_dir))
        line = str(refusal.value)
        assert (
            line.startswith(f"{run_dir / 'records.jsonl'}, line 3: {said}"[:60]) and said in line and "\n" not in line
        )
        assert line.endswith(way_out)
    before = (run_dir / "records.jsonl").stat().st_size
    subprocess.run(way_out.partition("line up: ")[2], shell=True, check=True)
    assert [record["iteration"] for record in read_records(run_dir)] == [0, 1]
    assert (run_dir / "records.jsonl").stat().st_size == before


def test_garbage_after_the_checkpoint_s_records_is_cut_off(config, run_dir, whole):
    (run_dir / "records.jsonl").open("ab").write(b'\x00\xff garbage\n{"kind": "iteration"}\n{"half": ')
    _start(config, run_dir.parents[1])
    assert [untimed(record) for record in read_records(run_dir)] == [untimed(record) for record in read_records(whole)]
    assert [start.set_aside for start in read_manifest(run_dir).starts] == [[], []]


def test_a_run_that_gave_its_evaluations_up_still_ends_with_a_summary(run_dir):
    _change(run_dir / "records.jsonl", lambda data: b" " * data.index(b"\n") + data[data.index(b"\n") :])
    assert "they hold no evaluation" in stored.summary(run_dir)


# -- failing -------------------------------------------------------------------------------------------------------


def _spoil(path: Path) -> None:
    path.write_bytes(b"\x00garbage\n")


def _make_a_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("spoil", [_spoil, _make_a_directory])
@pytest.mark.parametrize(
    "names", [("run.json",), ("records.jsonl",), (".failure",), ("run.json", "records.jsonl", ".failure")]
)
def test_what_a_failing_run_cannot_write_does_not_hide_why_it_fails(config, run_dir, monkeypatch, caplog, names, spoil):
    manifest = run_dir / "run.json"
    manifest.write_text(manifest.read_text().replace('"status": "running"', '"status": "completed"'))

    def failing(*_):
        for name in names:
            spoil(run_dir / name)
        raise ArithmeticError("the cause")

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(ArithmeticError, match="the cause"):
        _start(config, run_dir.parents[1])
    if manifest.is_file():
        there = read_manifest(run_dir)
        assert (there.status, there.reason) == ("failed", "ArithmeticError: the cause")
    else:
        assert "the failure could not be noted there: [Errno 21] Is a directory" in caplog.text


@pytest.mark.parametrize("name", ["run.json", "records.jsonl"])
def test_a_completed_run_that_fails_before_it_begins_again_is_not_left_as_completed(config, run_dir, monkeypatch, name):
    manifest = run_dir / "run.json"
    manifest.write_text(manifest.read_text().replace('"status": "running"', '"status": "completed"'))

    def failing(*_):
        _spoil(run_dir / name)
        raise ArithmeticError("the cause")

    monkeypatch.setattr(loop, "prepare_trainer", failing)
    with pytest.raises(ArithmeticError, match="the cause"):
        _start(config, run_dir.parents[1])
    assert (read_manifest(run_dir).status, read_manifest(run_dir).reason) == ("failed", "ArithmeticError: the cause")
