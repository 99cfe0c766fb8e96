"""Print README's table of what was measured on devices, as Markdown: `python tools/measured_table.py`.

Made of docs/measured/acceptance_*.json, which `python -m flash_grpo.acceptance` writes, and of docs/measured/h100_*.json.
"""

import json
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).resolve().parents[1] / "docs" / "measured"
NOT = "not measured"
PHASES = ("rollout", "decode", "update")
BENCHES = {  # variants of the 1.3B, and the file that a bench wrote of each before there was an acceptance
    "attention=native": "h100_bench_1p3b.json",
    "attention=_native_cudnn": "h100_bench_1p3b_cudnn.json",
    "compile": "h100_bench_1p3b_compile.json",
}
RESUMED = "tiny world, asked to stop and continued, bit-identical"
H100 = "NVIDIA H100 80GB HBM3"


def table(folder: Path = MEASURED) -> str:
    """Return the table: a row for each claim, a column for each device."""
    found = {name: part for file in sorted(folder.glob("acceptance_*.json")) for name, part in [_of_device(file)]}
    found.setdefault(H100, {})
    rows = [["random weights, 480 x 832 x 81", *found], ["---"] * (1 + len(found))]
    for name in (*CLAIMS, RESUMED, *BENCHES):
        cells = [_cell(device, part, name) for device, part in found.items()]
        rows.append([f"1.3B, {name}" if name in BENCHES else name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _of_device(file: Path) -> tuple[str, dict[str, Any]]:
    part = json.loads(file.read_text())
    return part["device"], part


def _cell(device: str, found: dict[str, Any], name: str) -> str:
    if name == RESUMED:
        earlier = json.loads((MEASURED / "h100_resume.json").read_text())
        return str(earlier["resumed_equal"]) if device == earlier["device"] else NOT
    if name in CLAIMS:
        return CLAIMS[name](found) or NOT
    variant = found.get("phases", {}).get(name)
    if variant is None and device == H100:
        variant = json.loads((MEASURED / BENCHES[name]).read_text())
    return _phases(variant) or NOT


def _phases(variant: dict[str, Any] | None) -> str:
    """Return a variant's rates, memory and drift; '' where it was not measured."""
    if not variant or "failed" in variant:
        return ""
    parts = []
    for name in PHASES:
        phase = variant["phases"][name]
        rate = f"{phase['tflop_per_second']:.0f} TFLOP/s"
        share = f" ({phase['share_of_matmul']:.0%} of matmul)" if "share_of_matmul" in phase else ""
        predicted = f" (predicted {phase['predicted_gigabytes']})" if phase.get("predicted_gigabytes") else ""
        parts.append(f"{name} {rate}{share}, {phase['peak_gigabytes']} GB{predicted}")
    drift = [f"drift {variant['ratio_drift']:.1e}"] if "ratio_drift" in variant else []
    return "; ".join([*parts, *drift])


CLAIMS = {
    "matrix products, bfloat16": lambda found: _said(found, "matmul", "{tflop_per_second} TFLOP/s"),
    "14B, whole on one device": lambda found: _phases(found.get("large", {}).get("14B")),
    "tiny world, killed and resumed, bit-identical": lambda found: _said(found, "resume", "{bit_identical}"),
    "base sharded by one NCCL rank": lambda found: _said(found, "shard", "differs by {velocity_difference}"),
    "export loaded by the pipeline": lambda found: _said(found, "export", "differs by {difference}"),
}


def _said(found: dict[str, Any], stage: str, words: str) -> str:
    part = found.get(stage) or {"failed": ""}
    return "" if "failed" in part else words.format(**part)


if __name__ == "__main__":
    print(table())
