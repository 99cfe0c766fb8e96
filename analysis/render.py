"""Write a table of `Estimate`s, numbers and words as Markdown, CSV, LaTeX, HTML or for the terminal."""

import html
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
MARKDOWN_SPECIALS = str.maketrans({**{sign: f"\\{sign}" for sign in "\\|`*[]$"}, "<": "&lt;"})
LATEX_SPECIALS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        ">": "$>$",
        "|": "$|$",
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "λ": r"$\lambda$",
        "×": r"$\times$",
        "≥": r"$\ge$",
        "<": "$<$",
        "–": "--",
        MINUS: "$-$",
    }
)


def half_width(estimate: Estimate) -> float:
    """Return half the width of the interval; without an interval, half the spread of the points, else 3 % of the value.

    Of an interval without an upper end it is what lies below the value.
    """
    if np.isposinf(estimate.high):
        return estimate.value - estimate.low
    if np.isfinite(estimate.low) and estimate.high - estimate.low > 1e-9 * abs(estimate.value):  # less is rounding
        return (estimate.high - estimate.low) / 2
    return float(np.ptp(estimate.points or [0]) / 2) or abs(estimate.value) / 30


def digits(width: float) -> int:
    """Return how many decimals show two significant digits of a half-width."""
    return int(np.clip(1 - np.floor(np.log10(width if width > 0 else 1)), 0, 4))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Format every cell of the table as text."""
    return pd.DataFrame({name: _column_text(list(table[name])) for name in table.columns}, columns=table.columns)


def _column_text(values: Sequence) -> list[str]:
    """Format a column, with the same number of decimals in every cell unless the widths of its intervals differ tenfold."""
    widths = [half_width(value) for value in values if isinstance(value, Estimate) and np.isfinite(value.value)]
    alike = widths and max(widths) < 10 * min(widths)
    common = digits(float(np.quantile(widths, 0.75))) if widths else 0
    own = [digits(half_width(value)) if isinstance(value, Estimate) and not alike else common for value in values]
    return [_text(value, decimals) for value, decimals in zip(values, own, strict=True)]


def _text(value: object, decimals: int) -> str:
    if isinstance(value, Estimate):
        return value.text(decimals)
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    return str(value)


def to_markdown(table: pd.DataFrame) -> str:
    head = [_markdown(name) for name in table.columns]
    rows = [head, ["---"] * len(head), *_escaped(table, _markdown)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _escaped(table: pd.DataFrame, escape: Callable[[str, bool], str]) -> list[list[str]]:
    """Return the rows of the table as text, each cell escaped. escape: is told if the cell is an estimate."""
    text = cells(table)
    columns = [
        [escape(cell, isinstance(value, Estimate)) for cell, value in zip(text[name], table[name], strict=True)]
        for name in table.columns
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _markdown(text: str, is_estimate: bool = False) -> str:
    return text if is_estimate else text.translate(MARKDOWN_SPECIALS)


def to_csv(table: pd.DataFrame) -> str:
    """Return the table as CSV, every estimate as four columns: value, low, high, n. Other cells keep their value."""
    columns = {}
    for name in table.columns:
        values = list(table[name])
        columns[name] = [value.value if isinstance(value, Estimate) else value for value in values]
        if any(isinstance(value, Estimate) for value in values):
            for part in ("low", "high", "n"):
                columns[f"{name} ({part})"] = [
                    getattr(value, part, "") if isinstance(value, Estimate) else "" for value in values
                ]
    return pd.DataFrame(columns).to_csv(index=False)


def to_latex(table: pd.DataFrame, caption: str = "", label: str = "") -> str:
    """Return a booktabs table."""
    head = " & ".join(_latex(name) for name in table.columns)
    rows = [" & ".join(row) for row in _escaped(table, _latex)]
    align = "".join("l" if _css_class(list(table[name])) == "words" else "r" for name in table.columns)
    return LATEX_TABLE % {
        "caption": _latex(caption),
        "label": label,
        "align": align,
        "head": head,
        "rows": "\n".join(rf"{row} \\" for row in rows),
    }


LATEX_TABLE = r"""\begin{table}
\centering
\caption{%(caption)s}
\label{tab:%(label)s}
\begin{tabular}{%(align)s}
\toprule
%(head)s \\
\midrule
%(rows)s
\bottomrule
\end{tabular}
\end{table}
"""


def _latex(text: str, is_estimate: bool = False) -> str:
    """Escape special characters; set an estimate with its interval in maths mode, which has proper minus signs."""
    if is_estimate and " " in text:
        return f"${text.replace(' ', chr(92) + ' ', 1)}$"
    return text.translate(LATEX_SPECIALS)


def to_html(table: pd.DataFrame) -> str:
    """Return an HTML table whose cells carry their column's name, so that a narrow screen can stack them (see report.css)."""
    text = cells(table)
    kinds = {name: _css_class(list(table[name])) for name in table.columns}
    head = "".join(f'<th class="{kinds[name]}">{html.escape(name)}</th>' for name in table.columns)
    rows = [
        "".join(_html_cell(name, kinds[name], table[name].iloc[row], text[name].iloc[row]) for name in table.columns)
        for row in range(len(table))
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="sorts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _css_class(values: Sequence) -> str:
    """Return the CSS class of a column: "words" are aligned left and may wrap, "number" (also `8 of 9`) right without wrap."""
    return "words" if any(isinstance(value, str) and len(value) > 12 for value in values) else "number"


def _html_cell(name: str, kind: str, value: object, text: str) -> str:
    shown = html.escape(text)
    if isinstance(value, Estimate | float):
        number, _, interval = shown.replace("-", MINUS).partition(" ")
        shown = number + (f' <span class="interval">{interval}</span>' if interval else "")
    first, _, rest = text.partition(":")
    mark = first if first in ("supported", "contradicted") and ";" not in rest else ""
    return f'<td class="{kind} {mark}" data-label="{html.escape(name)}"><span>{shown}</span></td>'


def to_terminal(table: pd.DataFrame) -> str:
    """Return the table as text with aligned columns: the first left, the others right."""
    text = cells(table)
    widths = [max(len(name), *(len(cell) for cell in text[name])) if len(text) else len(name) for name in text.columns]
    rows = [list(text.columns), ["─" * width for width in widths], *text.to_numpy().tolist()]
    aligned = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)
