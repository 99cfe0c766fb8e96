"""From a study (a directory of runs) to the paper's tables and figures, with honest intervals.

Reads what `flash_grpo.records.schema` wrote and imports nothing else of the package: no torch, so it runs on a laptop on
copied records. `study` loads, `curves` turns frames into arrays with seeds as rows, `statistics` are pure functions of
such arrays, the artefacts (`tables`, `figures`, `ablation`, `stability`, `mechanism`, `paper`, `verdicts`) are
functions from frames to a frame or an `ax`, and `report` puts them on one page.
"""
