"""Show doctests of docstrings as code in the documentation: an extension of griffe, see mkdocs.yml."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Fence each doctest, up to the next empty line. Markdown would take >>> for quotations and ['x'] for links."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )
