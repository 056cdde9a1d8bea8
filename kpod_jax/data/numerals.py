"""Rewrites numbers in text to one way of writing them: 1234.5, 3/4, "2 1/2", 90°."""

import re
from collections.abc import Callable, Sequence

_NUMERAL = r"[0-9]{1,20}(?:[.,][0-9]{1,20}){0,9}"


def _without_separators(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9]", "", match[0])


_Rewrite = tuple[str, str | Callable[[re.Match[str]], str]]


def _rewriter(needed: str, rewrites: Sequence[_Rewrite]) -> Callable[[str], str]:
    """Returns a function that makes replacements in order, if a text has what they need."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rewrites]

    def rewrite(text: str) -> str:
        if re.search(needed, text):
            for pattern, replacement in compiled:
                text = pattern.sub(replacement, text)
        return text

    return rewrite


# LaTeX: spaces, text, degrees, fractions of plain numbers.
_without_latex = _rewriter(
    r"[\\~]|\{,",
    (
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"(?<=[0-9])(?:\\[,; ]|~)(?=[0-9]{3})", " "),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox) ?\{([^{}]{0,80})\}", r" \1 "),
        (r"\\[,;: ]|\\(?:left|right)\b", " "),
        (r"\^ ?\{? ?\\circ ?\}?", "\u00b0"),
        (r"\\%", "%"),
        (r"(?<=[0-9]) ?\\[dtc]?frac\b", r" \\frac"),
        (
            rf"\\[dtc]?frac ?(?:\{{ ?(-?{_NUMERAL}) ?\}}|([0-9])) ?"
            rf"(?:\{{ ?({_NUMERAL}) ?\}}|([0-9]))",
            r"\1\2/\3\4",
        ),
    ),
)
# Digits with commas or none, and a decimal point.
_with_point = _rewriter(
    r"[0-9][ .,'_][0-9]",
    (
        # 1.234,56; 1.234.567; 12,34,567; 1'234'567 and 1_000; 1 234 567.
        (
            r"(?<![\w.,])[0-9]{1,3}(?:\.[0-9]{3}){1,9}+,[0-9]{1,9}(?![\w,])",
            lambda match: match[0].replace(".", "").replace(",", "."),
        ),
        (r"(?<![\w.,])[0-9]{1,3}(?:\.[0-9]{3}){2,9}+(?![0-9,])", _without_separators),
        (r"(?<![\w.,])[0-9]{1,2}(?:,[0-9]{2}){1,9},[0-9]{3}(?![0-9])", _without_separators),
        (r"(?<![\w.,])[0-9]{1,3}(?:['_][0-9]{3}){1,9}+(?![0-9])", _without_separators),
        (
            r"(?<![\w.,/:^{-])[1-9][0-9]{0,2}(?: [0-9]{3}){1,9}+(?:,[0-9]{1,2}(?![0-9,]))?"
            r"(?!,?[0-9]|:[0-9]|\^| ?/)",
            lambda match: match[0].replace(" ", "").replace(",", "."),
        ),
        # A decimal comma: 3,5 and 0,125; not the lists 1,2,3 and (3,5).
        (r"(?<![\w.,({\[])([0-9]++),([0-9]{1,2})(?![\w,]|\.[0-9])", r"\1.\2"),
        (r"(?<![\w.,])0,([0-9]{3,9})(?![0-9,])", r"0.\1"),
    ),
)
_with_half = _rewriter(" half", ((r"(?<![\w.,/])([0-9]++) and (?:a|one) half\b", r"\1.5"),))


def simplify(text: str) -> str:
    """Returns plain text (`announcements.plain`) without LaTeX around its numbers.

    Digits keep their thousands commas or lose all separators; the decimal sign is a point.
    """
    return _with_half(_with_point(_without_latex(text)))
