"""Test what tools/fault_campaign plans and prints. The faults themselves need the development cluster."""

import importlib.machinery
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    loader = importlib.machinery.SourceFileLoader("fault_campaign", str(TOOLS / "fault_campaign"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fault_campaign", loader))
    monkeypatch.setitem(sys.modules, "fault_campaign", module)
    loader.exec_module(module)
    return module


def test_a_seed_decides_what_strikes_whom_and_each_kind_strikes_equally_often(campaign):
    kinds = list(campaign.KINDS)
    runs = campaign.planned(2 * len(kinds) + 1, 3, kinds, 60)
    assert runs == campaign.planned(2 * len(kinds) + 1, 3, kinds, 60)
    assert runs != campaign.planned(2 * len(kinds) + 1, 4, kinds, 60)
    struck = Counter(strike.kind for _, strikes in runs.values() for strike in strikes)
    assert sorted(struck.values()) == [2] * (len(kinds) - 1) + [3]
    assert {ranks for ranks, _ in runs.values()} == {1, 2}
    for _, strikes in runs.values():
        moments = [strike.at for strike in strikes]
        assert moments == sorted(set(moments)) and all(0 < moment < 40 for moment in moments)


def test_the_table_counts_faults_by_outcome_over_all_pieces_of_a_campaign(campaign, tmp_path):
    lines = [("full disk", "a", "bit-identical")] * 2 + [("node down", "b", "LOST")]
    results = tmp_path / "results.jsonl"
    results.write_text(
        "".join(json.dumps({"fault": fault, "run": run, "outcome": outcome}) + "\n" for fault, run, outcome in lines)
    )
    text, lost = campaign.table(results)
    assert lost == 1
    assert "| full disk | 2 | 0 | 0 |" in text and "| node down | 0 | 0 | 1 |" in text
    assert text.splitlines()[-1] == "| **3 faults on 2 runs** | 2 | 0 | 1 |"
