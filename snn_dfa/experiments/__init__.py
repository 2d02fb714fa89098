"""The command line's experiments: data, a network, training, checkpoints, reports."""

from importlib.util import find_spec

_NEEDED = ("jinja2", "matplotlib", "sklearn", "tqdm", "yaml")

if any(find_spec(name) is None for name in _NEEDED):
    raise ImportError(
        "snn-dfa and snn_dfa.compare: expected jinja2, matplotlib, scikit-learn, tqdm and pyyaml; "
        "install them with pip install 'snn-dfa[experiments]', or in a checkout with "
        "pip install '.[experiments]'"
    )
