"""The report is one offline page that holds the whole answer and cannot be broken by what it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import write_run

from hwprune.core.errors import RunError
from hwprune.core.events import Caution
from hwprune.core.measurement import explain
from hwprune.report.html import render, script_json, write_report
from hwprune.report.run_data import Result, RunData, TimedEvent

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, visible text and the embedded JSON; knows whether every tag was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.json = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.json += data
        elif "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made") / "run", simulated=False)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text()


def test_it_is_one_small_well_formed_file(html: str, folder: Path) -> None:
    page = Page(html)
    assert page.open == []
    assert (folder / "report.html").stat().st_size < 400_000


def test_nothing_is_fetched(html: str) -> None:
    assert not re.search(r"(src|href|url|@import)\s*[=(:]?\s*[\"']?\s*(https?:)?//", html)
    assert "http" not in html
    assert not {"link", "img", "iframe", "object"} & set(Page(html).tags)


def test_the_embedded_json_is_the_result(html: str, folder: Path) -> None:
    document = json.loads(Page(html).json)
    assert document == json.loads((folder / "result.json").read_text())
    assert Result.from_json(document) == RunData.read(folder).result


def test_all_sections_are_there(html: str) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Cautions",
        "Where this is true",
        "How it was found",
        "Accuracy against latency",
        "Predicted against measured",
        "Widths",
        "Latency by layer",
        "The search over time",
        "Samples of the final measurement",
        "Configuration",
    ]


def test_it_says_the_verdict_first(html: str) -> None:
    text = " ".join(" ".join(Page(html).text).split())
    assert text.index("pass: 1.8") < text.index("Where this is true")
    assert "25 -> padded to 32" in text
    assert "floor = 0.25" in text
    assert "made-up CPU" in text


def test_marks_and_key_of_what_was_measured(html: str) -> None:
    assert html.count('class="over"') == 1
    assert html.count('class="stage"') == 3  # cut and recalibrated, and the key that explains them
    assert re.search(r'<circle class="pruned"[^>]*><title>pruned: [^<]* measured', html)
    assert "±10 %" in html


def test_the_key_names_no_mark_that_is_not_drawn(folder: Path) -> None:
    run = RunData.read(folder)
    within = tuple(item for item in run.result.predictions if item.within_budget)
    result = replace(run.result, predictions=within, scores={"dense": 0.98}, score=0.9721)
    html = render(replace(run, result=result))
    assert "on the way there" not in html
    assert "over budget" not in html
    assert "within the budget" in html
    assert "within the budget" not in render(replace(run, result=replace(result, predictions=())))


def test_every_curve_of_the_search_is_explained(html: str) -> None:
    panels = re.findall(r"<h3>([^<]*)</h3>(?:<p class=\"hint\">([^<]*)</p>)?<svg", html.partition("over time</h2>")[2])
    told = dict(panels[:3])
    assert list(told) == ["Predicted latency", "Multiplier", "Open channels"]
    assert all(told.values())
    assert "of all that may go" in told["Open channels"]
    assert "open_share" not in html.partition("<script")[0]


def test_the_key_tells_the_way_from_an_interval(folder: Path, html: str) -> None:
    key = 'the same widths on the way there</span><span><i class="upright"></i>the path of its score</span>'
    assert key in html
    assert "95 % interval of a latency" in html
    run = RunData.read(folder)
    assert "the path of" not in render(replace(run, result=replace(run.result, scores={"dense": 0.98}, score=0.9721)))


def test_the_multiplier_is_explained_where_there_is_one(folder: Path, html: str) -> None:
    assert "The multiplier rises" in html
    run = RunData.read(folder)
    steps = [TimedEvent(time_s, replace(step, metrics={"penalty": 1.0})) for time_s, step in run.search_steps()]
    other = render(replace(run, events=tuple(steps)))
    assert "<h3>Penalty</h3>" in other
    assert "How hard channels are pulled towards 0" in other
    assert "multiplier" not in other


def test_cautions_with_the_hint_behind_them_once(folder: Path) -> None:
    run = RunData.read(folder)
    quiet = "measure when it is quiet"
    cautions = [Caution("two scattered", quiet), Caution("three scattered", quiet), Caution("two scattered", quiet)]
    events = tuple(TimedEvent(1.0, caution) for caution in cautions)
    html = render(replace(run, events=events, result=replace(run.result, warnings=("two scattered", "of the result"))))
    visible = " ".join(" ".join(Page(html).text).split())
    assert "two scattered three scattered measure when it is quiet of the result" in visible
    assert visible.count("two scattered") == 1


def test_warnings_of_a_measurement_are_not_cautions_too(folder: Path) -> None:
    run = RunData.read(folder)
    dense = run.result.measurements["dense"]
    hasty = replace(dense, rounds=dense.rounds[:1])
    said = explain("single_round")
    result = replace(run.result, measurements={"dense": hasty}, warnings=("single_round", said))
    visible = "".join(Page(render(replace(run, events=(TimedEvent(1.0, Caution(said)),), result=result))).text)
    assert visible.count(said) == 1
    assert "Warnings" in visible
    assert "Cautions" not in visible


def test_samples_say_what_laps_are_paired_with(folder: Path) -> None:
    run = RunData.read(folder)
    beside = {name: replace(timed, anchored=True) for name, timed in run.result.measurements.items()}
    anchored = render(replace(run, result=replace(run.result, measurements=beside)))
    assert "each lap paired with a reference kernel." in render(run)
    assert "each lap paired with an anchor, the uniform network of about the budget&#39;s size" in anchored


def test_a_run_without_cautions_has_no_such_section(folder: Path) -> None:
    run = RunData.read(folder)
    assert "Cautions" not in render(replace(run, events=(), result=replace(run.result, warnings=())))


def test_a_removed_branch_is_called_so(folder: Path) -> None:
    run = RunData.read(folder)
    html = render(replace(run, result=replace(run.result, widths={**run.result.widths, "layer1.1.conv1": 0})))
    assert re.search(r'layer1\.1\.conv1</td>.*width: 0\.0%.*<td class="n">branch removed</td></tr>', html)


def test_every_drawing_has_a_name_and_its_own_frame(html: str) -> None:
    drawings = re.findall(r'<svg [^>]*aria-label="([^"]+)"', html)
    assert len(drawings) == len(set(drawings)) == 8
    frames = re.findall(r'<clipPath id="([^"]+)"', html)
    assert len(frames) == len(set(frames)) == len(drawings)


def test_light_and_dark(html: str) -> None:
    assert "prefers-color-scheme: dark" in html


def test_simulated_is_stamped_unmistakably(tmp_path: Path, html: str) -> None:
    simulated = write_report(write_run(tmp_path / "run", simulated=True)).read_text()
    assert "<title>SIMULATED pass" in simulated
    assert 'class="stamp">SIMULATED' in simulated
    assert "SIMULATED" not in html


def test_an_infeasible_run_has_a_page_too(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "run", verdict="infeasible")).read_text()
    assert "infeasible: 0.0500 ms asked, smallest reachable 0.335 ms measured" in html
    assert "<b>0.335 ms</b><span>smallest reachable, measured (simulated)</span>" in html
    assert '<div class="fill smallest" style="width: 11.00%">' in html
    assert "Latency by layer" not in html
    assert Page(html).open == []


def test_every_kind_of_mark_has_a_colour(html: str) -> None:
    """A circle of no known class would be black, which nobody sees on a dark page."""
    assert re.search(r"^circle \{ fill: var\(--pruned\); \}", html, re.MULTILINE)
    for names in set(re.findall(r'<(?:polyline|polygon|rect) class="([^"]+)"', html)):
        assert any(f".{name}" in html for name in names.split())


def test_a_missed_budget(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "run", verdict="miss")).read_text()
    assert '<span class="chip miss">miss</span>' in html


def test_without_layers_events_and_config(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", layers=False)
    for name in ("journal.jsonl", "run.toml", "environment.json"):
        (folder / name).unlink()
    html = write_report(folder).read_text()
    assert "Latency by layer" not in html
    assert "The search over time" not in html
    assert "Configuration" not in html


def test_hostile_names_stay_text(folder: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    run = RunData.read(folder)
    result = replace(run.result, model=hostile, widths={hostile: 1}, dense_widths={hostile: 2}, warnings=(hostile,))
    html = render(replace(run, result=result, environment={hostile: hostile}))
    page = Page(html)
    assert page.tags.count("script") == 1
    assert json.loads(page.json)["model"] == hostile


def test_facts_of_the_environment_are_rounded(folder: Path) -> None:
    facts = {"reference_ms": 0.052698249999999995, "input_shape": [1, 8, 8], "cores": 2, "label": ""}
    html = render(replace(RunData.read(folder), environment=facts))
    assert "0.0527" in html
    assert "0.052698" not in html
    assert "1 x 8 x 8" in html


def test_script_json_cannot_end_its_element() -> None:
    document = {"a": "</script>&<!--", "b": float("nan"), "c": (1, 2)}
    text = script_json(document)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script>&<!--", "b": None, "c": [1, 2]}


def test_no_report_of_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no result\.json"):
        write_report(tmp_path)


def test_damaged_journal_lines_are_told(folder: Path) -> None:
    html = render(replace(RunData.read(folder), damaged_records=2))
    assert "2 damaged line(s) of the journal were left out" in html
