"""The lines that `flash_grpo.mechanism` prints."""

import re

import numpy as np
import pytest

from flash_grpo.measure.digest import digest


def test_the_interval_of_a_share_near_1_stays_below_1():
    values = [0.999, 0.9, 0.97, 0.6]
    rows = [
        {"quantity": "variance_share", "noise": "flow", "source": "initial_noise", "value": item} for item in values
    ]
    assert np.mean(values) + 1.96 * np.std(values, ddof=1) / 2 > 1
    found = re.search(r"explained by the initial_noise: (\S+) \[(\S+), (\S+)\] \(95 %, n = 4\)", digest(rows))
    mean, low, high = map(float, found.groups())
    z = np.arctanh(values)
    assert mean == pytest.approx(np.tanh(z.mean()), abs=1e-4)
    assert high == pytest.approx(np.tanh(z.mean() + 1.96 * z.std(ddof=1) / 2), abs=1e-4)
    assert 0 < low < mean < high < 1
