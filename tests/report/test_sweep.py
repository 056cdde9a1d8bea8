"""The report of a sweep: as a page, as Markdown and as LaTeX."""

import html

import pytest

from kpod_jax import report
from kpod_jax.report import page, sweep, sweep_text
from kpod_jax.sweep import comparison
from kpod_jax.utils import files
from tests.report import workdirs
from tests.report.test_page import Page
from tests.sweep.runs import config, write

FAILED = {"scotd-<1>": "no <b>memory</b> & 50% of_it"}


def made(root, runs, failed=None):
    """The comparison of runs: (method, seed, changes of its configuration, answers, …) by name."""
    configs = {}
    for name, (method, seed, changes, right, *more) in runs.items():
        configs[name] = write(root, name, config(method, seed, **changes), right, *more)
    return comparison.compare("a_b.py:c", configs, root, failed or {})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """KPOD's run has all files; of the others there are results and perhaps curves."""
    root = tmp_path_factory.mktemp("sweep")
    for name in ("kpod-0", "kpod 1", "scotd-0"):
        workdirs.build(root / name)
    result = made(
        root,
        {
            "kpod-0": ("kpod", 0, {}, "1110" * 10),
            "kpod 1": ("kpod", 1, {}, "1111" * 10),
            "scotd-0": ("scotd", 0, {}, "1000" * 10),
            "none-0": ("none", 0, {}, "0000" * 10),
        },
        FAILED,
    )
    report.write_sweep(root, result)
    return root, result


def test_one_page_has_the_comparison_and_a_run(root):
    page = Page((root[0] / "report.html").read_text(encoding="utf-8"))
    assert page.headings[:5] == [
        "Failures and notes", "Comparison", "Training", "Paired tests", "One run in detail",
    ]  # fmt: skip
    assert "Token weights" in page.headings and "Results" not in page.headings
    text = page.text
    assert "87.5 ± 17.7" in text and "25.0*" in text and "0.0*" in text
    assert "KPOD answers 87.5% of the 40 arithmetic test questions correctly" in text
    assert "In paired tests it is better than SCoTD and no distillation." in text
    assert "seeds 0, 1 " in text
    assert "Lines are means over seeds; bands show one standard deviation." in text
    assert text.count("Before distillation") == text.count("Student") > 1


def test_each_cell_leads_to_its_runs_and_the_page_to_nothing_else(root):
    page = Page((root[0] / "report.html").read_text(encoding="utf-8"))
    outside = [link for link in page.links if not link.startswith("#")]
    reports = [f"{name}/report.html" for name in ("kpod-0", "kpod%201", "scotd-0", "none-0")]
    assert outside == [*reports, "kpod-0/report.html"]
    assert page.events == [] and not page.elements & {"iframe", "object", "embed", "link", "img"}


def test_failures_are_told_and_escaped_everywhere(root):
    directory, result = root
    text = (directory / "report.html").read_text(encoding="utf-8")
    assert html.escape(FAILED["scotd-<1>"]) in text and "<b>memory" not in text
    lines = sweep_text.markdown(result).splitlines()
    assert "- scotd-&lt;1&gt; failed: no &lt;b&gt;memory&lt;/b&gt; &amp; 50% of_it" in lines


def test_curves_have_a_band_a_method(root):
    text = (root[0] / "report.html").read_text(encoding="utf-8")
    # In the bars, the losses and the accuracies.
    assert text.count(">SCoTD</text>") == 3 and text.count(">KPOD</text>") == 3


def test_markdown_by_hand(root):
    text = sweep_text.markdown(root[1])
    assert (
        "| method | seeds | rationale tokens | arithmetic |\n| --- | --- | --- | --- |\n"
        "| KPOD | 0, 1 | 1.5 | 87.5 ± 17.7 |\n"
        r"| SCoTD | 0 | 1.5 | 25.0\* |"
    ) in text
    assert "Rationale tokens are those supervised in training, in thousands" in text
    assert "## arithmetic: KPOD minus each other method" in text
    # By question: 0, 1, 1, 1/2.
    assert "| SCoTD | +62.5 | " in text
    assert "(paper)" not in text


def test_latex_by_hand(tmp_path):
    llama = {"student__model": "huggyllama/llama-7b", "data__name": "gsm8k"}
    result = made(
        tmp_path,
        {
            "k0": ("kpod", 0, llama, "1110" * 10, {"svamp": "1110"}),
            "k1": ("kpod", 1, llama, "1111" * 10, {"svamp": "1110"}),
            "x": ("without_significance_in_difficulty", 0, llama, "1000" * 10, {"svamp": "1111"}),
        },
    )
    lines = sweep_text.latex(result).splitlines()
    assert r"\begin{tabular}{lrrr}" in lines
    assert r"Method & Rationale tokens & GSM8K & SVAMP \\" in lines
    # One number: both columns are of the same training.
    assert r"KPOD & 1.5 & 87.5 $\pm$ 17.7 & 75.0 $\pm$ 0.0 \\" in lines
    assert r"KPOD w.o.-sig-dif & 1.5 & 25.0$^{*}$ & 100.0 \\" in lines
    assert r"KPOD (paper) &  & 46.74 & 47.33 \\" in lines
    assert r"KPOD w.o.-sig-dif (paper) &  & 44.01 &  \\" in lines
    assert any(
        "mean $\\pm$ standard" in line and "$^{*}$ marks p $<$ 0.05" in line for line in lines
    )
    rules = [line for line in lines if line in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == [r"\toprule", r"\midrule", r"\midrule", r"\bottomrule"]


def test_latex_escapes_what_it_takes_for_commands(tmp_path):
    assert sweep_text.tex("a_b & 50% of $x^2$ #1 {~}\\ < ±") == (
        r"a\_b \& 50\% of \$x\textasciicircum{}2\$ \#1 \{\textasciitilde{}\}\textbackslash{} "
        r"$<$ $\pm$"
    )
    runs = {
        "a": ("kpod", 0, {}, "10"),
        "b": ("kpod", 0, {"schedule__initial_fraction": 0.1}, "11"),
    }
    assert r"KPOD, schedule.initial\_fraction = 0.1 & 1.5 & 100.0 \\" in sweep_text.latex(
        made(tmp_path, runs)
    )


def test_a_page_of_several_data_sets(tmp_path):
    llama = {"student__model": "huggyllama/llama-7b", "data__name": "gsm8k"}
    runs = {
        "k0": ("kpod", 0, llama, "1110" * 10, {"svamp": "1110"}),
        "k1": ("kpod", 1, llama, "1111" * 10, {"svamp": "1110"}),
        "x": ("scotd", 0, llama, "1000" * 10),
    }
    path = report.write_sweep(tmp_path, made(tmp_path, runs))
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Method Rationale tokens GSM8K SVAMP KPOD 1.5 87.5 ± 17.7 " in text
    assert "paper 46.74; seeds 0, 1 75.0 ± 0.0 " in text and "seed 0 –" in text
    assert "GSM8K: 40 test questions." in text
    assert "Questions Method Points" in text and "GSM8K SCoTD +62.5 " in text


def test_sensitivity_is_drawn_a_setting_a_figure(tmp_path):
    workdirs.build(tmp_path / "k")
    alpha = config("kpod", 0).weighting.alpha
    runs = {
        "k": ("kpod", 0, {}, "1100"),
        "b10": ("kpod", 0, {"schedule__beta": 10.0}, "1110"),
        "b16": ("kpod", 0, {"schedule__beta": 16.0}, "1000"),
        "a3": ("kpod", 0, {"weighting__alpha": alpha + 0.1}, "1100"),
    }
    result = made(tmp_path, runs)
    text = report.write_sweep(tmp_path, result).read_text(encoding="utf-8")
    assert "Sensitivity" in Page(text).headings
    assert "Accuracy for different values of schedule.beta;" in text and "marks 12," in text
    assert (
        "Accuracy for different values of weighting.alpha;" in text and f"marks {alpha:g}," in text
    )
    assert ">10</text>" in text and ">16</text>" in text


def test_a_sweep_that_shows_nothing_says_so(tmp_path):
    runs = {"a": ("kpod", 0, {}, "1010" * 5), "b": ("scotd", 0, {}, "1001" * 5)}
    result = made(tmp_path, runs)
    assert "not significantly different from SCoTD." in sweep_text.verdict(result)
    assert "*" not in sweep_text.markdown(result).split("| SCoTD")[1].split("\n")[0]


def test_many_methods_are_counted_in_the_sentence(tmp_path):
    methods = ("kpod", "scotd", "none", "acl", "spl", "icl")
    result = made(tmp_path, {m: (m, 0, {}, "11" if m == "kpod" else "10") for m in methods})
    assert "not significantly different from 5 others." in sweep_text.verdict(result)


def test_a_method_keeps_its_colour_where_another_has_no_result(tmp_path):
    runs = {
        "a": ("kpod", 0, {}, "10"),
        "b": ("scotd", 0, {}, "10", {"svamp": "11"}),
    }
    result = made(tmp_path, runs)
    assert [(m.name, m.number) for m in sweep.methods(result, 0)] == [("KPOD", 0), ("SCoTD", 1)]
    assert [(m.name, m.number) for m in sweep.methods(result, 1)] == [("SCoTD", 1)]


def test_generations_of_two_methods_part_at_a_marked_step(tmp_path):
    texts = {
        "kpod": ["1 + 1 = 2. 2 + 1 = 3.", "5 - 1 = 4. 4 - <b> = 3.", "Same."],
        "scotd": ["1 + 1 = 3. 3 + 1 = 4.", "5 - 1 = 4. 4 - 2 = 2.", "Same."],
    }
    for name, predictions in texts.items():
        rows = [
            {"id": str(i), "question": f"Question {i}?", "gold": "3", "prediction": text,
             "extracted": "3", "correct": name == "kpod" or i == 0}
            for i, text in enumerate(predictions)
        ]  # fmt: skip
        files.write_jsonl(tmp_path / name / "predictions/test.jsonl", rows)
    rows = [
        {"name": name, "method": name, "settings": {}, "cells": [{"seeds": [{"run": name}]}]}
        for name in ("none", "scotd", "kpod")
    ]
    result = {"columns": [{"file": "test"}], "rows": rows, "reference": "kpod"}
    section = sweep.side_by_side(result, tmp_path)
    assert section is not None and section["names"] == ["Kpod", "Scotd"]
    # What one of them answers wrongly comes first, and what both write is left out.
    assert [(shown["id"], shown["parted"]) for shown in section["shown"]] == [("1", 1), ("0", 0)]
    text = page.template("sections/side_by_side.html.j2").render(section=section)
    assert '<mark class="parts">4 - &lt;b&gt; = 3.</mark>' in text
    assert text.count("<mark") == 4
    only = result | {"rows": [row for row in rows if row["name"] != "scotd"]}
    assert sweep.side_by_side(only, tmp_path) is None
