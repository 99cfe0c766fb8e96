"""Test what tools/dev_cluster says where it cannot do its work. That it works, every test marked `slurm` shows."""

import importlib.machinery
import importlib.util
import os
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/dev_cluster"
LOCKED = "Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    loader = importlib.machinery.SourceFileLoader("dev_cluster", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("dev_cluster", loader))
    loader.exec_module(module)
    return module


def test_a_lock_of_another_apt_is_one_line(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\necho 'E: {LOCKED}' >&2\necho 'E: Unable to lock' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SystemExit) as left:
        tool.apt_get("update")
    assert left.value.code == 1
    assert capsys.readouterr().err == f"dev_cluster: error: apt-get update: {LOCKED}\n"


def test_installing_needs_root_and_says_so_before_it_writes(tool, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        tool.install()
    assert capsys.readouterr().err == "dev_cluster: error: install: must be called as root\n"
