"""``report.html``: an experiment to read, in one file that asks nothing of the web.

Figures lie in it as data, there is no script, and wide tables scroll inside their box, so that it
can be read on a phone; in the dark the page is dark and figures lie on a light card.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from snn_dfa.experiments.files import file_name
from snn_dfa.experiments.report.description import Description

__all__ = ["render"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #59636e; --ground: #f6f7f9; --card: #fff;
  --line: #d8dee4; --mark: #b4233c; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9ba6b2; --ground: #14171b;
  --card: #1c2127; --line: #343c45; --mark: #ff8095; --warn: #40351a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll, figure div { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
.scroll { background: var(--card); margin: .5rem 0; } figure div { background: #fff; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .7rem 0; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, .text th, .text td { text-align: left; }
.text td { white-space: normal; } .text td:last-child { min-width: 11rem; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); } tbody th { font-weight: 600; }
figure { margin: .8rem 0; } .beside { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.beside > * { flex: 1 1 20rem; min-width: 0; } .beside > .scroll { align-self: flex-start; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure.wide img { min-width: 40rem; max-width: none; width: 100%; }
.warning { background: var(--warn); border-radius: .5rem; padding: .5rem .8rem; margin: .4rem 0; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
.changed td:nth-child(2) { color: var(--mark); font-weight: 600; }
summary { cursor: pointer; padding: .4rem 0; }
"""


def render(
    described: Description,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Sequence[str]],
    figures: Mapping[str, bytes],
    versions: Mapping[str, str],
    costs: Sequence[Sequence[str]] = (),
) -> str:
    """Return the whole page.

    Args:
        described: What was trained on what.
        results: Rule to the results of its runs, one for each seed.
        rows: The table of rules, its head first.
        figures: Name to picture, as PNG: ``curves``, ``confusion_RULE``, ``diagnostics_RULE``.
        versions: Name to version of what made the numbers.
        costs: The table of what training costs, its head first.
    """
    title = described.title
    firsts = {rule: runs[0] for rule, runs in results.items()}
    seeds = [str(run["seed"]) for run in next(iter(results.values()))]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(described.name)}: {escape(described.about)}. '
        f"{'Seeds' if len(seeds) > 1 else 'Seed'} {escape(', '.join(seeds))}, on "
        f"{escape(described.device)}. Accuracies are of the test set, with the weights of the "
        f"{described.weights}; spikes and operations are those of a sample. The interval is that "
        f"of 95 % for so many test samples.</p>",
        _table(rows[0], rows[1:]),
        *_warnings(firsts),
        _figure(figures["curves"], "Accuracy and loss over epochs, of each rule", wide=True),
        *_over_seeds(results),
        *_costs(costs),
        *_configuration(described),
        *(part for rule, run in firsts.items() for part in _of_rule(rule, run, figures)),
        "<h2>Versions</h2>",
        _table(("what", "version"), versions.items(), kind="text"),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - snn_dfa</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(
    head: Iterable[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    kind: str = "figures",
) -> str:
    """Return a table whose first column names the row, in a box that scrolls."""
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    lines.append(
        "<thead><tr>" + "".join(f'<th scope="col">{escape(c)}</th>' for c in head) + "</tr></thead>"
    )
    lines.append("<tbody>")
    for first, *others in rows:
        cells = "".join(f"<td>{escape(each)}</td>" for each in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return f'<div class="scroll"><table class="{kind}">{body}</tbody></table></div>'


def _figure(png: bytes, said: str, wide: bool = False) -> str:
    data = base64.b64encode(png).decode()
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure{kind}><div><img src="data:image/png;base64,{data}" alt="{escape(said)}"></div>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _warnings(firsts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = [(rule, text) for rule, run in firsts.items() for text in run["warnings"].values()]
    if not said:
        return [
            '<p class="soft">No warnings: in every layer most neurons fire, and not always.</p>'
        ]
    return ["<h2>Warnings</h2>"] + [
        f'<p class="warning"><b>{escape(rule)}</b>: {escape(text)}</p>' for rule, text in said
    ]


def _over_seeds(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    if all(len(runs) == 1 for runs in results.values()):
        return []
    seeds = sorted({run["seed"] for runs in results.values() for run in runs})
    rows = []
    for rule, runs in results.items():
        of = {run["seed"]: _percent(run["test_accuracy"]) for run in runs}
        rows.append([rule, *(of.get(seed, "-") for seed in seeds)])
    head = ["rule", *(f"seed {seed}" for seed in seeds)]
    return ["<h2>Over seeds</h2>", _table(head, rows, "test accuracy; below, the first seed")]


def _of_rule(rule: str, run: Mapping[str, Any], figures: Mapping[str, bytes]) -> list[str]:
    """Return what one rule did: its classes, its layers, its diagnostics."""
    right, epochs = _percent(run["test_accuracy"]), len(run["history"])
    layers = [
        [layer, f"{rate:.3f}", _percent(run["silent"][layer]), _percent(run["saturated"][layer])]
        for layer, rate in run["firing_rates"].items()
    ]
    parts = [
        f"<h2>{escape(rule)}</h2>",
        f"<p>{right} of the test set right after epoch {run['best_epoch']} of {epochs} "
        f"(validation {_percent(run['val_accuracy'])}).</p>",
        '<div class="beside">',
        _table(("class", "samples", "right", "most often taken for"), _classes(run["confusion"])),
        _figure(
            figures[f"confusion_{file_name(rule)}"],
            f"{rule}: classes, and what they were taken for",
        ),
        "</div>",
        _table(("layer", "spikes a neuron and step", "silent neurons", "saturated"), layers),
    ]
    diagnosed = figures.get(f"diagnostics_{file_name(rule)}")
    if diagnosed is not None:
        parts.append(_figure(diagnosed, f"{rule}: diagnostics after each epoch", wide=True))
    return parts


def _classes(confusion: Sequence[Sequence[int]]) -> Iterable[list[str]]:
    """Yield for each class how many there are, how many are right, and the commonest error."""
    for true, counts in enumerate(confusion):
        wrong = [0 if true == taken else count for taken, count in enumerate(counts)]
        most = max(wrong)
        total = sum(counts)
        yield [
            str(true),
            str(total),
            _percent(counts[true] / total) if total else "-",
            f"{wrong.index(most)} ({most})" if most else "-",
        ]


def _costs(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    said = "computed for one training step of a batch, by snn_dfa.diagnostics.training_cost"
    return ["<h2>What training costs</h2>", _table(rows[0], rows[1:], said)]


def _configuration(described: Description) -> list[str]:
    """Return the settings: first those that differ from the usual ones, then the others, folded."""
    differing = [s for s in described.listed if s.value != s.usual]
    others = [(s.name, s.value, s.help) for s in described.listed if s.value == s.usual]
    parts = ["<h2>Configuration</h2>"]
    if differing:
        head = ("option", "here", described.usual, "what it is")
        lines = [(s.name, s.value, s.usual, s.help) for s in differing]
        parts.append(_table(head, lines, f"differs from the {described.usual}", "text changed"))
    else:
        parts.append(f"<p>The {escape(described.usual)} as it is.</p>")
    table = _table(("option", "here", "what it is"), others, kind="text")
    said = f"{len(others)} settings as in the {escape(described.usual)}"
    parts.append(f"<details><summary>{said}</summary>{table}</details>")
    return parts


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f} %"
