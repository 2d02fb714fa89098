"""``python -m snn_dfa`` is ``snn-dfa``."""

import sys

from snn_dfa.experiments.cli import main

sys.exit(main())
