"""Make texts from records and configurations fit to be shown, where they are read: short, in one line, without controls.

What a format's own syntax would make of the rest is escaped where the format is written: in `analysis.render` for tables and
in `analysis.style.figure_style` for figures; the page's template escapes by itself.
"""

import hashlib
import unicodedata

LONGEST = 80  # characters of a name
LONGEST_TEXT = 500  # of a reason or a note
NO_NAME = "(no name)"


def name(value: object, longest: int = LONGEST) -> str:
    """Return a name that can be shown. Names that differ stay different: one that had to be changed ends in a hash."""
    text = str(value)
    shown = words(text, longest)
    if shown == text and text:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{words(text, longest - 7).removesuffix('…') or NO_NAME}…{digest}"


def words(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return a text in one line, without control, format and unassigned characters, cut to `longest` characters."""
    shown = "".join(_shown(character) for character in str(value)[: 4 * longest])
    shown = " ".join(shown.split())
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _shown(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "CZ" else character
