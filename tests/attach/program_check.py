"""Run a random program twice, plain and with DFA, and compare it with the oracle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import programs
import snntorch as snn
import torch
from oracle import Oracle
from programs import CHOICES, LAYER_CHOICES, Layer, Spec
from torch import Tensor

import snn_dfa

EQUAL, REFUSED, WRONG, CRASHED, INVALID = "equal", "refused", "wrong", "crashed", "invalid"
FAILURES = (WRONG, CRASHED, INVALID)


@dataclass(frozen=True)
class Outcome:
    """What came of a program: a kind, what was said, and how often its hidden layers spiked."""

    kind: str
    message: str = ""
    rates: tuple[float, ...] = ()

    @property
    def spikes(self) -> bool:
        """Whether each hidden layer fired, and not all the time."""
        return bool(self.rates) and all(0 < r < 1 for r in self.rates)


class _Plain(Exception):
    """The program fails without DFA, too."""


class _Different(Exception):
    """A value or a gradient is not what it should be."""


@contextmanager
def _surroundings() -> Iterator[None]:
    """Float64, warnings as errors, and snnTorch's list of all neurons as it was."""
    before, neurons = torch.get_default_dtype(), len(snn.SpikingNeuron.instances)
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # torch says so of a layer whose input asks for no gradient, with DFA of each layer.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            # The library says so of a plain head that is no output, as it is meant here.
            warnings.filterwarnings("ignore", message="the loss reads layer")
            yield
    finally:
        torch.set_default_dtype(before)
        del snn.SpikingNeuron.instances[neurons:]


def check(spec: Spec, dfa_class: Callable[..., Any] = snn_dfa.DFA) -> Outcome:
    """Return the outcome of one program."""
    pair = _Pair(spec, dfa_class)
    with _surroundings():
        try:
            pair.run()
        except _Plain as error:
            cause = error.__cause__
            return Outcome(INVALID, f"{type(cause).__name__}: {cause}")
        except Exception as error:
            if (plain := pair.plain_fails()) is not None:
                return Outcome(INVALID, f"{type(plain).__name__}: {plain}")
            return Outcome(*_kind(error, pair.written()), pair.rates())
        return Outcome(EQUAL, "", pair.rates())


def _kind(error: Exception, written: bool) -> tuple[str, str]:
    """Return the outcome of an error, and what is said of it."""
    if isinstance(error, _Different):
        return WRONG, str(error)
    said = f"{type(error).__name__}: {error}"
    if not isinstance(error, snn_dfa.DFAError):
        return CRASHED, said
    return (WRONG, f"refused after .grad was written: {error}") if written else (REFUSED, said)


class _Pair:
    """The same network twice: watched by the oracle, and with DFA."""

    def __init__(self, spec: Spec, dfa_class: Callable[..., Any]) -> None:
        self.spec, self.dfa_class = spec, dfa_class
        self.dfa: Any = None
        self.attached: programs.Network | None = None
        self.losses: list[Tensor] = []
        self.trained = False  # whether the plain program has gone backward in this batch
        self.fired: dict[str, list[float]] = {}
        self.grads: dict[str, Tensor | None] = {}

    def run(self) -> None:
        spec = self.spec
        with _plainly():
            self.plain = programs.build(spec)
            for name in self.plain.hidden_names():
                self._count(name)
            hidden, outputs = self.plain.hidden_names(), self.plain.output_names()
            dims = 2 if spec.loop == "sequence" else 1
            along = spec.seed % 2 if spec.reads == "all" else None
            self.oracle = Oracle(self.plain, hidden, outputs, batch_dims=dims, along=along)
        for batch in range(spec.batches):
            with _plainly():
                self.oracle.clear()
                records, states, losses = programs.run(spec, self.plain, batch)
                if not any(loss.requires_grad for loss in losses):
                    raise ValueError("the loss has no graph")
            self.losses, self.trained = losses, False
            if self.dfa is None:
                self._attach()
            self._compare_batch(batch, records, states, losses)
            if spec.without_grad:
                self._run_without_grad(batch)

    def rates(self) -> tuple[float, ...]:
        return tuple(sum(v) / max(len(v), 1) for v in self.fired.values())

    def written(self) -> bool:
        """Whether a gradient was changed since the last backward pass that went well."""
        now = self._grads() if self.attached is not None else {}
        return any(not _same(g, self.grads.get(n)) for n, g in now.items())

    def plain_fails(self) -> Exception | None:
        """Go backward in the plain program's last batch, if that is not done; return its error."""
        try:
            if not self.trained:
                _backward(self.losses)
        except Exception as error:
            return error
        return None

    def _grads(self) -> dict[str, Tensor | None]:
        params = self.attached.named_parameters()
        return {n: None if p.grad is None else p.grad.clone() for n, p in params}

    def _count(self, name: str) -> None:
        """Note how often a layer fires, whatever the program does to its spikes later."""
        module = self.plain.get_submodule(name)
        plain, rates = module.forward, self.fired.setdefault(name, [])

        def forward(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            spikes = result if isinstance(result, Tensor) else result[0]
            rates.append(float((spikes.detach() != 0).double().mean()))
            return result

        module.forward = forward

    def _attach(self) -> None:
        self.attached = programs.build(self.spec)
        given = self.attached.arguments()
        if self.spec.feedback == "given":
            g = programs.generator(self.spec.seed + 11)
            shapes = self.oracle.feedback_shapes()
            given["feedback"] = {n: torch.randn(s, generator=g) for n, s in shapes.items()}
        self.dfa = self.dfa_class(self.attached, seed=self.spec.seed, **given)

    def _compare_batch(
        self, batch: int, records: dict[str, list[Tensor]], states: Any, losses: list[Tensor]
    ) -> None:
        attached = self.attached
        attached.zero_grad(set_to_none=True)
        self.grads = {}
        run = programs.run(self.spec, attached, batch, self._each_backward)
        records_dfa, states_dfa, losses_dfa = run
        _compare_values("recorded", records, records_dfa)
        _compare_values("final state", states, states_dfa)
        buffers = [
            {n: b for n, b in net.named_buffers() if b is not None}
            for net in (self.plain, attached)
        ]
        _compare_values("buffer", *buffers)
        found = self._backward(losses_dfa)
        with _plainly():
            feedback = dict(self.dfa.feedback)
            shapes = self.oracle.feedback_shapes()
        for name, shape in shapes.items():
            # Without an error there need be no matrix; with one, another matrix is found out.
            matrix = feedback.setdefault(name, torch.ones(shape))
            if matrix.shape != shape:
                raise _Different(f"feedback of {name}: {list(matrix.shape)}, expected {shape}")
        with _plainly():
            total = sum(losses[1:], losses[0])
            expected = self.oracle.gradients(total, feedback)
            # Last, as it frees the graph: the plain program trains, too.
            self.trained = True
            _backward(losses)
        _compare_gradients(batch, expected, found)

    def _backward(self, losses: list[Tensor]) -> dict[str, Tensor | None]:
        """Go backward as the program does, and return the gradients by name."""
        params = dict(self.attached.named_parameters())
        learn = {n: p for n, p in params.items() if p.requires_grad}
        if self.spec.backward == "grad":
            grads = torch.autograd.grad(losses[0], list(learn.values()), allow_unused=True)
            return {n: None for n in params} | dict(zip(learn, grads, strict=True))
        if self.spec.backward == "inputs":
            losses[0].backward(inputs=list(learn.values()))
        elif self.spec.backward != "steps":
            self._each_backward(losses)
        return {n: p.grad for n, p in params.items()}

    def _each_backward(self, losses: list[Tensor]) -> None:
        _backward(losses, after=self._note_grads)

    def _note_grads(self) -> None:
        self.grads = self._grads()

    @torch.no_grad()
    def _run_without_grad(self, batch: int) -> None:
        for net in (self.plain, self.attached):
            programs.run(self.spec, net, batch + 100)
        self.oracle.clear()


def _backward(losses: list[Tensor], after: Callable[[], None] = lambda: None) -> None:
    losses = [loss for loss in losses if loss.requires_grad]
    for i, loss in enumerate(losses):
        loss.backward(retain_graph=i + 1 < len(losses))
        after()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


@contextmanager
def _plainly() -> Iterator[None]:
    """Tell what fails in the plain program, or in the oracle, from what DFA makes fail."""
    try:
        yield
    except Exception as error:
        raise _Plain from error


def _compare_values(what: str, expected: Any, found: Any, at: str = "") -> None:
    """Compare nested values: to the bit on the CPU, where sums have one order."""
    if isinstance(expected, Tensor):
        if not (isinstance(found, Tensor) and expected.shape == found.shape):
            raise _Different(f"{what} {at}: another value than without DFA")
        bound = 0.0 if expected.device.type == "cpu" else 1e-12
        if not torch.allclose(expected, found, rtol=bound, atol=bound, equal_nan=True):
            most = (expected.double() - found.double()).abs().max().item()
            raise _Different(f"{what} {at}: another value than without DFA, by up to {most:.1e}")
    elif isinstance(expected, dict):
        if expected.keys() != found.keys():
            raise _Different(f"{what}: {sorted(expected)} without DFA, {sorted(found)} with it")
        for key, value in expected.items():
            _compare_values(what, value, found[key], f"{at}{key}.")
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            raise _Different(f"{what} {at}: {len(expected)} values without DFA, {len(found)} with")
        for k, (one, other) in enumerate(zip(expected, found, strict=True)):
            _compare_values(what, one, other, f"{at}{k}.")


def _compare_gradients(
    batch: int, expected: dict[str, Tensor | None], found: dict[str, Tensor | None]
) -> None:
    """Compare gradients; none at all is the same as zeros."""
    wrong = []
    for name, want in expected.items():
        got = found[name]
        if want is None and got is None:
            continue
        want = torch.zeros_like(got) if want is None else want
        got = torch.zeros_like(want) if got is None else got
        if not torch.allclose(want, got, rtol=1e-9, atol=1e-9):
            wrong.append(f"{name} (norm {got.norm():.3g}, expected {want.norm():.3g})")
    if wrong:
        raise _Different(f"batch {batch}: gradient of {', '.join(wrong)}")


# -- shrinking -------------------------------------------------------------------------------------


def shrink(
    spec: Spec, kind: str, dfa_class: Callable[..., Any] = snn_dfa.DFA, message: str | None = None
) -> Spec:
    """Return the smallest program, with choices made plain one by one, of the same outcome.

    Args:
        spec: A program.
        kind: Its outcome.
        dfa_class: What is attached.
        message: What a refusal or crash has to begin with to count as the same.
    """
    again = True
    while again:
        again = False
        for smaller in _smaller(spec):
            outcome = check(smaller, dfa_class)
            if outcome.kind == kind and (message is None or outcome.message.startswith(message)):
                spec, again = smaller, True
                break
    return spec


def _smaller(spec: Spec) -> Iterator[Spec]:
    """Yield the programs with a layer less, or one choice made plain."""
    tried = {spec}
    for candidate in _candidates(spec):
        candidate = programs.valid(candidate)
        if candidate not in tried and _size(candidate) < _size(spec):
            tried.add(candidate)
            yield candidate


def _candidates(spec: Spec) -> Iterator[Spec]:
    plain_output = Layer(states=spec.output.states)
    yield replace(spec, output=plain_output)
    if len(spec.layers) > 1:
        for i in range(len(spec.layers)):
            yield replace(spec, layers=spec.layers[:i] + spec.layers[i + 1 :])
    for i in range(len(spec.layers)):
        yield _with_layer(spec, i, Layer())
    for name in CHOICES:
        yield replace(spec, **{name: getattr(Spec(), name)})
    for i, layer in enumerate((*spec.layers, spec.output)):
        for name in LAYER_CHOICES:
            yield _with_layer(spec, i, replace(layer, **{name: getattr(Layer(), name)}))


def _with_layer(spec: Spec, i: int, layer: Layer) -> Spec:
    if i == len(spec.layers):
        return replace(spec, output=layer)
    return replace(spec, layers=(*spec.layers[:i], layer, *spec.layers[i + 1 :]))


def _size(spec: Spec) -> int:
    """Count the choices that are not plain, and the layers."""
    size = 3 * len(spec.layers) + sum(getattr(spec, f.name) != f.default for f in fields(spec))
    for layer in (*spec.layers, spec.output):
        size += sum(getattr(layer, f.name) != f.default for f in fields(Layer))
    return size
