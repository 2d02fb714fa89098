"""The site, built by ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from snn_dfa import __version__  # noqa: E402  (of this checkout, installed or not)

project = "snn_dfa"
version = release = __version__
copyright = "the authors of snn_dfa; MIT licence"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "ladder/*.md", "rules/*.md"]

# -- pages -----------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tutorials bring their outputs; the tests run them

# -- the API, from the docstrings ------------------------------------------------------------------
nitpicky = True
# Nothing is fetched while building, so that what lies outside this library is not linked.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|snntorch|collections|typing|pathlib)\..*"),
    (r"py:class", r"nn\.Module|Tensor|NeuroBenchModel"),  # of a class that a function makes
    (r"py:class", r"snn_dfa\.sequence\.(scan\..*|flat_scan\.Layout|facts\.Facts)"),
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# -- looks -----------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"snn_dfa {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _bring_tutorials() -> None:
    """Copy the notebooks of the checkout beside the pages, with a page that lists them."""
    folder = HERE / "tutorials"
    folder.mkdir(exist_ok=True)
    for copied in folder.glob("*.ipynb"):
        copied.unlink()
    notebooks = sorted((ROOT / "tutorials").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, folder)
    lines = ["# Tutorials", "", "There are none in this checkout."]
    if notebooks:
        told, _, _ = (ROOT / "tutorials" / "README.md").read_text().partition("\n## ")
        lines = [told, "```{toctree}", ":hidden:", *(book.stem for book in notebooks), "```"]
    (folder / "index.md").write_text("\n".join(lines) + "\n")


def _formula(self: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    as_block = isinstance(node, nodes.math_block)
    self.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Bring the notebooks in, and show formulas without a script from elsewhere."""
    _bring_tutorials()
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
