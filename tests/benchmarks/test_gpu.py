"""The script of a visit to a machine with a GPU, run whole on a CPU with tiny sizes."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest
from paths import ROOT

# Two parts more, which end as parts should not; all of them run in one process's forks.
SCRIPT = """
import os, sys, time
sys.path.insert(0, "benchmarks")
import gpu

def crash(visit):
    visit.say(before="the crash")
    os.abort()

gpu.PARTS |= {"crash": (crash, 5), "hang": (lambda visit: time.sleep(60), 0.5)}
gpu.PARTS["machine again"] = gpu.PARTS["machine"]
gpu.main()
"""


def visit(folder, *options):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--out", str(folder), "--device", "cpu", "--small", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert done.stdout.splitlines() == lines
    parts = defaultdict(list)
    for line in map(json.loads, lines):
        parts[line.pop("part")].append(line)
    return parts


@pytest.mark.slow
def test_every_part_has_results_or_a_reason(tmp_path):
    parts = visit(tmp_path, "--start", "fork")
    log = (tmp_path / "log.txt").read_text()
    ended = {part: lines.pop() for part, lines in parts.items()}
    assert ended.pop("crash")["status"] == "error"
    assert parts.pop("crash") == [{"before": "the crash"}]
    hung = ended.pop("hang")
    assert (hung["status"], hung["reason"]) == ("time over", "it ran past its 0.5 s")
    assert "time.sleep" in log or "Fatal Python error" in log  # where it hung
    assert {part: end["status"] for part, end in ended.items()} == dict.fromkeys(ended, "done"), log

    del parts["hang"]
    assert len(parts) == 17
    errors = {line["error"] for lines in parts.values() for line in lines if "error" in line}
    assert all("No module named 'spikingjelly'" in error for error in errors), errors
    assert all(line["right"] for name in ("parity", "parity compiled") for line in parts[name])
    assert {line.get("network") for line in parts["parity"]} == {"dense", "conv"}
    for name in ("own", "step dense", "step conv", "wide", "neuron"):
        assert all(line["ms"] > 0 for line in parts[name] if "error" not in line)
    for name in ("graph bptt", "graph dfa", "graph dfa product"):
        assert parts[name][-1]["left_out"] == "no CUDA graphs without a GPU"
    for name in ("epoch", "images"):
        assert {line["contestant"] for line in parts[name]} == {"dfa", "bptt"}
