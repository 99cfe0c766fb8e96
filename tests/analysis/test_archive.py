"""Archives of strangers, and archives of nothing: refused in one line, with nothing written and nothing filled up."""

import io
import json
import lzma
import re
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from test_study import write_run, write_study

from analysis import archive, report
from analysis.archive import ArchiveError, pack, unpack
from analysis.study import load_study


def _tar(path: Path, *members: tuple[str, int], kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for name, size in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = size, kind, link
            tar.addfile(entry, _Zeros() if size else None)
    return path


class _Zeros(io.RawIOBase):
    def read(self, size=-1):
        return bytes(size)


def _refused(path: Path, capsys) -> str:
    before = set(path.parent.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        report.main([str(path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert set(path.parent.rglob("*")) == before
    return error


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> Path:
    return _tar(tmp_path_factory.mktemp("bomb") / "bomb.tar.xz", ("s/a/run.json", 900_000_000))


def test_an_archive_that_unpacks_to_900_megabytes_is_refused_while_it_is_read(bomb, capsys):
    assert bomb.stat().st_size < 200_000
    began = time.monotonic()
    tracemalloc.start()
    assert "unpacks to more than 512 MB" in _refused(bomb, capsys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began < 60 and peak < 50e6
    assert sum(file.stat().st_size for file in Path(archive._FOLDERS[-1].name).rglob("*") if file.is_file()) < 2**29


@pytest.mark.parametrize(
    "members",
    [
        [("s/a/run.json", 30_000), ("s/b/run.json", 80_000)],
        [("s/a/checkpoint.pt", 200_000)],  # is not unpacked, but read
        [(f"s/{'x' * 120_000}/run.json", 0)],  # in the header alone
    ],
)
def test_every_byte_that_is_read_counts(members, tmp_path, monkeypatch):
    path = _tar(tmp_path / "s.tar.xz", *members)
    monkeypatch.setattr(archive, "MOST_BYTES", 10**5)
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        unpack(path)


def test_the_number_of_files_is_bounded(tmp_path, monkeypatch):
    path = _tar(tmp_path / "s.tar.xz", *((f"s/{index}/run.json", 0) for index in range(30)))
    monkeypatch.setattr(archive, "MOST_MEMBERS", 20)
    with pytest.raises(ArchiveError, match="more than 20 files"):
        unpack(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_only_plain_files_are_unpacked(kind, tmp_path, capsys):
    path = _tar(tmp_path / "s.tar.xz", ("s/a/run.json", 0), kind=kind, link="/etc/passwd")
    assert "error: " in _refused(path, capsys)


@pytest.mark.parametrize(
    "name", ["../run.json", "../../a/run.json", "/tmp/a/run.json", "s/../../run.json", "run.json", "s/notes"]
)
def test_nothing_is_written_outside_or_beside_a_study(name, tmp_path, capsys):
    path = _tar(tmp_path / "s.tar.xz", (name, 3))
    assert re.search("holds no study|outside the destination", _refused(path, capsys))
    assert list(Path(archive._FOLDERS[-1].name).rglob("*")) == []


@pytest.mark.parametrize("content", [b"", b"no archive", lzma.compress(b""), lzma.compress(b"x" * 5000)])
def test_a_damaged_archive_is_refused(content, tmp_path, capsys):
    (tmp_path / "s.tar.xz").write_bytes(content)
    assert re.search("is damaged, or not an archive|holds no study", _refused(tmp_path / "s.tar.xz", capsys))


def test_a_truncated_archive_is_refused_at_any_length(tmp_path):
    write_run(tmp_path / "s" / "a")
    pack([tmp_path / "s"], tmp_path / "s.tar.xz")
    content = (tmp_path / "s.tar.xz").read_bytes()
    for length in range(0, len(content), len(content) // 40):
        (tmp_path / "cut.tar.xz").write_bytes(content[:length])
        with pytest.raises(ArchiveError, match=r"cut\.tar\.xz: "):
            unpack(tmp_path / "cut.tar.xz")


def test_an_archive_of_nothing_is_not_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_study(tmp_path / "full", gain={"flash": 1.0}, seeds=[0])
    for studies in (["empty"], ["nowhere"], ["full", "empty"], ["full", "./full"]):
        with pytest.raises(SystemExit) as ended:
            archive.main([*(str(tmp_path / study) for study in studies), str(tmp_path / "s.tar.xz")])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        archive.main([str(tmp_path / "full"), str(tmp_path / "nowhere/s.tar.xz")])
    assert ended.value.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    (tmp_path / "bad.tar.xz").write_bytes(b"no archive")
    assert len((study := load_study(tmp_path / "full", tmp_path / "bad.tar.xz")).runs) == 7
    assert "bad.tar.xz: is damaged, or not an archive of studies" in study.notes[0]
    archive.main([str(tmp_path / "full"), str(tmp_path / "s.tar.xz")])
    assert len(load_study(tmp_path / "s.tar.xz").runs) == 7


@pytest.mark.parametrize("root", ["/home/somebody/runs", '/home/ein "Ä"/runs', "runs"])
def test_an_archive_does_not_say_where_on_the_machine_the_runs_lay(root, tmp_path):
    run_dir = write_run(tmp_path / "study" / "run")
    manifest = json.loads((run_dir / "run.json").read_text())
    manifest["config"]["runs_root"] = root
    manifest["reason"] = f"{root}/study/run: disk full"
    (run_dir / "run.json").write_text(json.dumps(manifest))
    pack([tmp_path / "study"], tmp_path / "study.tar.xz")
    packed = json.loads((unpack(tmp_path / "study.tar.xz")[0] / "run" / "run.json").read_text())
    assert packed["config"] == {**manifest["config"], "runs_root": "runs"}
    assert packed["reason"] == "runs/study/run: disk full"


def test_no_committed_archive_holds_a_path_of_the_machine_that_made_it():
    committed = sorted((Path(__file__).parents[2] / "analysis/fixtures").rglob("*.tar.xz"))
    assert len(committed) >= 8
    for file in committed:
        for study in unpack(file):
            for manifest in study.glob("*/run.json"):
                assert json.loads(manifest.read_text())["config"]["runs_root"] == "runs", (
                    f"{file}: {manifest.parent.name}"
                )
