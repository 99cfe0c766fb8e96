"""Whatever happens to a file of a run, it is named in one line or the bytes were not used; nothing else is raised."""

import json
import lzma
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from damage import damaged_bytes, damaged_json, damaged_lines, flipped, places
from hypothesis import given
from hypothesis import strategies as st

from analysis.archive import pack
from analysis.study import load_study
from flash_grpo.records import submissions
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import last_recorded, read_manifest, read_newest_first, read_records, write_manifest
from flash_grpo.records.submissions import SubmittedRun
from flash_grpo.run import checkpoint, loop, stop
from flash_grpo.run.saved import newest_usable
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer

SEEDS = st.integers(0, 2**32)
SHORT = ("schedule.num_steps=5", "method.plan.last_step=3", "budget.iterations=4", "checkpoint.every=1")


@pytest.fixture(scope="module")
def run_dir(config, tmp_path_factory) -> Path:
    """A run that was left in the middle of its third iteration; it holds 000001, 000002 and 000002+001."""
    update = Trainer.update

    def interrupted(self, rollouts, *more):
        if rollouts.batch.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(self, rollouts, *more)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, suppress(stop.Interrupted):
        patch.setattr(Trainer, "update", interrupted)
        cfg = config(*SHORT, "checkpoint.keep=2", f"runs_root={tmp_path_factory.mktemp('left')}")
        loop.run(cfg, cfg.run_name)
    signal.signal(signal.SIGTERM, before)
    return Path(cfg.runs_root, "default/small")


class Files(dict[str, Any]):
    """The content of files by name, which no failure prints."""

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


@pytest.fixture(scope="module")
def content(run_dir) -> Files:
    """The files of the run that tell how far it came."""
    used = [*run_dir.glob("*.json*"), *run_dir.glob("checkpoints/*/*")]
    return Files({str(path.relative_to(run_dir)): path.read_bytes() for path in used})


@contextmanager
def written(files: dict[str, bytes]) -> Iterator[Path]:
    """A folder with these files, for one example."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield Path(folder)


def assert_names(error: BaseException | str, *what: object) -> None:
    """The message is one line that can be printed, and names each of these."""
    message = str(error)
    assert "\n" not in message and message.encode()
    assert all(str(item) in message for item in what), message


# -- run.json, records.jsonl, jobs.jsonl ---------------------------------------------------------------------------


@given(seed=SEEDS)
def test_a_damaged_manifest_is_named_or_reads_as_a_manifest(content, seed):
    random = Random(seed)
    damage = random.choice([damaged_bytes, damaged_json])
    with written({"run.json": damage(random, content["run.json"])}) as folder:
        try:
            manifest = read_manifest(folder)
        except DamagedFileError as error:
            assert_names(error, folder / "run.json", "put it back")
        else:
            assert all(start.job is None or start.job.name for start in manifest.starts)
            write_manifest(folder, manifest)
            assert read_manifest(folder) == manifest


@given(seed=SEEDS)
def test_a_damaged_record_is_named_with_its_line_or_reads_as_a_record(content, seed):
    with written({"records.jsonl": damaged_lines(Random(seed), content["records.jsonl"])}) as folder:
        problem = None
        try:
            records = list(read_records(folder))
        except DamagedFileError as error:
            problem = error
        if problem:
            line = (folder / "records.jsonl").read_bytes().split(b"\n")[problem.line - 1]
            assert_names(
                problem, f"{folder / 'records.jsonl'}, line {problem.line}: ", f"sed -i '{problem.line}s/./ /g'"
            )
            assert line not in content["records.jsonl"].split(b"\n")
            with pytest.raises(DamagedFileError):
                list(read_newest_first(folder))
        else:
            assert records == list(read_newest_first(folder))[::-1]
            progress = [record for record in records if record["kind"] in ("iteration", "evaluation")]
            assert all(record["cost"]["device_seconds"] + record["evaluation_seconds"] < 2e308 for record in progress)
        assert isinstance(last_recorded(folder), int)


LINE = {"run": "seed0", "directory": "runs/s/seed0", "overrides": ["seed=0"], "code": "/code", "point": "p.pkl"}
JOBS = [{**LINE, "job_id": f"7_{number}", "folder": "/logs", "submitted": 1e9, "ranks": 2} for number in range(4)]


@given(seed=SEEDS)
def test_a_damaged_line_of_jobs_jsonl_is_named_and_the_other_lines_are_used(seed):
    lines = [json.dumps(job).encode() for job in JOBS]
    submissions._warn_once.cache_clear()
    with written({".submitit/jobs.jsonl": damaged_lines(Random(seed), b"\n".join([*lines, b""]))}) as study:
        path, said = study / ".submitit/jobs.jsonl", []
        *complete, _ = path.read_bytes().split(b"\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(submissions.log, "warning", said.append)
            read = _submitted(study)
            submissions.append_submitted(path.parent, [SubmittedRun(**{**JOBS[0], "run": "appended"})])
            assert [run.run for run in _submitted(study)].count("appended") == 1
        assert len(read) + len(said) >= len(complete)
        assert [
            job for job, line in zip(JOBS, lines, strict=True) if line in complete and SubmittedRun(**job) not in read
        ] == []
        for line in said:
            assert_names(line, f"{path}, line ", "delete the line")


def _submitted(study: Path) -> list[SubmittedRun]:
    return [run for runs in submissions.read_submitted(study).values() for run in runs]


# -- studies and archives ------------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_a_damaged_study_is_shown_with_notes_that_name_run_and_file(content, seed):
    files = {f"{run}/{name}": content[name] for run in "abc" for name in ("run.json", "records.jsonl")}
    ways = {"run.json": [damaged_bytes, damaged_json], "records.jsonl": [damaged_lines]}
    random = Random(seed)
    broken = random.sample(sorted(files), random.choice([1, 1, 2, 3]))
    for name in broken:
        files[name] = random.choice(ways[name[2:]])(random, files[name])
    with written(files) as folder:
        if random.random() < 0.1:
            Path(folder, broken[0]).unlink()
            Path(folder, broken[0]).mkdir()
        study = load_study(folder)
    assert all(run in set(study.runs["run"]) for run in "abc" if not any(name.startswith(run) for name in broken))
    for run, file in (name.split("/") for name in broken):
        about = " ".join(note for note in study.notes if note.startswith(f"{run}:"))
        if run not in set(study.runs["run"]):
            assert "run.json" in about or "records.jsonl" in about
        elif file == "records.jsonl" and not _reads_well(files[f"{run}/{file}"]):
            assert "records.jsonl" in about
    assert all("\n" not in note and note.encode() for note in study.notes)


def _reads_well(data: bytes) -> bool:
    """Nobody could tell: a file of whole records, which may have been cut at the end of a line."""
    with written({"records.jsonl": data}) as folder, suppress(DamagedFileError):
        return len(list(read_records(folder))) == data.count(b"\n") and data[-1:] in (b"\n", b"")
    return False


@pytest.fixture(scope="module")
def archive(run_dir, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / "study.tar.xz"
    pack([run_dir.parent], path)
    return path.read_bytes()


def _numbers(study) -> dict:
    return {name: getattr(study, name).to_dict("list") for name in ("iterations", "evaluations")}


@given(seed=SEEDS)
def test_a_damaged_archive_is_named_or_holds_what_it_held(archive, seed):
    random = Random(seed)
    inside = random.random() < 0.5
    content = damaged_bytes(random, lzma.decompress(archive) if inside else archive)
    with written({"study.tar.xz": lzma.compress(content) if inside else content}) as folder:
        study = load_study(folder / "study.tar.xz")
        assert all("\n" not in note and note.encode() for note in study.notes)
        if not inside and not any(str(folder / "study.tar.xz") in note for note in study.notes):
            (folder / "whole.tar.xz").write_bytes(archive)
            assert repr(_numbers(study)) == repr(_numbers(load_study(folder / "whole.tar.xz")))


def test_an_archive_with_one_bit_flipped_anywhere_is_never_read_as_another(archive):
    for place in places(len(archive), 40, seed=1):
        with written({"study.tar.xz": flipped(archive, place, 4)}) as folder:
            study = load_study(folder / "study.tar.xz")
            assert study.empty and str(folder / "study.tar.xz") in study.notes[0], place


# -- checkpoints ---------------------------------------------------------------------------------------------------


def _found(folder: Path):
    """What a run that starts in this folder would go on from, and what it would not."""
    return newest_usable(folder, Ranks("cpu"))


def _same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return _same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


@pytest.fixture(scope="module")
def originals(run_dir, content) -> dict[str, tuple]:
    """What each checkpoint holds, by its name."""
    assert [path.name for path in checkpoint.complete(run_dir)] == ["000001", "000002", "000002+001"]
    found = Files()
    for name in ("000001", "000002", "000002+001"):
        state = checkpoint.load(run_dir, name)
        inside = "checkpoints/000002+001/rank000.pt" if "+" in name else ""
        found[name] = (state, checkpoint.of_this_rank(run_dir, name, Ranks("cpu")) if inside in content else None)
    return found


def _assert_an_original(folder: Path, content: dict[str, bytes], originals: dict[str, tuple]) -> None:
    """What is found is one of the original checkpoints, the newest whose own files and records are what they were."""
    found, refused = _found(folder)
    now = {name: (folder / name).read_bytes() for name in content if (folder / name).is_file()}
    whole = [name for name in originals if _untouched(name, originals[name][0], now, content)]
    assert (found.name if found else "") >= max(whole, default="")
    if found:
        assert _same(found.state, originals[found.name][0])
        assert found.unfinished is None or _same(found.unfinished, originals[found.name][1])
    newer = [name for name in sorted(originals, reverse=True) if not found or name > found.name]
    assert list(refused) == [name for name in newer if (folder / "checkpoints" / name).exists()]
    for name, problem in refused.items():
        assert_names(problem, folder)
        assert f"checkpoints/{name}/" in problem or "records.jsonl" in problem


def _untouched(name: str, state: dict, now: dict[str, bytes], content: dict[str, bytes]) -> bool:
    length = state["progress"]["records_length"]
    same_records = now.get("records.jsonl", b"")[:length] == content["records.jsonl"][:length]
    return same_records and all(
        now.get(file) == data for file, data in content.items() if f"checkpoints/{name}/" in file
    )


@given(seed=SEEDS)
def test_no_damaged_checkpoint_is_ever_trained_on(content, originals, seed):
    random, files = Random(seed), {name: content[name] for name in content if name != "run.json"}
    for name in random.sample(sorted(files), random.randrange(1, 5)):
        files[name] = damaged_bytes(random, content[name])
        if random.random() < 0.1:
            del files[name]
    with written(files) as folder:
        _assert_an_original(folder, content, originals)


def test_one_flipped_byte_anywhere_in_a_checkpoint_is_noticed(content, originals):
    for name in [name for name in content if name.startswith("checkpoints/0")]:
        for place in places(len(content[name]), 5, seed=len(name)):
            with written(content | {name: flipped(content[name], place, 255)}) as folder:
                _assert_an_original(folder, content, originals)
                if name.endswith(".pt"):
                    checked = checkpoint.of_this_rank if "rank" in name else checkpoint.load
                    with pytest.raises(DamagedFileError, match="its checksum is not the one in SHA256SUMS"):
                        checked(folder, Path(name).parent.name, *([Ranks("cpu")] if "rank" in name else []))
