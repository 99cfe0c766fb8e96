"""Plan every sweep on every Slurm shape by the command itself, and print the seconds that each takes.

python tools/plan_times.py [LIMIT]      (LIMIT: CPU-seconds above which the exit code is 1; 5)
"""

import resource
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def used() -> float:
    """Return the CPU-seconds of all commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    limit, slowest = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, 0.0
    names = [sorted(path.stem for path in (ROOT / folder).glob("*.yaml")) for folder in ("sweeps", "slurm")]
    for sweep, shape in product(*names):
        before = used()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, ROOT / "train.py", "-m", f"sweeps={sweep}", f"slurm={shape}", "plan=true"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            left = list(Path(folder).iterdir())
        if done.returncode not in (0, 2) or left:
            print(f"sweeps={sweep} slurm={shape}: exit code {done.returncode}, left {left}: {done.stderr}")
            return 1
        slowest = max(slowest, used() - before)
        print(f"{sweep:16} {shape:12} {used() - before:5.2f} CPU-s  {done.stderr.strip()[:90]}", flush=True)
    print(f"slowest: {slowest:.2f} CPU-s")
    return int(slowest > limit)


if __name__ == "__main__":
    sys.exit(main())
