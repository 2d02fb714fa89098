"""What the README and the pages show works as it stands there.

The Python blocks of a page run in order, in one namespace, in a folder of their own, with warnings as
errors. A comment in the line above a block says where it is treated otherwise:

- ``<!-- example -->``: the README's fifteen lines, which get the digits as their ``batches``;
- ``<!-- file: NAME -->``: written to that file, to be run by a command of the page;
- ``<!-- run -->``: a shell block that is run;
- ``<!-- not run: WHY -->``.

Of the other shell blocks every ``snn-dfa`` line is read by the command's own parser, and of ``python FILE``
and ``pip install`` the files, options and extras are looked up.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from paths import ROOT

from snn_dfa.experiments import cli
from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings, UsageError

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
_MARKER = re.compile(r"example|run|file: [\w.]+|not run: \S.*|command: \w+")
_NEEDS = ("nir", "nirtorch", "neurobench")  # optional; a page that imports them is skipped without


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


def with_blocks(*languages):
    return named(page for page in PAGES if blocks(page, *languages))


def digits():
    train = load(Settings()).train
    return list(zip(train.x.flatten(1).split(64), train.y.split(64), strict=True))


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
            if block.marker == "example":
                names["batches"] = digits() * 6
            # The line numbers of a complaint are those of the page.
            code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
            exec(code, names)
    if page == README:
        assert learnt(**names) > 0.8


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


def learnt(net, encoding, reset, **_):
    """Return the accuracy of the README's network on what it has learnt from."""
    train = load(Settings()).train
    reset(net.eval())
    x = encoding.poisson(train.x.flatten(1), num_steps=25)
    with torch.no_grad():
        spk = torch.stack([net(step) for step in x])
    return (spk.sum(0).argmax(1) == train.y).float().mean().item()


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
