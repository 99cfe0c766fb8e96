"""Draw a plot function into a figure of the report's size and look."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, style

SIZE, WIDE = (6.0, 3.7), (9.0, 3.6)


def drawn(plot: Callable[[Axes], Axes], legend: bool = True) -> Figure:
    """Return the figure that `plot` draws into one pair of axes."""
    with style.figure_style():
        figure = Figure(figsize=SIZE)
        ax = figure.subplots()
        plot(ax)
        if legend:
            figures.legend_below(ax)
        return figure


def drawn_pair(plot: Callable[[np.ndarray], object]) -> Figure:
    """Return the figure that `plot` draws into two axes side by side, with one legend below."""
    with style.figure_style():
        figure = Figure(figsize=WIDE)
        axes = figure.subplots(1, 2)
        plot(axes)
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0.01))
        figure.tight_layout()
        return figure
