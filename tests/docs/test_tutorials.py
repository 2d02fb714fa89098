"""The tutorials run as they stand, and what they show is what they give.

Each notebook is run from a clean state and its fresh outputs are set beside those that are stored:

* the words of what is printed must be the same;
* numbers may differ by a unit of their last digit, and by 2 %: other processors and versions of
  torch add in another order; one with an exponent is a rounding error and may be 30 times as large;
* in cells with the tag ``trained`` numbers come out of a training, where a spike more or less
  changes all that follows: percentages and ``points`` may differ by 8 points, others by
  35 % or by 12 (degrees), whichever is more;
* of cells with the tag ``measured``, times and the like, only that they print as many lines;
* of pictures, that there are as many.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
POINTS, SHARE, FLOOR = 8.0, 0.35, 12.0  # how far numbers out of a training may differ
KNOWN_TAGS = {"trained", "measured"}


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _load(ROOT / "tutorials" / "execute.py")
NOTEBOOKS = run.tutorials()
names = [path.stem for path in NOTEBOOKS]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def printed(cell):
    """All text that a cell left, errors and warnings of the standard error among it."""
    texts = [o.text if o.output_type == "stream" else o.get("data", {}).get("text/plain", "")
             for o in cell.get("outputs", [])]  # fmt: skip
    return "".join(texts)


def pictures(cell):
    return sum("image/png" in o.get("data", {}) for o in cell.outputs)


def words(text):
    """The text with its numbers, and the spaces that align them, taken out."""
    return " ".join(NUMBER.sub(" # ", text).split())


def tolerance(stored, after, trained):
    """How far a number may be from the stored one; ``after`` is what follows it in the text."""
    digits = re.search(r"\.(\d+)", stored)
    last = 10.0 ** -len(digits[1]) if digits else 1.0
    if not trained:
        return max(1.01 * last, 0.02 * abs(float(stored)))
    if after.lstrip().startswith(("%", "points")):
        return POINTS
    size = abs(float(stored))
    return max(SHARE * size, FLOOR if size > FLOOR else last, 0.05)


def differences(stored, fresh, trained):
    """Say where two texts differ by more than they may."""
    if words(stored) != words(fresh):
        return [f"words: {words(stored)!r} and now {words(fresh)!r}"]
    return [
        f"{old[0]} and now {new[0]}"
        for old, new in zip(NUMBER.finditer(stored), NUMBER.finditer(fresh), strict=True)
        if not close(old[0], new[0], stored[old.end() :], trained)
    ]


def close(stored, fresh, after, trained):
    """Whether two numbers, as they were printed, may stand for each other."""
    if "e" in stored:  # the size of a rounding error
        return max(float(fresh), 1e-12) / float(stored) < 30
    return abs(float(stored) - float(fresh)) <= tolerance(stored, after, trained)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_it_runs_and_gives_what_is_stored(path):
    stored = run.read(path)
    fresh = run.execute(stored)
    wrong = []
    for number, (old, new) in enumerate(zip(code_cells(stored), code_cells(fresh), strict=True)):
        assert not [o for o in new.outputs if o.get("name") == "stderr"], printed(new)
        assert pictures(old) == pictures(new)
        if "measured" in tags(old):
            assert len(printed(old).splitlines()) == len(printed(new).splitlines()) > 0
            continue
        found = differences(printed(old), printed(new), "trained" in tags(old))
        wrong += [f"code cell {number}: {each}" for each in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_it_is_stored_as_it_should_be(path):
    notebook = run.read(path)
    text = "".join(cell.source + printed(cell) for cell in notebook.cells)
    assert not re.search(r"/(home|root|tmp|work|Users|usr|mnt|opt)/|[A-Z]:\\\\", text)
    assert path.stat().st_size < 600_000
    title, install = notebook.cells[:2]
    assert title.source.startswith(f"# {int(path.name[:2])}. ")
    assert "find_spec" in install.source
    assert not install.outputs
    assert run.headed(run.read(path), path.name) == run.clean(run.read(path)) == notebook
    last = notebook.cells[-1].source
    assert "## Exercise" in last
    assert "<summary>Hint</summary>" in last
    assert "<summary>Answer</summary>" in last
    assert '"figure.dpi": 220' in text  # three times the pixels of a page: sharp on a good screen


def test_no_notebook_points_to_a_place_that_is_not_there():
    assert run.REPOSITORY is None or "OWNER" not in run.REPOSITORY
    for path in NOTEBOOKS:
        text = path.read_text()
        assert "OWNER/" not in text
        for address in re.findall(r"github(?:\.com)?/([\w-]+/snn_dfa)", text):
            assert address == run.REPOSITORY


def test_the_address_is_all_that_the_heading_needs():
    notebook = run.headed(run.read(NOTEBOOKS[0]), NOTEBOOKS[0].name, "someone/snn_dfa")
    title, install = notebook.cells[:2]
    assert f"github/someone/snn_dfa/blob/main/tutorials/{NOTEBOOKS[0].name}" in title.source
    assert "git+https://github.com/someone/snn_dfa" in install.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_every_cell_that_shows_something_has_its_output(path):
    cells = code_cells(run.read(path))
    for number, cell in enumerate(cells, start=1):
        assert cell.execution_count == number
        assert tags(cell) <= KNOWN_TAGS
        if "print(" in cell.source and "def " not in cell.source:
            assert printed(cell)
        assert pictures(cell) == len(re.findall(r"^plt\.show\(\)", cell.source, re.MULTILINE))
    assert sum(map(pictures, cells)) >= 1


def test_the_readme_names_all_of_them():
    text = (ROOT / "tutorials" / "README.md").read_text()
    assert len(NOTEBOOKS) == 10
    assert all(path.name in text for path in NOTEBOOKS)
    assert "python tutorials/execute.py" in text


def test_the_kernel_is_this_python_with_this_checkout(tmp_path):
    cell = nbformat.v4.new_code_cell("import sys, snn_dfa; print(sys.executable); snn_dfa.__file__")
    done = run.execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    python, package = printed(done.cells[0]).splitlines()
    assert python == sys.executable
    assert Path(package.strip("'")).parent == ROOT / "snn_dfa"


@pytest.mark.parametrize(
    ("stored", "fresh", "trained", "same"),
    [
        ("B: (10, 128)", "B: (10, 128)", False, True),
        ("B: (10, 128)", "B: (10, 256)", False, False),
        ("rate 0.125 at most", "rate 0.126 at most", False, True),
        ("rate 0.125 at most", "rate 0.150 at most", False, False),
        ("equal: True", "equal: False", False, False),
        ("agree to 3e-07", "agree to 9e-07", False, True),
        ("agree to 3e-07", "agree to 4e-03", False, False),
        ("DFA 96.7 %", "DFA 90.0 %", True, True),
        ("DFA  9.7 %", "DFA 90.0 %", True, False),
        ("DFA 96.7 %", "BPTT 96.7 %", True, False),
        ("62 degrees", "71 degrees", True, True),
        ("62 degrees", "90 degrees", True, False),
        ("0 degrees", "3 degrees", True, False),
        ("500 spikes", "600 spikes", True, True),
        ("500 spikes", "900 spikes", True, False),
    ],
)
def test_what_counts_as_the_same(stored, fresh, trained, same):
    assert (not differences(stored, fresh, trained)) == same
