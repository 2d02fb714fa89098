"""Rules and credits by the names of the library, of the command line, and of the literature."""

import pytest

from snn_dfa.experiments.arguments import rule, rules
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.feedback import RULES
from snn_dfa.rules import RULES as LIBRARY
from snn_dfa.rules import SYNONYMS, canonical


def test_all_names_of_a_rule_are_one_rule():
    assert rules("dfa,error,sdfa,drtp,last-layer,bptt") == [
        "dfa",
        "sign",
        "target",
        "shallow",
        "bptt",
    ]
    assert [rule(name) for name in RULES] == list(RULES)
    assert {RULES[rule(name)] for name in LIBRARY} == set(LIBRARY)


def test_online_is_the_credit_of_traces():
    assert Settings(credit="online") == Settings(credit="trace")
    assert Settings(credit="online").online


@pytest.mark.parametrize("name", SYNONYMS)
def test_a_synonym_is_no_name_of_its_own(name):
    assert canonical(name) not in SYNONYMS
    assert name not in LIBRARY
