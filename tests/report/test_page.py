import base64
import hashlib
import html as html_
import html.parser
import json

import numpy as np
import pytest

from configs import llama_7b
from kpod_jax import report
from kpod_jax.report import run as run_files
from kpod_jax.report import summary
from kpod_jax.utils import files
from tests.report import workdirs

BLOCKS = {"td", "th", "dt", "dd", "p", "li", "h2", "h3", "figcaption", "summary", "b"}
VOID = {"meta", "br", "img", "hr", "input", "link", "path", "use"}


class Page(html.parser.HTMLParser):
    """Checks the nesting of elements and collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.ids, self.links, self.text = [], [], [], [], ""
        self.elements, self.events, self.labels = set(), [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag in BLOCKS:
            self.text += " "

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
        elif self.open[-1:] == ["h2"]:
            self.headings.append(data)
        self.text += data

    def _see(self, tag, attrs):
        self.elements.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)
            elif name == "aria-labelledby":
                self.labels.append(value)
            elif name.startswith("on"):
                self.events.append((tag, name))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return workdirs.build(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(root):
    path = report.write(root)
    assert path == root / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there(page):
    assert page.headings == [
        "What the weighting keeps", "Results", "Training", "Progressive schedule", "Token weights",
        "Step difficulty", "Accuracy by difficulty", "Generations", "Configuration",
    ]  # fmt: skip


def test_the_page_says_what_ran_when_and_where(tmp_path):
    root = workdirs.build(tmp_path)
    config = json.loads((root / "config.json").read_text())
    config |= {"date": "2026-12-01", "device": "2 × TPU v5e", "command": "python -m <b> --x"}
    config["config"] |= {"method": "kpod", "data": {"name": "gsm8k"}}
    files.write_json(root / "config.json", config)
    for stage, seconds in (("weigh", 60.0), ("distill", 90.0)):
        note = {"fingerprint": {}, "complete": True, "seconds": seconds}
        files.write_json(root / f".stages/{stage}.json", note)
    html = report.write(root).read_text(encoding="utf-8")
    text = Page(html).text
    assert "<title>KPOD: t5-small on gsm8k</title>" in html
    assert "2026-12-01 · 2 × TPU v5e · 2 min · python -m <b> --x" in text
    run = run_files.load(root)
    first, *others = summary.overview(run).split(". ")
    assert run.results is not None
    steps = run.results["checkpoint_step"]
    assert first == f"The student was trained on {len(run.records)} rationales for {steps:,} steps"
    assert "the learned token weights average" in others[-1].lower()


def test_durations_are_short():
    assert [summary.duration(s) for s in (40.2, 720.0, 12_600.0)] == ["40 s", "12 min", "3.5 h"]


def test_the_page_needs_nothing_else(page):
    assert page.links and all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.labels and set(page.labels) <= set(page.ids)  # The captions of the figures.
    assert not page.elements & {"iframe", "object", "embed", "link", "img"}


def test_the_pages_own_script_is_the_only_one_that_may_run(root):
    text = (root / "report.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src &#x27;none&#x27;; script-src &#x27;sha256-{digest}&#x27;"
    assert policy in text or html_.unescape(policy) in text
    for never in ("innerHTML", "eval(", "document.write", "fetch("):
        assert never not in script


def test_records_generations_and_settings_are_shown_but_never_run(page):
    assert page.events == []
    # In a question, a rationale, a generation and a setting.
    assert page.text.count(workdirs.HOSTILE) == 4
    assert "test-<b>" in page.text


def test_the_numbers_are_the_files(page):
    text = page.text
    assert "KPOD: the student answers 31 of 50 test questions correctly, 62.0%" in text
    assert "0.930" in text and "0.31 → 2.40" in text
    assert "Spearman's ρ" in text
    assert "config.student.model" in text


def test_settings_that_are_not_the_papers_are_listed(tmp_path):
    root = workdirs.build(tmp_path)
    config = llama_7b.get_config()
    config.schedule.beta = 10.0
    files.write_json(root / "config.json", {"config": config.to_dict()})
    text = Page(report.write(root).read_text(encoding="utf-8")).text
    assert "settings that the paper gives for LLaMA-7B. It differs in these:" in text
    assert "schedule.beta 10.0 12.0" in text and "schedule.solver greedy ftgp" in text
    assert "distill.learning_rate 1e-05" not in text.split("settings, versions and devices")[0]
    # What the paper says of this student on this data set.
    assert "The paper reports 46.7%, with another teacher and other splits." in text


def test_phases_of_the_training_are_marked_and_told(tmp_path):
    root = workdirs.build(tmp_path)
    rows = [
        {"stage": "distill", "step": step, "loss": float(9 - step), "phase": (step - 1) // 2,
         "supervised_tokens": 10.0 * step, "mean_start_step": max(0.0, 2.5 - (step - 1) // 2)}
        for step in range(1, 9)
    ]  # fmt: skip
    rows.append({"stage": "distill", "step": 8, "validation_accuracy": 0.25})
    files.write_jsonl(root / "metrics.jsonl", rows)
    text = Page(report.write(root).read_text(encoding="utf-8")).text
    assert "The 4 phases in numbers" in text
    assert "3 7–8 0.00 1.500 75 25.0%" in text  # Stage, steps, mean c_i, loss, tokens, accuracy.
    # The only validation is no curve.
    assert text.count("Dotted lines mark the phases that move more steps to the output.") == 1
    assert "greedy decoding" not in text


def test_questions_by_difficulty(tmp_path):
    root = workdirs.build(tmp_path)
    text = Page(report.write(root).read_text(encoding="utf-8")).text
    # Eight questions of three steps and the hostile one of one step.
    assert "Accuracy by length" in text and "Questions per dot: 1, 8." in text


def test_a_heat_map_shows_whole_steps_with_their_keypoints(root):
    text = (root / "report.html").read_text(encoding="utf-8")
    assert text.count('key" title="weight') >= 4 * 9
    assert 'aria-label="colour scale from 0 to 1"' in text


def test_the_same_files_make_the_same_page(root):
    first = report.write(root).read_bytes()
    assert report.write(root).read_bytes() == first


def test_samples_other_data_sets_and_errors_are_shown(tmp_path):
    root = workdirs.build(tmp_path)
    own = {"accuracy": 0.25, "interval": [0.1, 0.4], "correct": 5, "total": 20, "rejected": 2}
    more = {"samples": 8, "agreement": 0.625, "oracle": 0.75, "ood": {"<svamp>": own}}
    files.write_json(root / "results.json", workdirs.results("kpod", 0, 31, **more))
    rows = [workdirs.prediction(record, i) for i, record in enumerate(workdirs.records(9))]
    for row, error in zip(rows[2::3], ("arithmetic slip", "other", "other"), strict=True):
        row["error"] = error
    files.write_jsonl(root / "predictions" / "test.jsonl", rows)
    text = Page(report.write(root).read_text(encoding="utf-8")).text
    assert "Agreement 62.5% of 8 samples per question" in text
    assert "Any sample correct 75.0% pass@8, an upper bound" in text
    assert "<svamp> 25.0% 10.0–40.0% 5 of 20 2" in text
    assert "arithmetic slip 1 33.3% train-2 an equation is false" in text
    assert "other 2 66.7% train-5" in text
    assert text.count("(arithmetic slip)") == 1 and text.count("(other)") == 2


def test_a_long_generation_is_cut_and_an_empty_one_named(tmp_path):
    root = workdirs.build(tmp_path)
    rows = [workdirs.prediction(record, 0) for record in workdirs.records(2)]
    rows[0]["prediction"], rows[1]["prediction"] = "x" * 2750, ""
    files.write_jsonl(root / "predictions" / "test.jsonl", rows)
    text = Page(report.write(root).read_text(encoding="utf-8")).text
    assert f"{'x' * 1500} … 1,250 more characters" in text and "x" * 1501 not in text
    assert "Nothing was generated." in text


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        ("schedule.npz", "Progressive schedule"),
        ("token_spans.npz", "What the weighting keeps"),
        ("step_difficulty.npz", "Step difficulty"),
        ("config.json", "Configuration"),
        ("metrics.jsonl", "Training"),
        ("results.json", "Results"),
    ],
)
def test_a_section_without_its_file_is_left_out(tmp_path, missing, heading):
    root = workdirs.build(tmp_path)
    (root / missing).unlink()
    headings = Page(report.write(root).read_text(encoding="utf-8")).headings
    assert heading not in headings and len(headings) == 8


def test_without_predictions_nothing_is_said_of_them(tmp_path):
    root = workdirs.build(tmp_path)
    (root / "predictions/test.jsonl").unlink()
    headings = Page(report.write(root).read_text(encoding="utf-8")).headings
    assert not {"Generations", "Accuracy by difficulty"} & set(headings)
    assert len(headings) == 7


def test_an_empty_work_directory(tmp_path):
    page = Page(report.write(tmp_path).read_text(encoding="utf-8"))
    assert page.headings == []
    assert "not been evaluated yet" in page.text


def test_a_run_with_uniform_weights_and_whole_rationales(tmp_path):
    root = workdirs.build(tmp_path)
    weights = files.read_npz(root / "token_weights.npz")
    weights["values"] = np.ones_like(weights["values"])
    files.write_npz(root / "token_weights.npz", **weights)
    (root / "weighting.json").unlink()
    schedule = files.read_npz(root / "schedule.npz")
    schedule["start_steps"] = np.zeros_like(schedule["start_steps"])
    files.write_npz(root / "schedule.npz", **schedule)
    headings = Page(report.write(root).read_text(encoding="utf-8")).headings
    assert headings == [
        "Results", "Training", "Step difficulty", "Accuracy by difficulty", "Generations",
        "Configuration",
    ]  # fmt: skip


def test_the_schedule_names_clusters_and_the_examples_that_moved_on(root, page):
    text = page.text
    assert "Mean cᵢ(t) in each cluster" in text and "cluster (examples)" in text
    fold = text[text.index("Examples that advance at each phase") :]
    start = files.read_npz(root / "schedule.npz")["start_steps"]
    moved = np.flatnonzero(start[2] < start[1])
    shown = ", ".join(f"train-{i}" for i in moved[:3])
    assert f"2 {len(moved)} {len(moved)} {shown}" in fold


def test_a_curriculum_that_followed_the_student_shows_what_it_chose(tmp_path):
    root = workdirs.build(tmp_path)
    schedule = files.read_npz(root / "schedule.npz")
    del schedule["target"]
    files.write_npz(root / "schedule.npz", **schedule | {"start_steps": np.full((1, 12), 4)})
    chosen = np.where(np.arange(12) < 4 * np.arange(1, 4)[:, None], 0, 4)
    files.write_npz(root / "start_steps.npz", start_steps=chosen)
    text = report.write(root).read_text(encoding="utf-8")
    assert "over 3 phases" in text and "left out" in text and "target D(t)" not in text
