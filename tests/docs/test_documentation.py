"""What the README and the pages show works as it stands there.

The Python blocks of a page run in order, in one namespace, in a folder of their own, with warnings as
errors. A comment in the line above a block says where it is treated otherwise:

- ``<!-- example -->``: the README's quickstart; the block with ``<!-- output -->`` has what it prints;
- ``<!-- file: NAME -->``: written to that file, to be run by a command of the page;
- ``<!-- run -->``: a shell block that is run;
- ``<!-- not run: WHY -->``.

Of the other shell blocks every ``snn-dfa`` line is read by the command's own parser, and of ``python FILE``
and ``pip install`` the files, options and extras are looked up.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

from snn_dfa import DFA, __version__
from snn_dfa.experiments import cli
from snn_dfa.experiments.settings import UsageError
from snn_dfa.feedback import NAMES

README = ROOT / "README.md"
MADE = ("_build", "tutorials")  # by building the site
PAGES = [
    README,
    ROOT / "benchmarks" / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.relative_to(ROOT).parts[1] not in MADE),
]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
_MARKER = re.compile(r"example|output|run|file: [\w.]+|not run: \S.*|command: \w+")
_NEEDS = (
    "nir",
    "nirtorch",
    "neurobench",
    "optuna",
)  # optional; a page that imports them is skipped without


class Block(NamedTuple):
    page: Path
    line: int
    marker: str
    language: str
    code: str


def blocks(page, *languages):
    text = page.read_text()
    return [
        Block(
            page, text[: m.start("code")].count("\n"), m["marker"] or "", m["language"], m["code"]
        )
        for m in _BLOCK.finditer(text)
        if m["language"] in languages
    ]


def named(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def load(path):
    """Return a script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_blocks(*languages):
    return named(page for page in PAGES if blocks(page, *languages))


def test_the_pages_are_found():
    assert {"README.md", "concepts.md", "network.md"} <= {page.name for page in PAGES}
    assert len(blocks(ROOT / "docs" / "howto" / "network.md", "python")) > 4


def test_every_marker_is_one_that_is_known():
    for page in PAGES:
        for block in blocks(page, "python", "bash"):
            assert not block.marker or _MARKER.fullmatch(block.marker), block[:3]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("python"))
@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph:DeprecationWarning")
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for block in blocks(page, "python", "bash"):
        for package in _NEEDS:
            if re.search(rf"^import {package}\b", block.code, re.M):
                pytest.importorskip(package)
        if block.marker.startswith("file: "):
            Path(block.marker.removeprefix("file: ")).write_text(block.code)
        elif block.marker == "run":
            run(block.code)
        elif block.language == "python" and not block.marker.startswith("not run: "):
            # The line numbers of a complaint are those of the page.
            code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, names)
            if block.marker == "example":
                check_output(printed.getvalue())


def run(commands):
    """Run what a page says at a shell prompt, with this interpreter's commands and this checkout."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        commands, shell=True, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def check_output(printed):
    """Compare what the quickstart prints with the README; first weights are random: two points."""
    (shown,) = (b.code for b in blocks(README, "text") if b.marker == "output")
    number = re.compile(r"[\d.]+")
    assert number.sub("#", printed) == number.sub("#", shown)
    assert float(number.search(printed)[0]) == pytest.approx(float(number.search(shown)[0]), abs=2)


def test_the_example_is_as_short_as_it_says():
    (block,) = (b for b in blocks(README, "python") if b.marker == "example")
    assert len([line for line in block.code.splitlines() if line.strip()]) <= 15


# -- commands --------------------------------------------------------------------------------------


def commands(page):
    """Yield the commands of the page's shell blocks as lists of words."""
    for block in blocks(page, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;", line):
                words = shlex.split(part, comments=True)
                if words:
                    yield words


def check(words):
    """Refuse what names a command, an option, a file or an extra that is not there."""
    command, *rest = words
    name = Path(command).name
    if name == "snn-dfa":
        cli.make_parser().parse_args(rest)
    elif name in ("python", "python3") and rest[:1] == ["-m"]:
        assert importlib.util.find_spec(rest[1]), words
    elif name == "python":
        text = (ROOT / rest[0]).read_text()
        if "import seeds" in text:  # which has the options of several scripts
            text += (ROOT / "benchmarks" / "seeds.py").read_text()
        assert all(f'"{option}"' in text for option in rest[1:] if option.startswith("--")), words
    elif name == "pip":
        told = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
        extras = re.findall(r"^(\w+) = ", told.split("\n[")[0], re.M)
        for wanted in re.findall(r"\.\[([\w,]+)\]", " ".join(rest)):
            assert set(wanted.split(",")) <= set(extras), words
    elif name == "sphinx-build":
        assert (ROOT / rest[-2] / "conf.py").is_file(), words
    else:
        assert name in ("torchrun", "git", "ruff", "mypy", "lint-imports", ".ci/run", "run"), words


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_the_commands_of_a_page_exist(page):
    found = list(commands(page))
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "snn-dfa fly",
        "snn-dfa compare --frobnicate",
        "snn-dfa train --epochs many",
        "python benchmarks/nothing.py",
        "python benchmarks/step.py --frobnicate",
        "pip install '.[cake]'",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_told(line):
    with pytest.raises((UsageError, AssertionError, OSError)):
        check(shlex.split(line))


def test_the_two_commands_of_the_readme_are_what_they_say():
    shown = {b.marker: b.code for b in blocks(README, "bash")}
    assert ".venv/bin/snn-dfa compare" in shown["command: compare"]
    assert ".venv/bin/python -m pytest" in shown["command: tests"]


# -- numbers ---------------------------------------------------------------------------------------


def section(page, heading):
    """Return the text below a heading, up to the next one of its level."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found[1]


def test_the_numbers_of_the_mechanism_are_those_of_the_comparison():
    rows = {
        row["name"]: row for row in json.loads((ROOT / "docs/rules/rules.json").read_text())["rows"]
    }
    text = section("docs/concepts.md", "What DFA does not do")
    shown = re.findall(r"(\d\d\.\d\d) %", text)
    learned = "dfa, error at the current, kolen-pollack"
    assert shown == [
        f"{100 * rows[name]['test_accuracy']:.2f}"
        for name in (
            "dfa",
            "bptt",
            "conv: dfa",
            "conv: bptt",
            f"{learned}-product",
            f"conv: {learned}",
        )
    ]
    dense, conv = (angles(rows[name]) for name in ("dfa", "conv: dfa"))
    assert f"{min(dense)} to {max(dense)} degrees" in text
    assert f"{conv[0]} and {conv[1]} degrees" in text


def angles(row):
    """Return the angles of a row's hidden layers, in whole degrees, where it sends them an error."""
    found = list(row["diagnostics"][-1]["gradient_angles"].values()) if row["diagnostics"] else []
    return [round(angle) for angle in found[:-1] if math.isfinite(angle)]


def test_no_number_with_a_unit_stands_in_prose_alone():
    """Of the pages that sum up: each one is in a page that has the commands, or in its table."""
    docs = ROOT / "docs"
    pages = (docs / f"{name}.md" for name in ("learning", "experiments", "rules"))
    sources = (*pages, ROOT / "benchmarks" / "README.md")
    known = "".join(page.read_text() for page in sources)
    for page in (README, *(docs / f"{name}.md" for name in ("index", "faq", "which", "concepts"))):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        shown = re.findall(r"(\d+(?:\.\d+)?) (?:%|ms|MB|degrees|points?)(?!\w)", prose)
        shown += re.findall(r"\b0\.\d\d\b", prose)  # ratios of times and of memory
        assert [n for n in shown if n not in known] == [], page.name


def test_the_times_and_the_memory_of_the_readme_and_the_questions_are_those_of_the_benchmarks():
    known = (ROOT / "benchmarks" / "README.md").read_text()
    for text in (section("README.md", "Results"), (ROOT / "docs" / "faq.md").read_text()):
        shown = re.findall(r"(\d+(?:\.\d+)?) (?:ms|MB)", text)
        assert len(shown) >= 3
        assert [number for number in shown if number not in known] == []


@pytest.mark.slow
def test_the_figures_are_drawn_from_the_numbers(tmp_path, monkeypatch):
    figures = load("docs/figures.py")
    there = tmp_path / "docs"
    for name in figures.FIGURES:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(figures, "HERE", there)
    figures.main()
    for name in figures.FIGURES:
        drawn, stored = (
            re.findall(r">([^<>\n]+)</text>", (folder / name).read_text())
            for folder in (there, ROOT / "docs")
        )
        assert drawn == stored
        assert len(drawn) > 10


def test_the_table_of_arguments_is_that_of_the_class():
    text = (ROOT / "docs/api/snn_dfa.md").read_text()
    table = section("docs/api/snn_dfa.md", "The arguments of `DFA`").split("\n\n")[0]
    shown = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`)? ?\| ", table, re.M)
    parameters = list(inspect.signature(DFA).parameters.values())
    assert shown == [
        (p.name, "" if p.default is p.empty else json.dumps(p.default).replace("null", "None"))
        for p in parameters
    ]
    for name in NAMES:
        assert f'`"{name}"`' in text


def test_the_version_that_is_cited_is_this_one():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{__version__}}}" in README.read_text()


def test_no_page_points_to_a_place_that_is_not_there():
    for page in [*PAGES, ROOT / "pyproject.toml", ROOT / "CITATION.cff"]:
        assert "OWNER/" not in page.read_text()


def test_the_address_is_the_same_wherever_it_stands():
    """Or nowhere: no badge, no link and no project's address, as long as there is none."""
    names = "tutorials/execute.py", "pyproject.toml", "CITATION.cff", "README.md", "docs/index.md"
    notebooks, project, citation, *pages = ((ROOT / name).read_text() for name in names)
    (repository,) = re.findall(r"^REPOSITORY.* = (.+)$", notebooks, re.M)
    if repository != "None":
        address = f"https://github.com/{repository.strip(chr(34))}"
        assert address in project.split("[project.urls]")[1]
        assert f"repository-code: {address}" in citation
        return
    assert "[project.urls]" not in project
    assert "repository-code" not in citation
    for page in pages:
        assert not re.search(r"badge|shields\.io|github\.io|readthedocs\.io/.*snn.dfa", page)


def test_all_pages_are_in_the_menu():
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    listed = re.findall(r"```{toctree}\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.S)
    assert pages <= set(re.findall(r"^(?:.*<)?([\w/-]+)>?$", "\n".join(listed), re.M))


def test_every_word_of_the_glossary_is_linked_or_used():
    terms = re.findall(r"^## (.+)$", (ROOT / "docs/glossary.md").read_text(), re.M)
    assert terms == sorted(terms, key=str.lower)
    linked = re.findall(r"glossary\.md#([\w-]+)", "".join(page.read_text() for page in PAGES))
    assert len(set(linked)) >= 8


# -- links -----------------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(
        r"^#{1,6} (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page):
    """Yield the relative links of a page that lead nowhere; the web is not asked."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        if to == ROOT / "docs" / "tutorials" / "index.md":
            continue  # made by building the site, which looks at it then
        if not to.exists() or (anchor and anchor not in anchors(to)):
            yield link


@pytest.mark.parametrize("page", named(PAGES))
def test_no_link_of_a_page_is_broken(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_told(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One head\n[a](#one-head) [b](#two) [c](gone.md) [d](page.md) [e](https://x.y)"
    )
    assert list(broken_links(page)) == ["#two", "gone.md"]


@pytest.mark.parametrize("page", load("docs/tables.py").PAGES)
def test_the_tables_of_a_page_are_those_of_their_files(page):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert load("docs/tables.py").filled(text) == text
