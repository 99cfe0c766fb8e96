"""Make the section on what was measured without training, see `flash_grpo.mechanism`."""

from collections.abc import Iterator

import pandas as pd

from analysis import mechanism, readings, style
from analysis.captions import LAMBDA, REPEATS
from analysis.drawing import drawn
from analysis.shown import Material, Shown


def mechanisms(given: Material) -> Iterator[Shown]:
    """Yield tables first, so that the figures are side by side."""
    measured = set(given.measurements["quantity"])
    makers = {
        "gradient_norm": ("gradient_norms", "Gradient norm and λ", mechanism.gradient_table),
        "variance_share": ("variance_shares", "What explains rewards in a group", mechanism.variance_shares),
        "alignment": ("alignment", "Estimator alignment", mechanism.alignment_table),
    }
    for quantity, (name, title, table) in makers.items():
        if quantity in measured:
            caption = f"{REPEATS} {LAMBDA}" if quantity == "gradient_norm" else REPEATS
            yield Shown(name=name, title=title, caption=caption, table=table(given.measurements))
    for quantity, drawn_panels in (
        ("gradient_norm", _gradients),
        ("alignment", _alignments),
        ("variance_share", _shares),
    ):
        if quantity in measured:
            yield from drawn_panels(given.measurements)


def _gradients(measurements: pd.DataFrame) -> Iterator[Shown]:
    norms = measurements[measurements["quantity"] == "gradient_norm"]
    for noise in style.ordered_noises(norms["noise"]):
        panel = drawn(lambda ax, noise=noise: mechanism.gradient_against_lambda(ax, norms, noise))
        title = f"Gradient norm against λ, {style.noise_name(noise)}"
        caption = f"{REPEATS} Open markers: steps that a one-step method does not train."
        read = readings.of_gradients(norms, noise)
        yield Shown(name=f"gradient_against_lambda_{noise}", title=title, caption=caption, figure=panel, reading=read)


def _alignments(measurements: pd.DataFrame) -> Iterator[Shown]:
    table = mechanism.alignment_table(measurements)
    for noise in style.ordered_noises(table["SDE noise"]):
        part = table[table["SDE noise"] == noise]
        for column in ("Cosine", "Cosine per device-second"):
            panel = drawn(lambda ax, part=part, column=column: mechanism.alignment(ax, part, column), legend=False)
            name = f"{column.lower().replace(' ', '_').replace('-', '_')}_{noise}"
            title, read = f"{column}, {style.noise_name(noise)}", readings.of_alignment(part, column)
            yield Shown(name=name, title=title, caption=REPEATS, figure=panel, reading=read)


def _shares(measurements: pd.DataFrame) -> Iterator[Shown]:
    panel = drawn(lambda ax: mechanism.variance_by_source(ax, measurements), legend=False)
    title, read = "What explains rewards in a group", readings.of_shares(mechanism.variance_shares(measurements))
    yield Shown(name="variance_by_source", title=title, caption=REPEATS, figure=panel, reading=read)
