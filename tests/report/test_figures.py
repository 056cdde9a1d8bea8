import re

import matplotlib
import numpy as np

from kpod_jax.report import colours, figures, summary
from tests.report import workdirs


def method(name, accuracy=30, **more):
    return summary.method(workdirs.results(name, 0, accuracy, **more))


def test_matplotlib_stays_as_it_was():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.grid": False, "font.size": 23.0}):
        figure = figures.schedule(np.array([1.0, 2]), np.array([0.5, 2]))
        figures.svg(figure, "a")
        assert matplotlib.rcParams["font.size"] == 23.0
    assert dict(matplotlib.rcParams) == before


def test_svg_is_text_in_the_pages_colours_and_font():
    drawing = figures.svg(figures.accuracies([method("kpod")]), 'say "hi" <b>')
    assert ">KPOD</text>" in drawing
    assert "var(--series-0)" in drawing and colours.SERIES[0] not in drawing
    assert "DejaVu" not in drawing and "http" not in drawing
    assert 'aria-labelledby="caption-say &quot;hi&quot; &lt;b&gt;"' in drawing


def test_a_methods_name_is_neither_markup_nor_mathematics():
    drawing = figures.svg(figures.accuracies([method("<b>$x^2$ & y")]), "a")
    assert "&lt;b&gt;$x^2$ &amp; y" in drawing


def test_figures_of_one_page_share_no_ids_and_repeat_exactly():
    values = np.linspace(0, 1, 50)
    first, again, second = (
        figures.svg(figures.weights(values, None), name) for name in ("a", "a", "c")
    )
    assert first == again
    ids = [set(re.findall(r'id="([^"]*)"', drawing)) for drawing in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", first)) <= ids[0]


def test_degenerate_data_is_drawn():
    figures.svg(figures.difficulties(np.zeros(3)), "a")
    figures.svg(figures.weights(np.array([0.5]), np.array([True])), "a")
    figures.svg(figures.schedule(np.zeros(1), np.zeros(1)), "a")
    none = np.zeros((1, 2), np.int32)
    figures.svg(figures.start_steps(none, None), "a")
    figures.svg(figures.start_steps_by_cluster(none, np.array([0, 9])), "a")
    figures.svg(figures.input_steps(none, np.array([0, 3])), "a")
    losses = figures.Curve("x", 9, np.arange(3), np.array([1.0, np.nan, 2.0]))
    figures.svg(figures.curves([losses], "t", "y"), "a")
    figures.svg(figures.accuracies([method("kpod", 0), method("none", 50)]), "a")
