import html.parser

import numpy as np
import pytest

from kpod_jax.data.records import Ragged, Record
from kpod_jax.report import colours, heatmap, page
from kpod_jax.report.run import Run


def merged(text, spans, weights):
    return [
        (text[w.start : w.end], round(w.weight, 3)) for w in heatmap.words(text, spans, weights)
    ]


def shown(root, text, spans, weights, keypoints=None):
    """The page's heat map of one rationale."""
    record = Record("a", "q", (text,), "1", keypoints)
    ragged = Ragged.from_list([spans], np.int32), Ragged.from_list([weights], np.float32)
    run = Run(root, records=(record,), spans=ragged[0], weights=ragged[1])
    html = page.write_heat_map(run, [0], chosen=True).read_text(encoding="utf-8")
    return html.split('<div class="line">')[1].split("</div>")[0]


def test_pieces_of_a_word_are_averaged_and_punctuation_stands_alone():
    text = "Adding twice 48."
    spans = [(0, 3), (3, 6), (7, 12), (13, 14), (14, 16)]  # The last piece is "8.".
    assert merged(text, spans, [0.2, 0.4, 0.9, 0.5, 0.7]) == [
        ("Adding", 0.3), ("twice", 0.9), ("48", 0.6), (".", 0.7),
    ]  # fmt: skip


def test_numbers_keep_their_separators_and_words_their_apostrophe():
    text = "$1,250.50 isn't 3.5."
    spans = [(i, i + 1) for i in range(len(text)) if text[i] != " "]
    names = [name for name, _ in merged(text, spans, [0.5] * len(spans))]
    assert names == ["$", "1,250.50", "isn't", "3.5", "."]


def test_bytes_of_one_character_share_its_span():
    assert merged("é", [(0, 1), (0, 1)], [0.2, 0.6]) == [("é", 0.4)]


def test_a_token_of_white_space_and_a_word_without_token_do_not_count():
    assert merged("a b", [(0, 1), (1, 1)], [0.3, 0.9]) == [("a", 0.3)]
    assert heatmap.words("", np.zeros((0, 2)), np.zeros(0)) == []


def test_spans_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match="got 2 spans and 1 weights"):
        heatmap.words("ab cd", np.array([(0, 2), (3, 5)]), np.array([0.5]))


def test_text_is_escaped_and_kept_to_the_character(tmp_path):
    text = 'if a<b && "c">d:\n  <script>x</script>'
    spans = [(i, i + 1) for i in range(len(text)) if not text[i].isspace()]
    html_ = shown(tmp_path, text, spans, np.linspace(0, 1, len(spans)), ((3, 4),))

    class Reader(html.parser.HTMLParser):
        tags, read = set(), ""

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)

        def handle_data(self, data):
            self.read += data

    reader = Reader()
    reader.feed(html_)
    assert reader.tags == {"span"}
    assert reader.read == text


def test_tooltips_and_keypoints(tmp_path):
    html = shown(tmp_path, "was 48", [(0, 3), (4, 5), (5, 6)], [0, 0.8, 1], ((4, 6),))
    assert '<span class="h0" title="weight 0.00">was</span> ' in html
    assert 'key" title="weight 0.90 = mean of 0.80, 1.00">48</span>' in html


@pytest.mark.parametrize("dark", [False, True])
def test_the_scale_is_monotone_in_luminance_and_its_text_readable(dark):
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ (0.2126, 0.7152, 0.0722)

    scale = [colours.heat(w, dark=dark) for w in np.linspace(0, 1, colours.LEVELS)]
    ground = np.array([luminance(g) for g, _ in scale])
    assert np.all(np.diff(ground) > 0 if dark else np.diff(ground) < 0)
    pairs = [sorted([luminance(g), luminance(t)]) for g, t in scale]
    assert min((high + 0.05) / (low + 0.05) for low, high in pairs) >= 4.5  # WCAG AA.
