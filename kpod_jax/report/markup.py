"""HTML that is escaped unless it was made here: the small vocabulary of the report."""

import html
import re
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from kpod_jax.report import figures


class Html(str):
    """Markup. Any other string is text, and is escaped where it enters a page."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped; None is left out; `class_` is class."""
    inner = "".join(_escaped(child) for child in children if child is not None)
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{inner}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts in a row."""
    return Html(_escaped(between).join(_escaped(part) for part in parts))


def section(title: str, *children: object) -> Html:
    """A section whose heading can be linked to."""
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return tag("section", tag("h2", title), *children, id=name)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    numeric: Sequence[int] = (),
    **kind: object,
) -> Html:
    """A table that scrolls by itself where the page is too narrow.

    Args:
      head: names of the columns.
      rows: their cells.
      numeric: the columns that are set flush right.
      **kind: attributes of the table.
    """

    def cells(name: str, row: Sequence[object]) -> Html:
        return tag(
            "tr",
            *(tag(name, c, class_="n" if i in numeric else None) for i, c in enumerate(row)),
        )

    body = tag("tbody", *(cells("td", row) for row in rows))
    inner = tag("table", tag("thead", cells("th", head)), body, **kind)
    return tag("div", inner, class_="table")


def search(label: str) -> Html:
    """A field that hides the articles of its section that lack a word; without scripts, nothing."""
    field = Html(f'<input type="search" placeholder="{label}" aria-label="{label}">')
    return Html(f'<p class="search" hidden>{field}<output class="muted"></output></p>')


def figure(drawing: Figure, name: str, caption: str) -> Html:
    """A drawing with its caption, which screen readers hear as its description too."""
    image = Html(figures.svg(drawing, name, caption))
    return tag("figure", image, tag("figcaption", caption))


def tiles(values: Iterable[tuple[str, object, str]]) -> Html:
    """Large figures in a row: (what it is, the value, a remark under it)."""
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", what),
                tag("dd", value),
                tag("dd", remark, class_="muted") if remark else None,
            )
            for what, value, remark in values
        ),
        class_="tiles",
    )


def _escaped(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))
