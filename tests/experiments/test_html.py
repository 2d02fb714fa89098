"""``report.html``: whole, self-contained, and true to ``metrics.json``."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from snn_dfa.experiments import cli
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.report import results as report
from snn_dfa.experiments.report.description import of_recipe
from snn_dfa.experiments.report.html import render

VOID = {"meta", "img", "br", "link", "input", "hr"}  # elements without an end


class Reader(HTMLParser):
    """Read a page strictly: what is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.cells = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(autouse=True)
def only_what_the_page_has(monkeypatch):
    """The other forms of a picture take most of the time; test_experiments.py looks at them."""
    monkeypatch.setattr(report, "_FORMATS", ("svg",))


def a_run(seed=0, **changed):
    line = {"epoch": 1.0}
    for part in ("train", "val", "test"):
        line |= {f"{part}_accuracy": 0.75, f"{part}_loss": 0.5}
    return {
        "seed": seed,
        "test_accuracy": 0.75,
        "val_accuracy": 0.5,
        "best_epoch": 1,
        "test_samples": 12,
        "test_top5": 1.0,
        "seconds_to_97": None,
        "epochs_to_97": None,
        "samples_per_second": 100.0,
        "seconds_per_step": 0.01,
        "spikes_per_sample": 12.0,
        "synaptic_operations_per_sample": 1200.0,
        "firing_rates": {"neuron1": 0.25},
        "neurons": {"neuron1": 8},
        "parameters": 1234,
        "raster": {
            "class": 2, "steps": 3,
            "layers": {"neuron1": {"neurons": 8, "shown": 8, "fired": ["0 5", "", "7"]}},
        },
        "epoch_seconds": [{"epoch": 61.0, "steps": 60.0, "samples": 99}],
        "silent": {"neuron1": 0.125},
        "saturated": {"neuron1": 0.0},
        "warnings": {},
        "confusion": [[3, 1, 0], [0, 0, 0], [2, 0, 6]],
        "history": [line],
        "diagnostics": [],
        **changed,
    }  # fmt: skip


def written(folder, results, **settings):
    settings = replace(RECIPES["small"].settings, **settings)
    paths = report.write(folder, of_recipe("small", settings), results)
    assert paths[0] == folder / "report.html"
    return Reader(paths[0].read_text())


@pytest.mark.slow
def test_the_page_is_whole_and_asks_nothing_of_the_web(tmp_path):
    got = written(tmp_path, {"dfa": [a_run()], "bptt": [a_run()]})
    assert got.open == []
    names = {tag for tag, _ in got.tags}
    assert not names & {"script", "link", "iframe", "object", "base", "form"}
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    for tag, attributes in got.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert {"src", "href"} & set(attributes) <= ({"src"} if tag == "img" else set())


@pytest.mark.slow
def test_it_is_made_for_phones_and_for_the_dark(tmp_path):
    got = written(tmp_path, {"dfa": [a_run()]})
    metas = [a for tag, a in got.tags if tag == "meta"]
    assert any("width=device-width" in a.get("content", "") for a in metas)
    assert "prefers-color-scheme: dark" in got.text
    tables = [i for i, (tag, _) in enumerate(got.tags) if tag == "table"]
    assert tables
    assert all(got.tags[i - 1] == ("div", {"class": "scroll"}) for i in tables)


@pytest.mark.slow
def test_its_figures_are_those_beside_it(tmp_path):
    diagnosed = {
        name: {"neuron1": 45.0}
        for name in (
            "gradient_angles", "norm_ratios", "agreement", "feedback_angles", "projected_errors",
            "rates", "silent", "saturated",
        )
    }  # fmt: skip
    run = a_run(diagnostics=[{"epoch": 1, **diagnosed}])
    got = written(tmp_path, {"dfa": [run]})
    images = [attributes for tag, attributes in got.tags if tag == "img"]
    assert all(attributes["alt"] for attributes in images)
    embedded = {
        base64.b64decode(a["src"].removeprefix("data:image/svg+xml;base64,")) for a in images
    }
    assert embedded == {path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert all(b"prefers-color-scheme: dark" in picture for picture in embedded)
    assert {p.stem for p in tmp_path.glob("*.svg")} == {
        "curves", "confusion_dfa", "spikes_dfa", "diagnostics_dfa"
    }  # fmt: skip


@pytest.mark.slow
def test_classes_and_layers_are_counted(tmp_path):
    cells = written(tmp_path, {"dfa": [a_run()]}).cells
    head = cells.index("most often taken for") + 1
    assert cells[head : head + 12] == [
        "0", "4", "75.00 %", "1 (1)",
        "1", "0", "-", "-",
        "2", "8", "75.00 %", "0 (2)",
    ]  # fmt: skip
    layer = cells.index("neuron1")
    assert cells[layer : layer + 5] == ["neuron1", "8", "0.250", "12.50 %", "0.00 %"]


@pytest.mark.slow
def test_it_says_how_the_results_came_about(tmp_path):
    described = of_recipe("small", RECIPES["small"].settings, "snn-dfa compare --lr 1 --out x")
    report.write(tmp_path, described, {"dfa": [a_run(), a_run(1)], "own rule": [a_run()]})
    text = Reader((tmp_path / "report.html").read_text()).text
    for said in (
        "snn-dfa compare --lr 1 --out x", "99 samples to train on, 12 to test",
        "1,234 parameters; neurons: neuron1 8", "3 min 03 s for 3 runs, on cpu",
        "direct feedback alignment: each hidden layer gets",
    ):  # fmt: skip
        assert said in text
    assert re.search(r"date\s*20\d\d-\d\d-\d\d", text)


def test_the_command_does_not_say_where_the_data_lay():
    line = cli._line(["compare", "--data-root", "a b", "--out", "x y"])
    assert line == "snn-dfa compare --data-root DIR --out 'x y'"
    assert cli._line(["train", "--data-root=a"]) == "snn-dfa train --data-root=DIR"


@pytest.mark.slow
def test_what_differs_from_the_recipe_comes_first(tmp_path):
    got = written(tmp_path, {"dfa": [a_run()]}, lr=0.5, amp=True, data_root="a/folder")
    cells = got.cells
    first, second = cells.index("--lr"), cells.index("--amp")
    assert cells[first : first + 3] == ["--lr", "0.5", "0.003"]
    assert cells[second : second + 3] == ["--amp", "yes", "no"]
    assert max(first, second) < cells.index("--beta")
    assert cells.count("--lr") == 1
    assert "a/folder" not in got.text  # where the data lay is no part of the result


@pytest.mark.slow
def test_a_recipe_as_it_is_says_so(tmp_path):
    got = written(tmp_path, {"dfa": [a_run()]}, dataset="mnist", seed=3)
    assert "The recipe small as it is." in got.text
    assert "small on mnist" in got.text


@pytest.mark.slow
def test_warnings_are_told_with_their_rule(tmp_path):
    said = {"neuron1": "layer 'neuron1': 90 % of its neurons never fire"}
    got = written(tmp_path, {"dfa": [a_run(warnings=said)], "bptt": [a_run()]})
    assert "dfa: layer 'neuron1': 90 % of its neurons never fire" in got.text
    assert "No warnings" not in got.text
    assert "No warnings" in written(tmp_path, {"dfa": [a_run()]}).text


@pytest.mark.slow
def test_seeds_stand_side_by_side(tmp_path):
    runs = [a_run(seed=4), a_run(seed=5, test_accuracy=0.5)]
    cells = written(tmp_path, {"dfa": runs, "bptt": runs[:1]}).cells
    start = cells.index("seed 4")
    assert cells[start : start + 8] == [
        "seed 4", "seed 5", "dfa", "75.00 %", "50.00 %", "bptt", "75.00 %", "-",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", "'\"><img src=x>"])
def test_what_was_typed_is_text(text):
    settings = replace(RECIPES["small"].settings, device=text, dataset=text)
    run = a_run(warnings={"neuron1": text})
    html = render(
        of_recipe("small", settings, text), {"dfa": [run]},
        {
            "accuracy": [["rule", text], ["dfa", text]], "speed": [["rule"], ["dfa"]],
            "frozen": [["rule", "block"], ["dfa", text]],
        },
        {"curves": b"", "confusion_dfa": b"", "spikes_dfa": b""}, {"torch": text},
    )  # fmt: skip
    got = Reader(html)
    assert got.open == []
    assert got.text.count(text) >= 6
    assert text not in html
    assert {tag for tag, _ in got.tags}.isdisjoint({"script"})
    assert [a.get("src") for tag, a in got.tags if tag == "img"] == [
        "data:image/svg+xml;base64,"
    ] * 3
