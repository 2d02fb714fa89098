"""Run the tutorials and store what they print and draw.

    python tutorials/execute.py                  all of them
    python tutorials/execute.py tutorials/03*    some

A notebook runs in a kernel of this Python, on one thread, with the ``snn_dfa`` of this checkout.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

__all__ = ["REPOSITORY", "clean", "execute", "headed", "read", "tutorials", "write"]

#: Where the notebooks are published, as OWNER/NAME on GitHub; docs/contributing.md says more.
#: With ``None`` the notebooks have no link to Colab and say how to install from a checkout.
REPOSITORY: str | None = None

HERE = Path(__file__).resolve().parent
TIMEOUT = 240  # seconds a cell

_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
_COLAB = "https://colab.research.google.com/github/{}/blob/main/tutorials/{}"
_INSTALL = """\
import importlib.util

if importlib.util.find_spec("snn_dfa") is None:  # as in Colab
    %pip install -q "snn-dfa[experiments] @ git+https://github.com/{}"\
"""
_FROM_CHECKOUT = """\
import importlib.util

if importlib.util.find_spec("snn_dfa") is None:
    raise ImportError("run in a checkout of the repository: pip install '.[experiments]'")\
"""


class _ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs this, whatever kernels are installed."""

    def __init__(self, **options: Any) -> None:
        # With no folders to look in, what is found is ipykernel's own.
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)


def tutorials() -> list[Path]:
    """Return the notebooks in their order."""
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook: NotebookNode) -> None:
    """Check a notebook and write it."""
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, indent=1) + "\n")


def headed(notebook: NotebookNode, name: str, repository: str | None = REPOSITORY) -> NotebookNode:
    """Put Colab's badge under the title, and after it the cell that installs what is missing.

    Without a repository there is no badge, and the cell says what to install.
    """
    title = notebook.cells[0].source.splitlines()[0]
    if repository is None:
        notebook.cells[0].source, notebook.cells[1].source = title, _FROM_CHECKOUT
        return notebook
    badge = _BADGE.format(_COLAB.format(repository, name))
    notebook.cells[0].source = f"{title}\n\n{badge}"
    notebook.cells[1].source = _INSTALL.format(repository)
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs from run to run or from machine to machine, and says nothing."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = nbformat.from_dict({})
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)
    return notebook


def execute(notebook: NotebookNode, folder: Path = HERE) -> NotebookNode:
    """Run a notebook from a clean state and return it with fresh outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell does.
    """
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_manager_class=_ThisPython,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        timeout=TIMEOUT,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=_environment())
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = packed(output.data["image/png"])
    return clean(notebook)


def packed(png: str) -> str:
    """Return a picture in 256 colours, enough for lines and dots, at a third of the size."""
    picture, file = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    few = picture.quantize(256, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _environment() -> dict[str, str]:
    """Return the kernel's environment: this checkout, every warning, one thread.

    One thread is quickest for networks so small, and adds numbers up in the same order each time.
    """
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "default",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def main() -> None:
    """Run the notebooks that are named, or all, and store their outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="which ones (default: all)")
    for path in parser.parse_args().notebooks or tutorials():
        notebook = execute(headed(read(path), path.name))
        write(path, notebook)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        warned = any(output.get("name") == "stderr" for output in outputs)
        said = ", with warnings" if warned else ""
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB{said}", flush=True)


if __name__ == "__main__":
    main()
