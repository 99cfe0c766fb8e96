"""Make interactive curves from drawn figures, so that both show the same numbers.

A figure becomes a chart if it has one pair of axes, with lines whose gid is an arm. A band with the same gid is the line's
interval. `analysis/vendor/plotly-basic.min.js` draws what `chart` returns (plotly.js, MIT licence).
"""

import base64
import html
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "X": "x",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "P": "cross",
}
SYMBOLS |= {
    "*": "star",
    "<": "triangle-left",
    ">": "triangle-right",
    "h": "hexagon",
    "p": "pentagon",
    "d": "diamond-tall",
}
SYMBOLS |= {"8": "octagon"}
PIXELS = 1.4  # CSS pixels of a point of matplotlib, so that a chart looks like its picture
GREY, FAINT = "#555555", "#e6e6e6"


def chart(figure: Figure) -> dict[str, Any] | None:
    """Return the lines and the layout for `report.js`, which makes plotly.js's traces of them; None if there are no lines.

    A line is a trace; one that has a band also has its lower and upper ends: low, high, fillcolor.
    """
    if len(figure.axes) != 1:
        return None
    [ax] = figure.axes
    lines = [line for line in ax.get_lines() if line.get_gid()]
    bands = {band.get_gid(): band for band in ax.collections if isinstance(band, PolyCollection)}
    named = [line for line in lines if line.get_linewidth() > 0 and not line.get_label().startswith("_")]
    traces = [_unnamed(line) for line in lines if line not in named]
    traces += [_line(line, bands.get(line.get_gid())) for line in named]
    return {"lines": traces, "layout": _layout(ax)} if lines else None


def _line(line: Line2D, band: PolyCollection | None) -> dict[str, Any]:
    interval = " [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]" if band else ""
    trace = _trace(line) | {
        "name": _name(line),
        "mode": "lines+markers",
        "line": _stroke(line),
        "marker": {"symbol": SYMBOLS.get(str(line.get_marker()), "circle"), "size": 7, "maxdisplayed": 6},
        "hovertemplate": f"%{{y:.4~g}}{interval}",
    }
    if band is None:
        return trace
    low, high = _interval(band)
    return trace | {"low": _packed(low), "high": _packed(high), "fillcolor": f"{to_hex(line.get_color())}24"}


def _name(line: Line2D) -> str:
    """Return the legend's text with the method's short name; plotly.js would read tags in it."""
    look = style.look(line.get_gid())
    return html.escape(line.get_label().strip().replace(look.name, look.short, 1))


def _unnamed(line: Line2D) -> dict[str, Any]:
    """Return a run of its own, a thin line, or points, of a seed or rings: they are switched with their method."""
    points, ring = line.get_linewidth() == 0, line.get_markerfacecolor() == "none"
    symbol = SYMBOLS.get(str(line.get_marker()), "circle") + "-open" * ring
    marker = {"symbol": symbol, "size": 14 if ring else 4, "color": to_hex(line.get_color())}
    look = {"mode": "markers", "marker": marker} if points else {"mode": "lines", "line": _stroke(line)}
    return _trace(line) | look | {"opacity": line.get_alpha() or 1.0, "showlegend": False, "hoverinfo": "skip"}


def _interval(band: PolyCollection) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper end at each point; `fill_between` goes there along the one and back along the other."""
    corners = band.get_paths()[0].vertices
    points = (len(corners) - 3) // 2
    there, back = corners[1 : 1 + points, 1], corners[2 + points : 2 + 2 * points, 1][::-1]
    return np.minimum(there, back), np.maximum(there, back)


def _trace(line: Line2D) -> dict[str, Any]:
    return {"x": _packed(line.get_xdata()), "y": _packed(line.get_ydata()), "legendgroup": line.get_gid()}


def _packed(values: np.ndarray) -> dict[str, str]:
    """Return an array as plotly.js reads it: base64 of 32-bit floats, a third of the decimals' size."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()}


def _stroke(line: Line2D) -> dict[str, Any]:
    width = line.get_linewidth() * PIXELS
    look = style.look(line.get_gid()).line if line.get_linestyle() != "-" else "-"
    dash = ",".join(f"{length * width:.1f}px" for length in look[1]) if isinstance(look, tuple) else "solid"
    return {"color": to_hex(line.get_color()), "width": width, "dash": dash}


def _layout(ax: Axes) -> dict[str, Any]:
    common = {"gridcolor": FAINT, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY}
    title = {"font": {"size": 13}, "standoff": 6}
    return {
        "xaxis": {**common, "title": {"text": ax.get_xlabel(), **title}, "hoverformat": ".4~g", "automargin": True},
        "yaxis": {**common, "title": {"text": ax.get_ylabel(), **title}, "type": ax.get_yscale()},
        "font": {"size": 12, "color": "#222222"},
        "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "tracegroupgap": 0},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#aaaaaa", "activecolor": GREY},
        "hovermode": "x unified",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
