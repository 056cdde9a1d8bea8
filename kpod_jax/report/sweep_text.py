"""The comparison of a sweep as plain text, Markdown and LaTeX, with its verdict."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kpod_jax.evaluation.comparison import escaped, is_significant, points
from kpod_jax.report import summary

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "–": "--",
    "±": r"$\pm$",
    "<": "$<$",  # LaTeX's default font encoding has other signs here.
    ">": "$>$",
    "|": "$|$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
SPREAD = (
    "Final-answer accuracy in percent, mean ± standard deviation over seeds. * marks p < 0.05 "
    "against {reference} in a paired test, with Holm's correction within each column."
)
TOKENS = "rationale tokens"
TOKENS_MEANT = (
    "Rationale tokens are those supervised in training, in thousands, averaged over seeds."
)
_MAX_NAMES = 4  # Methods named in a sentence; more are only counted.
PAPERS = "as published, with another teacher, other rationales and splits"


def verdict(result: Mapping[str, Any]) -> str:
    """Returns one or two sentences on what the first column shows about the reference.

    Args:
      result: contents of `comparison.json`.
    """
    reference, column = result["reference"], result["columns"][0]
    row = next(row for row in result["rows"] if row["name"] == reference)
    cell = row["cells"][0]
    if cell is None:
        return f"{reference} was not evaluated on {column['name']}."
    count = len(cell["seeds"])
    seeds = f"; mean of {count} seeds, ± {100 * cell['spread']:.1f}" if count > 1 else ""
    low, high = cell["interval"]
    first = (
        f"{reference} answers {summary.percent(cell['mean'])} of the "
        f"{cell['seeds'][0]['total']:,} {column['name']} {column['split']} questions correctly "
        f"(95% interval "
        f"{summary.percent(low, high)}{seeds})."
    )
    better, worse, similar = [], [], []
    for other in result["rows"]:
        test = (other["cells"][0] or {}).get("against")
        if test:
            if not is_significant(test):
                group = similar
            else:
                group = better if test["difference"] > 0 else worse
            group.append(other["name"])
    parts = [
        f"{relation} {_list(names)}"
        for relation, names in (
            ("better than", better),
            ("worse than", worse),
            ("not significantly different from", similar),
        )
        if names
    ]
    second = f" In paired tests it is {'; '.join(parts)}." if parts else ""
    return first + second


def accuracy(cell: Mapping[str, Any]) -> str:
    """Formats the mean in percent, with its spread if there is one."""
    spread = "" if cell["spread"] is None else f" ± {100 * cell['spread']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread}"


def plain(result: Mapping[str, Any]) -> str:
    """Formats the result for a terminal, one line per row and column, with the verdict."""
    width = max(24, *(len(row["name"]) + 2 for row in result["rows"]))
    lines = []
    for i, column in enumerate(result["columns"]):
        head = column["name"] if len(result["columns"]) > 1 else "method"
        lines.append(f"{head:<{width}}{'accuracy':>10}{'spread':>9}{'tokens':>9}  of each seed")
        cells = [(row["name"], cell) for row in result["rows"] if (cell := row["cells"][i])]
        for name, cell in cells:
            spread = "" if cell["spread"] is None else f"± {100 * cell['spread']:.1f}"
            each = ", ".join(f"{100 * seed['accuracy']:.1f}" for seed in cell["seeds"])
            tokens = thousands(cell)
            lines.append(
                f"{name:<{width}}{100 * cell['mean']:>9.1f}%{spread:>9}{tokens:>9}  {each}"
            )
        total = max((cell["seeds"][0]["total"] for _, cell in cells), default=0)
        lines.append(
            f"{column['split']} split, {total} questions; spread: standard deviation; tokens: "
            "supervised rationale tokens, in thousands\n"
        )
    lines.append(verdict(result))
    return "\n".join([*lines, *result["notes"]])


def markdown(result: Mapping[str, Any]) -> str:
    """Formats the table, its tests and the failures as Markdown; names are escaped."""
    columns, reference = result["columns"], escaped(result["reference"])
    lines = [
        f"# {escaped(result['sweep'])}",
        "",
        escaped(verdict(result)),
        "",
        f"| method | seeds | {TOKENS} | {' | '.join(escaped(c['name']) for c in columns)} |",
        f"| --- | --- | --- |{' --- |' * len(columns)}",
    ]
    for row in result["rows"]:
        cells = [_marked(cell, r"\*") for cell in row["cells"]]
        tokens = row_tokens(row, columns)
        lines.append(f"| {escaped(row['name'])} | {seeds(row)} | {tokens} | {' | '.join(cells)} |")
    for name, values in papers(result):
        cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append(f"| {escaped(name)} (paper) | | | {' | '.join(cells)} |")
    lines += ["", f"{SPREAD.format(reference=reference)} {TOKENS_MEANT}".replace("*", r"\*"), ""]
    if papers(result):
        lines += [f"Paper: {PAPERS}.", ""]
    for i, column in enumerate(columns):
        tested = [(row, cell) for row in result["rows"] if (cell := row["cells"][i])]
        tested = [(row, cell) for row, cell in tested if cell["against"]]
        if tested:
            lines += [
                f"## {escaped(column['name'])}: {reference} minus each other method",
                "",
                "| method | points | 95% interval | p | Holm |",
                "| --- | --- | --- | --- | --- |",
                *(_test_row(row["name"], cell["against"]) for row, cell in tested),
                "",
            ]
    lines += [f"- {escaped(name)} failed: {escaped(why)}" for name, why in result["failed"].items()]
    lines += [f"- {escaped(note)}" for note in result["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def latex(result: Mapping[str, Any]) -> str:
    r"""Formats a table for a paper; it needs `\usepackage{booktabs}`."""
    columns = result["columns"]
    head = " & ".join(["Method", TOKENS.capitalize(), *(tex(column["name"]) for column in columns)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for row in result["rows"]:
        cells = [_marked(cell, "$^{*}$").replace("±", r"$\pm$") for cell in row["cells"]]
        lines.append(rf"{' & '.join([tex(row['name']), row_tokens(row, columns), *cells])} \\")
    if published := papers(result):
        lines.append(r"\midrule")
        for name, values in published:
            cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
            lines.append(rf"{' & '.join([f'{tex(name)} (paper)', '', *cells])} \\")
    counts = sorted({len(cell["seeds"]) for row in result["rows"] for cell in row["cells"] if cell})
    caption = SPREAD.format(reference=result["reference"])
    caption += f" {TOKENS_MEANT} Seeds: {' or '.join(map(str, counts))}."
    if published:
        caption += f" The paper's rows: {PAPERS}."
    caption = tex(caption).replace(" * ", " $^{*}$ ")
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{caption}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Escapes text for LaTeX, on one line."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def seeds(row: Mapping[str, Any]) -> str:
    """Lists the seeds of all cells of a row."""
    numbers = {seed["seed"] for cell in row["cells"] if cell for seed in cell["seeds"]}
    return ", ".join(map(str, sorted(numbers)))


def thousands(cell: Mapping[str, Any]) -> str:
    """Formats the supervised rationale tokens in thousands; "" if they are unknown."""
    tokens = cell["rationale_tokens"]
    return "" if tokens is None else f"{tokens / 1000:,.1f}"


def row_tokens(row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    """Formats a row's rationale tokens for each data set that it is trained on."""
    pairs = zip(columns, row["cells"], strict=True)
    tokens = {column["data"]: thousands(cell) for column, cell in pairs if cell}
    return " / ".join(filter(None, tokens.values()))


def papers(result: Mapping[str, Any]) -> Sequence[tuple[str, list[float | None]]]:
    """Returns the rows that the paper also has: (name, its accuracies by column)."""

    def rows() -> Iterator[tuple[str, list[float | None]]]:
        for row in result["rows"]:
            values = [cell["paper"] if cell else None for cell in row["cells"]]
            if not row["settings"] and any(value is not None for value in values):
                yield row["name"], values

    return list(rows())


def _marked(cell: Mapping[str, Any] | None, mark: str) -> str:
    if cell is None:
        return ""
    significant = cell["against"] is not None and is_significant(cell["against"])
    return accuracy(cell) + (mark if significant else "")


def _test_row(name: str, test: Mapping[str, Any]) -> str:
    low, high = map(points, test["interval"])
    return (
        f"| {escaped(name)} | {points(test['difference'])} | {low} to {high} | {test['p']:.2g} | "
        f"{test['p_holm']:.2g} |"
    )


def _list(names: Sequence[str]) -> str:
    if len(names) > _MAX_NAMES:
        return f"{len(names)} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
