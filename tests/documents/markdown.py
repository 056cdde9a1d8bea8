"""Blocks of code in the documents."""

import dataclasses
import re
import textwrap

from tests.conftest import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
      page: that it stands in.
      language: of a fence; "" for an indented block, or a fence without one.
      text: without indentation.
    """

    page: str
    language: str
    text: str

    def commands(self) -> list[str]:
        """Its lines, with those that go on joined and comments left out."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = (re.sub(r"(^|\s+)#\s.*", "", line) for line in joined.splitlines())
        return [line for line in lines if line.strip()]


def blocks(page: str) -> list[Block]:
    """Fenced and indented blocks of a page, in order."""
    found: list[Block] = []
    fence, lines, blank = None, [], True
    indented = re.compile(r" {4}")
    for line in [*(ROOT / page).read_text().splitlines(), "end"]:
        opening = re.match(r"\s*```(\w*)\s*$", line)
        if fence is not None:
            if opening:
                found.append(Block(page, fence, textwrap.dedent("\n".join(lines)) + "\n"))
                fence, lines = None, []
            else:
                lines.append(line)
        elif indented.match(line) and (blank or lines):
            lines.append(line)
        elif not line.strip() and lines:
            lines.append("")
        else:
            if lines:
                text = textwrap.dedent("\n".join(lines)).strip("\n")
                found.append(Block(page, "", text + "\n"))
                lines = []
            if opening:
                fence = opening.group(1)
        blank = not line.strip()
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
