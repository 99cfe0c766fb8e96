"""A disk that is full is called so, wherever a write fails; the run goes on, to the same end, once there is space."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from untimed import untimed

from flash_grpo import export
from flash_grpo.records.files import RecordWriter, read_manifest, read_records, write_atomically
from flash_grpo.records.full_disk import RESERVED, FullDiskError, full_disk, naming_full_disk
from flash_grpo.run import checkpoint, directory, loop
from flash_grpo.run.saving import Saver
from flash_grpo.run.stop import Interrupted
from flash_grpo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("schedule.num_steps=5", "method.plan.last_step=3", "budget.iterations=3", "checkpoint.every=1")
LINE = r"^{path}\S*: no space left \(\d\S* [kM]?B of 24 MB are free\); make room and give the command again: .*$"


@pytest.fixture
def disk(tmp_path) -> Path:
    """A file system of 24 MB; a few checkpoints of the tiny world fit."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24000000", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill the disk but for `leave` bytes; return the file that does it."""
    filler = disk / "filler"
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def start(config, root: Path, *overrides: str) -> Path:
    cfg = config(*SHORT, f"runs_root={root}", *overrides)
    return loop.run(cfg, cfg.run_name)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    return start(config, tmp_path_factory.mktemp("whole"))


def assert_it_ends_as(whole: Path, run_dir: Path) -> None:
    assert read_manifest(run_dir).status == "completed"
    assert [untimed(record) for record in read_records(run_dir)] == [untimed(record) for record in read_records(whole)]
    ours, theirs = (checkpoint.newest(place)["parameters"] for place in (run_dir, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in run_dir.iterdir()) == sorted(path.name for path in whole.iterdir())


# where the disk becomes full: what is called then, whether before or after it, and how many bytes are left
MOMENTS = {
    "before the first record": (RecordWriter, "__init__", False, 0),
    "before a record": (loop.Run, "_write", False, 0),
    "before a checkpoint": (Saver, "save", False, 0),
    "too small for a checkpoint": (Saver, "save", False, 1_000_000),
    "before the sums of a checkpoint": (checkpoint, "_finish", False, 0),
    "after the last checkpoint": (loop.Run, "to_the_end", True, 0),
    "before the contact sheet": (loop.contact_sheet, "keep", False, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_becomes_full_is_named_and_the_run_goes_on_when_there_is_space(
    config, disk, whole, monkeypatch, moment
):
    owner, name, after, left = MOMENTS[moment]
    function = getattr(owner, name)

    def filling(*arguments, **more):
        result = function(*arguments, **more) if after else None
        fill(disk, left)
        return result if after else function(*arguments, **more)

    run_dir = disk / "default/small"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, filling)
        with suppress(FullDiskError):
            start(config, disk)
            assert moment == "after the last checkpoint"  # there its own reserve is enough
    if moment != "after the last checkpoint":
        manifest = read_manifest(run_dir)
        if manifest is None:  # not even the reserve was there
            assert moment == "before the first record"
        else:
            assert manifest.status == "failed"
            assert manifest.reason.startswith(f"FullDiskError: {run_dir}") and "no space left (" in manifest.reason
    assert not (run_dir / ".reserve").exists()
    (disk / "filler").unlink()
    start(config, disk)
    assert_it_ends_as(whole, run_dir)


def test_the_line_names_the_file_and_what_is_free(config, disk, monkeypatch):
    save = Saver.save
    monkeypatch.setattr(Saver, "save", lambda self, place: (fill(disk, 100_000), save(self, place)))
    with pytest.raises(FullDiskError, match=LINE.format(path=disk / "default/small/checkpoints/.saving/state.pt")):
        start(config, disk)


def test_a_run_that_cannot_save_what_it_was_asked_to_save_goes_on_from_before(config, disk, whole, monkeypatch):
    update = Trainer.update

    def interrupted(self, rollouts, *more):
        if rollouts.batch.iteration == 3:
            fill(disk)
            signal.raise_signal(signal.SIGTERM)
        return update(self, rollouts, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(FullDiskError):
            start(config, disk)
    (disk / "filler").unlink()
    start(config, disk)
    assert_it_ends_as(whole, disk / "default/small")


def test_a_run_that_has_saved_leaves_as_interrupted_though_run_json_cannot_say_so(config, tmp_path, whole, monkeypatch):
    """Its exit code decides whether Slurm queues it again."""
    update = Trainer.update

    def interrupted(self, rollouts, *more):
        if rollouts.batch.iteration == 2:
            signal.raise_signal(signal.SIGTERM)
        return update(self, rollouts, *more)

    def full(run_dir, manifest):
        raise FullDiskError(errno.ENOSPC, "no space left", str(run_dir))

    def filled(self, reason, leave=directory.RunDirectory.leave):
        with monkeypatch.context() as patch:
            patch.setattr(directory, "write_manifest", full)
            leave(self, reason)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        patch.setattr(directory.RunDirectory, "leave", filled)
        with pytest.raises(Interrupted):
            start(config, tmp_path)
    start(config, tmp_path)
    assert_it_ends_as(whole, tmp_path / "default/small")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_quota_are_known_whatever_library_says_so(tmp_path, number):
    text = os.strerror(number)
    errors = [OSError(number, text), RuntimeError(f'IoError(Os {{ code: {number}, message: "{text}" }})')]
    for error in errors:
        with pytest.raises(FullDiskError) as refusal, naming_full_disk(tmp_path / "not/there"):
            raise error
        kind = {errno.ENOSPC: "no space left (", errno.EDQUOT: "the quota is used up ("}[number]
        assert str(refusal.value).startswith(f"{tmp_path}/not/there: {kind}")
        assert refusal.value.errno == number and "\n" not in str(refusal.value)
    with pytest.raises(OSError, match="Permission") as other, naming_full_disk(tmp_path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert not isinstance(other.value, FullDiskError)


def test_what_there_was_stays_when_it_cannot_be_replaced(disk):
    write_atomically(disk / "run.json", "old")
    writer = RecordWriter(disk, 0)
    fill(disk)
    with pytest.raises(FullDiskError, match=rf"^{disk}/run.json: no space left \(0 B of"):
        write_atomically(disk / "run.json", "new" * 5000)
    assert (disk / "run.json").read_text() == "old"
    with pytest.raises(FullDiskError, match=f"^{disk}/records.jsonl: "):
        writer.append(read_records_like())
    assert (disk / "records.jsonl").read_bytes() == b""
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "records.jsonl", "run.json"]


def read_records_like():
    from flash_grpo.records.schema import FailureRecord

    return FailureRecord(iteration=1, reason="x" * 9000)


def test_a_full_disk_is_seen_from_outside(disk):
    assert full_disk(disk / "not/there") == ""
    fill(disk, RESERVED // 2)
    assert full_disk(disk / "not/there").startswith(f"{disk}/not/there: no space left (131 kB of")


def test_commands_say_it_in_one_line_and_with_exit_code_1(disk, config, small):
    run_dir = start(config, disk)
    fill(disk)
    train = [sys.executable, "train.py", *small, *SHORT, "budget.iterations=4", f"runs_root={disk}"]
    for command in (train, [sys.executable, "-m", "flash_grpo.export", str(run_dir)]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = done.stderr.strip().splitlines()
        assert done.returncode == 1 and said[-1].startswith(f"stopped: {disk}"), done.stderr
        assert "no space left (" in said[-1] and "Traceback" not in done.stderr
    with pytest.raises(SystemExit, match=r"^stopped: .*no space left"):
        export.main([str(run_dir)])
