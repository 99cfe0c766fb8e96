"""Define the style of the figures: one colour, marker and line per method, the same in every figure.

The colours of `METHODS` are at least 7 apart in CIE lightness, so that they differ in greyscale, and at least 25 apart in
Lab as seen with normal, protanopic, deuteranopic and tritanopic vision (a test measures both). Methods also differ in
marker and line.
"""

import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.statistics import Estimate


@dataclass(frozen=True)
class Look:
    """The style and names of one method. name: for tables and legends. short: for axes."""

    name: str
    short: str
    color: str
    marker: str
    line: str | tuple

    @property
    def line_style(self) -> dict:
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}

    def label(self, n: int) -> str:
        """Return the legend's text. Matplotlib leaves out labels that begin with an underscore."""
        return f"{' ' * self.name.startswith('_')}{self.name}, n={n}"


METHODS = {
    "full": Look("Full trajectory (Flow-GRPO)", "Full", "#040d1e", "o", "-"),
    "window": Look("Sliding window (Fast1)", "Window", "#611d72", "s", (0, (6, 2))),
    "naive_one_step": Look("Naive one-step", "Naive", "#958fa2", "X", (0, (1, 1.3))),
    "no_rectification": Look("+ iso-temporal grouping (ITG only)", "ITG only", "#4972cf", "^", (0, (4, 1.5, 1, 1.5))),
    "no_iso_temporal": Look("+ gradient rectification (TGR only)", "TGR only", "#49c482", "v", (0, (3, 1, 1, 1, 1, 1))),
    "flash": Look("Flash-GRPO (ITG + TGR)", "Flash", "#b8060f", "D", "-"),
    "shared_noise": Look("Flash-GRPO + shared initial noise", "Flash, shared noise", "#fab945", "P", (0, (6, 1.5))),
    "short_branches": Look("Short branches from one path", "Short branches", "#09029c", "*", "-"),
}
PUBLISHED = {
    "dancegrpo": Look("DanceGRPO", "DanceGRPO", "#7a4b2a", "<", "-"),
    "mixgrpo": Look("MixGRPO", "MixGRPO", "#00798c", ">", "-"),
    "tempflow": Look("TempFlow-GRPO", "TempFlow", "#d1499b", "h", "-"),
    "branchgrpo": Look("BranchGRPO", "BranchGRPO", "#6b705c", "p", "-"),
    "grpo_guard": Look("GRPO-Guard", "GRPO-Guard", "#3d5a80", "d", "-"),
    "pcpo": Look("PCPO", "PCPO", "#e07a5f", "8", "-"),
    "longcat": Look("LongCat-Video", "LongCat", "#7a4b2a", "v", (0, (5, 3))),
    "flow_cps": Look("Flow-CPS", "Flow-CPS", "#00798c", "s", (0, (5, 3))),
    "neighbor_grpo": Look("Neighbor GRPO", "Neighbor", "#d1499b", "^", (0, (5, 3))),
    "finite_difference": Look("Finite difference (FDFO)", "FDFO", "#6b705c", "D", (0, (5, 3))),
    "awm": Look("Advantage-weighted matching (AWM)", "AWM", "#3d5a80", "o", (0, (5, 3))),
    "diffusion_nft": Look("DiffusionNFT", "DiffusionNFT", "#e07a5f", "X", (0, (5, 3))),
}
"""The presets of other papers: no two have both colour and marker in common, but colours of two may."""

NAMED = METHODS | PUBLISHED
FALLBACK_COLORS = ("#7a4b2a", "#00798c", "#d1499b", "#6b705c", "#3d5a80", "#e07a5f")
FALLBACK_MARKERS = ("<", ">", "h", "p", "d", "8", "*")
FALLBACK_LINES = ((0, (2, 1)), (0, (5, 3)), (0, (3, 1, 1, 1)), (0, (8, 2, 2, 2)))
# fonts with Chinese, Japanese and Korean characters, of usual systems
WIDE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "IPAGothic",
    "Hiragino Sans",
    "Microsoft YaHei",
)
NOISE_NAMES = {
    "linear": "linear SDE noise",
    "flow": "flow SDE noise",
    "cps": "Flow-CPS noise",
    "constant": "constant SDE noise",
    "": "",
}
NOISES = tuple(filter(None, NOISE_NAMES))


def noise_name(noise: str) -> str:
    """Return the SDE's name for titles; an unknown one is shown as it is."""
    return NOISE_NAMES.get(noise, noise)


def look(arm: str) -> Look:
    """Return the look of a method, or of an arm `method key=value …`; an unknown arm always gets the same fallback."""
    method, _, setting = arm.partition(" ")
    setting = re.sub(r"[\w.]*\.(\w+)=", r"\1=", setting)  # optim.lr=… as lr=…
    key = zlib.crc32(f"{method} {setting}".encode())
    plain = NAMED.get(method)
    if plain and not setting:
        return plain
    other = Look(
        name=f"{method} {setting}".strip(),
        short=f"{method} {setting}".strip(),
        color=FALLBACK_COLORS[key % len(FALLBACK_COLORS)],
        marker=FALLBACK_MARKERS[key // 8 % len(FALLBACK_MARKERS)],
        line=FALLBACK_LINES[key // 64 % len(FALLBACK_LINES)],
    )
    return (
        replace(other, name=f"{plain.name}, {setting}", short=f"{plain.short}, {setting}", color=plain.color)
        if plain
        else other
    )


def look_named(name: str) -> Look:
    """Return the look of the arm with this display name."""
    method = next((key for key, item in NAMED.items() if f"{name}, ".startswith(f"{item.name}, ")), None)
    return look(f"{method} {name[len(NAMED[method].name) + 2 :]}".strip() if method else name)


def ordered(arms: Iterable[str]) -> list[str]:
    """Sort arms in the order of the paper's tables, then the presets of others, then unknown methods by name."""
    order = {method: index for index, method in enumerate(NAMED)}
    return sorted(set(arms), key=lambda arm: (order.get(arm.partition(" ")[0], len(order)), _numbers_in(arm), arm))


def _numbers_in(arm: str) -> list[float]:
    """Return the numbers in an arm's settings, so that lr=3e-5 is sorted before lr=1e-4."""
    return [float(number) for number in re.findall(r"=(-?\d+(?:\.\d*)?(?:e-?\d+)?)(?= |$)", arm)]


def ordered_noises(noises: Iterable[str]) -> list[str]:
    return sorted(set(noises), key=lambda noise: (NOISES.index(noise) if noise in NOISES else len(NOISES), noise))


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the defaults for papers: 9 pt sans, thin grey axes, no boxes, text kept as text in PDF and SVG.

    A character that no font has is drawn as an empty box, without a warning: the report has a note on it.
    """
    with matplotlib.rc_context(_defaults()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def families() -> list[str]:
    """Return the font of the figures, and those of WIDE_FONTS that this machine has."""
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in WIDE_FONTS if name in installed)]


def undrawable(texts: Iterable[str]) -> str:
    """Return the characters that no font of the figures has."""
    drawable = set().union(*(get_font(findfont(name)).get_charmap() for name in families()))
    return "".join(sorted({letter for text in texts for letter in text if ord(letter) not in drawable}))


def _defaults() -> dict[str, object]:
    return {
        "figure.dpi": 110,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
        "savefig.pad_inches": 0.04,
        "font.family": "sans-serif",
        "font.sans-serif": families(),
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.edgecolor": "#777777",
        "axes.labelcolor": "#222222",
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=[item.color for item in METHODS.values()]),
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "xtick.color": "#555555",
        "ytick.color": "#555555",
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "lines.linewidth": 1.7,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.handlelength": 3.2,
        "pdf.fonttype": 42,
        "text.parse_math": False,  # a method's name may hold dollar signs
    }


def plain_log_labels(axis: Axis) -> None:
    """Label a logarithmic axis with `0.3` instead of `3 × 10⁻¹`, and with enough labels if it spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(
        MaxNLocator(6) if high / low < 4 else LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def draw_estimate(ax: Axes, row: float, estimate: Estimate, item: Look) -> None:
    """Draw a dot with its interval at height `row`, and the seeds' values if n < 3."""
    if np.isfinite(estimate.low):
        ax.plot([estimate.low, estimate.high], [row, row], color=item.color, linewidth=2.2, solid_capstyle="round")
    for point in estimate.points:
        ax.plot(point, row, item.marker, color=item.color, markersize=4, alpha=0.5, markeredgewidth=0)
    ax.plot(estimate.value, row, item.marker, color=item.color, markersize=7, markeredgecolor="white", zorder=3)
