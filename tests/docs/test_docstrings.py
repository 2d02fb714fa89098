"""Every public name says what it is, what it takes and what it gives, with an example that runs.

The examples themselves are run by pytest's ``--doctest-modules``.
"""

import importlib
import inspect
import re
import typing

import pytest

import snn_dfa

MODULES = [
    "snn_dfa",
    *(
        f"snn_dfa.{name}"
        for name in (
            "diagnostics", "eligibility", "encoding", "errors", "feedback", "folding",
            "functional", "kolen_pollack", "neurobench", "neurons", "nir", "normalization", "rules", "sequence", "state", "surrogate",
            "zhang",
        )
    ),
]  # fmt: skip


def is_class(each):
    """Whether it is a class; Python 3.10 takes an alias such as ``Callable[..., int]`` for one."""
    return inspect.isclass(each) and typing.get_origin(each) is None


def public_names():
    """Yield (module, name, what it is), each object once, under the first module that has it."""
    seen = set()
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            each = getattr(module, name)
            if inspect.ismodule(each) or name == "__version__":
                continue
            if is_class(each) or inspect.isfunction(each):
                if each in seen:
                    continue
                seen.add(each)
            yield pytest.param(module, name, each, id=f"{module.__name__}.{name}")


NAMES = list(public_names())
SPEAKING = [p for p in NAMES if is_class(p.values[2]) or inspect.isfunction(p.values[2])]
# What an exception is for is told by its name and a sentence; there is nothing to call.
CALLED = [
    p for p in SPEAKING
    if not (is_class(p.values[2]) and issubclass(p.values[2], BaseException))
]  # fmt: skip
CONSTANTS = [p for p in NAMES if p not in SPEAKING]


def sections(docstring):
    """From the title of a Google section to its text, with ``""`` for what stands before."""
    found, title = {"": ""}, ""
    for line in docstring.splitlines():
        head = re.fullmatch(r"([A-Z]\w+):", line)
        if head:
            title = head[1]
            found[title] = ""
        else:
            found[title] += line + "\n"
    return found


def parameters(each):
    signature = inspect.signature(each)
    return [p.name for p in signature.parameters.values() if p.name != "self"]


def test_the_walk_meets_what_it_should():
    ids = {p.id for p in NAMES}
    assert len(SPEAKING) > 50
    assert {"snn_dfa.DFA", "snn_dfa.surrogate.Exact", "snn_dfa.rules.RULES"} <= ids
    assert set(snn_dfa.__all__) - {"__version__"} <= {
        *(i.removeprefix("snn_dfa.") for i in ids),
        *(m.removeprefix("snn_dfa.") for m in MODULES),
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_is_in_it(name):
    doc = importlib.import_module(name).__doc__
    assert doc
    assert doc.splitlines()[0].endswith(".")


@pytest.mark.parametrize(("module", "name", "each"), SPEAKING)
def test_a_name_has_a_docstring_of_its_own(module, name, each):
    inherited = [getattr(base, "__doc__", None) for base in getattr(each, "__mro__", ())[1:]]
    assert each.__doc__
    assert each.__doc__ not in inherited
    assert not each.__doc__.startswith(f"{name}(")  # what dataclass writes where nobody did
    assert each.__doc__.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize(("module", "name", "each"), CALLED)
def test_a_name_shows_an_example(module, name, each):
    assert ">>> " in sections(inspect.getdoc(each)).get("Example", "")


@pytest.mark.parametrize(("module", "name", "each"), CALLED)
def test_a_name_says_what_each_of_its_parameters_is(module, name, each):
    args = sections(inspect.getdoc(each)).get("Args", "")
    told = re.findall(r"^    \*{0,2}(\w+): \S", args, re.M)
    assert told == parameters(each)  # all of them, no other, in the order of the call


@pytest.mark.parametrize(("module", "name", "each"), CONSTANTS)
def test_a_constant_has_a_word_above_it(module, name, each):
    assert re.search(rf"^#: .+\n(#:.*\n)*{name}\b", inspect.getsource(module), re.M)
