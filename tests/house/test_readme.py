"""What the README says of the cost of the paper's tables, and of what was measured, is what the tools print."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "tools"))

import measured_table  # noqa: E402
import plan_table  # noqa: E402


def test_the_table_is_what_its_command_prints():
    assert plan_table.table() in README


def test_the_table_has_every_sweep_of_real_models():
    sweeps = {path.stem for path in (ROOT / "sweeps").glob("*.yaml") if "recipe: wan2" in path.read_text()}
    assert set(plan_table.SHAPES) == sweeps


def test_the_table_of_measured_devices_is_what_its_command_prints():
    assert measured_table.table() in README


def test_a_device_s_acceptance_becomes_a_column(tmp_path):
    phase = {"tflop_per_second": 50.0, "share_of_matmul": 0.5, "peak_gigabytes": 7.0, "predicted_gigabytes": 7.1}
    variant = {"phases": dict.fromkeys(measured_table.PHASES, phase), "ratio_drift": 1e-4}
    found = {
        "device": "A100",
        "matmul": {"tflop_per_second": 100},
        "phases": {"compile": variant},
        "shard": {"failed": "x"},
    }
    (tmp_path / "acceptance_a100.json").write_text(json.dumps(found))
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in measured_table.table(tmp_path).splitlines()
    }
    assert rows["matrix products, bfloat16"] == "100 TFLOP/s"
    assert rows["base sharded by one NCCL rank"] == rows["1.3B, attention=native"] == "not measured"
    assert rows["1.3B, compile"].startswith("rollout 50 TFLOP/s (50% of matmul), 7.0 GB (predicted 7.1); decode")
    assert rows["1.3B, compile"].endswith("drift 1.0e-04")
