"""Make the paper's tables and figures from a study (a directory of runs), with intervals.

This package reads the files that `flash_grpo.records.schema` describes and imports nothing else of flash_grpo. It needs no
torch, so it runs on a laptop on copied records. `study` loads the runs, `arms` tells the configurations of a method apart,
`curves` turns data frames into arrays with seeds as rows, and `statistics` and `significance` are pure functions of such
arrays. `tables`, `figures`, `ablation`, `stability`, `mechanism`, `paper` and `verdicts` are functions that take data frames
and return one, or draw on an `ax`. `report` puts all of it on one page. `pricing` replaces a study's costs by estimates for
another model, and `ranking` shows what that changes.
"""
