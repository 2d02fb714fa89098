"""A thousand random user programs: each parameter's gradient is the oracle's, or an error is raised."""

from collections import Counter

import programs
import pytest
from program_check import EQUAL, FAILURES, REFUSED, check, shrink
from programs import CHOICES, LAYER_CHOICES, Layer, Spec

pytestmark = pytest.mark.slow

CHUNKS, SIZE = 20, 50


@pytest.fixture(scope="module")
def outcomes():
    """All outcomes of this module's run, by seed."""
    return {}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_gradients_are_the_oracles(chunk, outcomes):
    failed = []
    for seed in range(chunk * SIZE, (chunk + 1) * SIZE):
        spec = programs.draw(seed)
        outcome = outcomes[seed] = check(spec)
        if outcome.kind in FAILURES:
            failed.append(f"{outcome.kind}: {outcome.message}\n    {spec}")
    assert not failed, f"{len(failed)} of {SIZE}:\n" + "\n".join(failed)


def test_an_error_goes_nowhere_where_the_spikes_of_a_step_have_no_graph_and_the_membrane_has():
    layer = Layer(reset_delay=False, learns="graded", inhibition=True)
    spec = Spec(seed=705587, layers=(layer,), output=Layer(), frozen="synapses")
    assert check(spec).kind == EQUAL


def test_a_loss_inside_an_output_whose_parameters_are_frozen_is_seen():
    outcome = check(
        Spec(
            seed=2011291, layers=(Layer(),), output=Layer(), readout="block", recorded="hooks",
            frozen="output",
        )
    )  # fmt: skip
    assert outcome.kind == REFUSED
    assert "the loss reads a value inside the layer" in outcome.message


def test_few_programs_are_refused(outcomes):
    if len(outcomes) < CHUNKS * SIZE:
        pytest.skip("counts a full run")
    refused = Counter(o.message for o in outcomes.values() if o.kind == REFUSED)
    assert sum(refused.values()) < 0.05 * len(outcomes), refused.most_common(10)


def test_most_programs_spike(outcomes):
    if len(outcomes) < CHUNKS * SIZE:
        pytest.skip("counts a full run")
    assert sum(o.spikes for o in outcomes.values()) > 0.85 * len(outcomes)


def test_each_choice_is_drawn_often():
    drawn = Counter(f for seed in range(CHUNKS * SIZE) for f in programs.draw(seed).features())
    wanted = {f"{k}={v}" for c in (CHOICES, LAYER_CHOICES) for k, vs in c.items() for v in vs[1:]}
    rare = {f: drawn[f] for f in wanted if drawn[f] < 8}
    assert not rare


def test_a_spec_is_printed_as_it_is_written():
    for seed in range(200):
        spec = programs.draw(seed)
        assert eval(repr(spec), {"Spec": Spec, "Layer": Layer}) == spec


def test_a_drawn_program_is_a_valid_one():
    for seed in range(500):
        spec = programs.draw(seed)
        assert programs.valid(spec) == spec


class BackPropagation:
    """In place of DFA, nothing: a wrong gradient wherever a hidden layer learns."""

    feedback = {}  # noqa: RUF012

    def __init__(self, net, **options):
        pass


def test_a_wrong_gradient_is_found_and_shrunk():
    spec = next(
        s for s in map(programs.draw, range(100)) if check(s, BackPropagation).kind != EQUAL
    )
    assert check(spec, BackPropagation).kind == "wrong"
    small = shrink(spec, "wrong", BackPropagation)
    assert check(small, BackPropagation).kind == "wrong"
    assert len(small.features()) <= 3, small
