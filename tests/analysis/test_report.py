"""The report: its contents, that it is self-contained, and that names are escaped."""

import dataclasses
import functools
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import peft_listen.analysis
from peft_listen.analysis import NearestWords, NearWord, SelectionRecords, format_summary, save_report, summarize
from peft_listen.analysis.plots import THEME
from tests.device_nodes import make_null_device


VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails if a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.html = html
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    @property
    def classes(self) -> list[str]:
        return [value for name, value in self.attributes if name == "class"]

    def texts_of(self, css_class: str) -> list[str]:
        """The text of each element with a class, without tags."""
        pattern = rf'<(\w+) class="{css_class}">(.*?)</\1>'
        inner = [match[2] for match in re.finditer(pattern, self.html, re.DOTALL)]
        return [" ".join(unescape(re.sub("<[^>]*>", " ", text)).split()) for text in inner]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def page(make_records, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    save_report(make_records(), path, title="A trained adapter", top=5)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def report(tmp_path):
    def make(records, **options):
        save_report(records, tmp_path / "report.html", **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def test_the_page_shows_good_ratings(page) -> None:
    assert page.text.startswith("A trained adapter A trained adapter 36 inputs 3 tasks 4 of 48 prompts")
    assert "The tasks select different prompts." in page.text
    assert "on some/base" in page.text
    assert "similarity selector" in page.text
    assert page.tags.count("svg") == 5  # the heat map and the usage curves also in a narrow form
    for title in ("Overlap of tasks", "Prompts in use", "Silhouette of queries", "Cosine of queries"):
        assert title in page.text
    assert "center_queries=True" in page.text


def test_the_page_shows_poor_ratings_and_advice(report, make_records) -> None:
    records = make_records(apart=False, pool_size=300)
    page, summary = report(records, top=4), summarize(records, top=4)
    assert "also selected by every other task" in page.text
    assert f"{summary.mean_overlap:.2f}" in page.text
    assert f"{summary.live_prompts} of 300" in page.text
    assert "poor" in page.text
    assert "To try: initialize the keys from real queries" in page.text


def test_top_prompts_are_listed_with_the_highest_scoring_inputs(report) -> None:
    records = SelectionRecords(
        indices=torch.tensor([[7, 1], [7, 2], [7, 1], [3, 1]]),
        scores=torch.tensor([[0.2, 0.1], [0.9, 0.1], [0.5, 0.1], [0.5, 0.1]]),
        queries=torch.eye(4),
        keys=torch.ones(9, 4),
        tasks=["speech", "speech", "speech", "sound"],
        inputs=["low", "high", "middle", "bark"],
    )
    page = report(records)
    assert "#7 100% high middle" in page.text
    assert "#1 67% also selected by sound low middle" in page.text
    assert "#3 100% bark" in page.text


def test_the_overlap_table_is_symmetric(report) -> None:
    records = SelectionRecords(
        indices=torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [5, 6, 7, 4]]),
        scores=torch.zeros(3, 4),
        queries=torch.eye(3),
        keys=torch.ones(9, 3),
        tasks=["a", "b", "c"],
    )
    page = report(records)
    dash = "\N{EN DASH}"
    assert f"a b c a {dash} 0.75 shared 0.00 b 0.75 shared {dash} 0.25 c 0.00 0.25 {dash}" in page.text
    assert "shared : more than 0.5. same : more than 0.8." in page.text
    assert "#1 100% also selected by b #2" in page.text


def test_the_page_is_self_contained(page) -> None:
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name.endswith(("href", "src")):
            assert value.startswith(("#", "data:"))
        assert name.startswith("xmlns") or "http" not in value
    policy = [value for name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_ids_are_unique_across_figures(page) -> None:
    targets = [value[1:] for name, value in page.attributes if name.endswith("href") and value.startswith("#")]
    clips = [value[5:-1] for name, value in page.attributes if name == "clip-path"]
    ids = [value for name, value in page.attributes if name == "id"]
    assert targets and clips
    for target in {*targets, *clips}:
        assert ids.count(target) == 1


def test_a_color_in_a_name_is_kept(report, make_records) -> None:
    name = f"a: {THEME['ink']}"
    page = report(make_records(tasks=(name, "b")))
    assert page.html.count(name) > 5
    assert "a: var(" not in page.html


def test_every_tile_has_a_value(report, make_records) -> None:
    for tasks in (("only",), ("asr", "emotion")):
        page = report(make_records(tasks=tasks))
        assert page.texts_of("value")
        assert all(any(character.isdigit() for character in value) for value in page.texts_of("value"))


def test_the_page_has_a_dark_theme_that_includes_the_plots(report, make_records) -> None:
    page = report(make_records())
    light, dark = (
        set(re.findall(r"--([\w-]+):", block))
        for block in re.search(
            r":root \{(.*?)\}.*?@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}",
            page.html,
            re.DOTALL,
        ).groups()
    )
    assert '<meta name="color-scheme" content="light dark">' in page.html
    used = set(re.findall(r"var\(--([\w-]+)\)", page.html)) - {"task", "tone", "tone-bg", "hue", "value"}
    assert used <= light
    # Colors that suit both themes.
    assert light - dark <= {"accent", "warm", "hot"}
    assert set(THEME) <= dark
    for svg in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL):
        assert not [color for color in THEME.values() if color in svg]
        assert "#000000" not in svg
        assert "var(--" in svg


def test_the_legends_are_outside_the_plots_and_above_them_on_a_phone(report, make_records) -> None:
    page = report(make_records(pool_size=300))
    in_use = summarize(make_records(pool_size=300)).live_prompts
    assert page.texts_of("legend") == [
        f"asr captions emotion prompts in use ({in_use}) unused prompts ({300 - in_use})",
        "asr captions emotion all inputs even use of the pool",
    ]
    svgs = " ".join(re.findall(r"<svg.*?</svg>", page.html, re.DOTALL))
    assert "unused prompts" not in svgs and "even use" not in svgs
    # Nothing is wider than the screen but the table of overlaps, which scrolls in its own frame.
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page.html
    assert "min-width: 640px" not in page.html
    phone = page.html[page.html.index("@media (max-width: 720px)") : page.html.index("@media print")]
    assert ".wide { display: none; }" in phone and ".narrow { display: block; }" in phone
    assert ".map { display: block; }" in phone
    assert page.html.count('<div class="wide"><svg') == page.html.count('<div class="narrow"><svg') == 2


def test_answers_stand_beside_the_selections(report, make_records) -> None:
    answers = {"asr": "ab", "captions": "aa", "emotion": "bb"}
    predictions = [
        {"task": task, "answer": "ab"[row % 2], "generated": generated[row % 2]}
        for task, generated in answers.items()
        for row in range(20)
    ]
    records = make_records()
    page = report(records, predictions=predictions)
    assert "verdict fair" in page.classes
    assert "but the answers of captions and emotion are at chance level." in page.text
    used = {task: details.live_prompts for task, details in summarize(records).tasks.items()}
    assert f"asr 100% above chance 50% (“a”, 20 answers) {used['asr']} none" in page.text
    assert f"captions 50% at chance level 50% (“a”, 20 answers) {used['captions']} none" in page.text
    assert "Tasks answered above chance fair 1 of 3" in page.text
    assert "Correct answers" not in report(records).text


def test_the_page_is_written_in_american_spelling() -> None:
    british = re.compile("colour|neighbour|behaviour|grey|centred|normalis|initialis|recognis|labell")
    for path in Path(peft_listen.analysis.__file__).parent.iterdir():
        if path.suffix in (".py", ".jinja"):
            assert not british.findall(path.read_text(encoding="utf-8")), path


@pytest.mark.filterwarnings("error")
def test_names_are_escaped(report, make_records) -> None:
    name = '<script>alert("1")</script> & $x_1$'
    records = make_records(tasks=(name, "任务 }} {{ 7*7 }} -->"))
    records = dataclasses.replace(records, inputs=[name] * 24, config={"base_model_name_or_path": name})
    predictions = [{"task": name, "answer": answer, "generated": name} for answer in [name, name, "other"] * 4]
    page = report(records, title=name, predictions=predictions)
    assert "script" not in page.tags
    assert page.text.count(name) > 10
    assert "67% (“<script>alert(" in page.text
    assert "任务 }} {{ 7*7 }} -->" in page.text


@pytest.mark.parametrize(
    "sizes",
    [
        {"tasks": ("only",)},
        {"tasks": ("only",), "rows_per_task": 1, "pool_size": 1, "prompt_length": 1},
        {"tasks": tuple(f"task {number}" for number in range(14)), "rows_per_task": 1},
    ],
)
def test_a_page_can_be_made_for_records_of_any_size(report, make_records, sizes) -> None:
    page = report(dataclasses.replace(make_records(**sizes), inputs=(), config={}))
    several = len(sizes["tasks"]) > 1
    assert ("Overlap of tasks Fraction of the 10 most selected" in page.text) == several
    assert ("Prompts by task" in page.text) == several
    assert ("all inputs and for each task" in page.text) == several
    assert "Adapter settings" not in page.text


def test_the_same_records_give_the_same_page(make_records, tmp_path) -> None:
    for name in ("one.html", "two.html"):
        save_report(make_records(), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_many_points_are_rasterized(make_records, tmp_path) -> None:
    save_report(make_records(rows_per_task=1500), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64") > 3
    assert len(html) < 1_500_000


def test_a_failed_write_keeps_the_existing_page(make_records, tmp_path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("older")
    with pytest.raises(ValueError, match="`projection` must be"):
        save_report(make_records(), path, projection="tsne")

    def fail(*_):
        raise OSError("read-only")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="read-only"):
        save_report(make_records(), path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_summary_is_returned_and_can_be_formatted(make_records, tmp_path) -> None:
    records = make_records()
    summary = save_report(records, tmp_path / "report.html", top=3)
    assert summary == summarize(records, top=3)
    lines = format_summary(summary).splitlines()
    assert lines[0] == "The tasks select different prompts."
    assert lines[1].split() == [
        "Overlap",
        "of",
        "tasks",
        f"{summary.mean_overlap:.2f}",
        "good",
        "(at",
        "most",
        "0.5,",
        "for",
        "every",
        "pair)",
    ]
    assert len(lines) == 7


def test_without_jinja_a_report_raises_with_the_install_command(make_records, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'A report needs jinja2: pip install "peft-listen\[analysis\]"'):
        save_report(make_records(), tmp_path / "report.html")


@pytest.mark.parametrize("kind", ["device", "link to a file", "link to nothing", "folder", "missing folder"])
def test_only_regular_files_are_written(make_records, tmp_path, kind) -> None:
    records, old, path = make_records(), tmp_path / "old.html", tmp_path / "page.html"
    old.write_text("old")
    if kind == "device":
        make_null_device(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "missing folder":
        path = tmp_path / "missing" / "page.html"
    else:
        path.symlink_to(old if kind == "link to a file" else tmp_path / "nothing")
    before = path.lstat() if path.is_symlink() or path.exists() else None
    for write in (functools.partial(save_report, records), records.save):
        with pytest.raises(OSError, match=rf"{path}( cannot be written: it is a |.* does not exist)|'{path}'"):
            write(path)
    if before is not None:
        assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert old.read_text() == "old"
    assert not (tmp_path / "nothing").exists()


def test_the_nearest_words_of_a_prompt_are_shown_and_escaped(report, make_records) -> None:
    records = make_records()
    prompts = sorted(set(records.indices.flatten().tolist()))
    near, zero = (summarize(records).tasks[task].top_prompts[0][0] for task in ("asr", "captions"))
    words = {prompt: [NearWord(7, "dull", 0.125)] for prompt in prompts}
    words[near] = [NearWord(1, "<b>bark</b>", 0.75), NearWord(2, "dog", 0.5)]
    words[zero] = []
    page = report(records, words=NearestWords(words, chance_similarity=0.25, word_similarity=0.625))
    assert "near <b>bark</b> 0.75 dog 0.50" in page.texts_of("words")
    assert len(page.texts_of("words far")) > 0
    assert all(text == "near no token; the nearest are dull 0.12" for text in page.texts_of("words far"))
    assert (
        f"1 of the {len(prompts)} compared prompts is nearer to a token than 95% of random directions are (0.25)"
        in page.text
    )
    assert "nearest other token have 0.62" in page.text
    assert "vocabulary" not in report(records).text
