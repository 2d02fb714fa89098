"""Networks trained with DFA, in NIR."""

import importlib.util

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, ExportError, RefractoryLeaky, export_nir, fold_normalization, reset

X = torch.rand(4)


def network(neuron=snn.Leaky, norm=False, **options):
    options = {"init_hidden": True, "reset_mechanism": "zero", **options}
    norms = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(
        nn.Linear(4, 6), *norms, neuron(beta=0.8, **options), nn.Linear(6, 3),
        neuron(beta=0.8, **options),
    )  # fmt: skip


def trained(net):
    dfa = DFA(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.stack([net(x) for x in torch.rand(5, 3, 4)]).sum().backward()
    optimizer.step()
    dfa.remove()
    reset(net)
    return net


@pytest.fixture
def nir():
    """NIR, where it is installed; what it warns of on its way in is its own affair."""
    pytest.importorskip("nirtorch")
    return pytest.importorskip("nir")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trained_network_is_exported(nir):
    net = trained(network())
    graph = export_nir(net, X)
    affine = [n for n in graph.nodes.values() if isinstance(n, nir.Affine)]
    for node, layer in zip(affine, (net[0], net[2]), strict=True):
        np.testing.assert_array_equal(node.weight, layer.weight.detach().numpy())
        np.testing.assert_array_equal(node.bias, layer.bias.detach().numpy())
    neurons = [n for n in graph.nodes.values() if isinstance(n, nir.LIF)]
    assert [float(np.ravel(n.v_threshold)[0]) for n in neurons] == [1.0, 1.0]
    assert [float(np.ravel(n.tau)[0]) for n in neurons] == pytest.approx([1e-4 / 0.2] * 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mechanism", ["subtract", "none"])
def test_another_reset_is_warned_of(nir, mechanism):
    with pytest.warns(UserWarning, match=f"layer '1' has reset_mechanism='{mechanism}', and NIR's"):
        export_nir(trained(network(reset_mechanism=mechanism)), X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folded_networks_are_exported(nir):
    net = fold_normalization(trained(network(norm=True)))
    graph = export_nir(net, X)
    weights = [n.weight for n in graph.nodes.values() if isinstance(n, nir.Affine)]
    np.testing.assert_array_equal(weights[0], net[0].weight.detach().numpy())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            network(RefractoryLeaky, refractory_steps=2),
            "layer '1': expected a neuron without refractory period, which NIR cannot say, got "
            "refractory_steps=2; train with snn.Leaky, or set it to 0 and test what that costs",
        ),
        (
            network(RefractoryLeaky, input_gain=0.5),
            "layer '1': expected input_gain=1, which NIR cannot say, got 0.5; multiply the weights "
            "before it instead",
        ),
        (
            network(norm=True),
            "layer '1': expected no batch normalisation, which NIR cannot say; call "
            "fold_normalization(net) first",
        ),
    ],
)
def test_what_would_be_lost_is_refused(net, message):
    with pytest.raises(ExportError) as caught:
        export_nir(net, X)
    assert str(caught.value) == message


class Own(snn.Leaky):
    def forward(self, x, mem=None):
        return super().forward(2 * x, mem)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (network(Own), "layer '1': expected a neuron of snnTorch, got a Own"),
        (network(graded_spikes_factor=3.0), "layer '1': expected graded_spikes_factor=1"),
        (network(state_quant=lambda state: state), "layer '1': expected state_quant=False"),
    ],
)
def test_neurons_that_nir_does_not_know_are_an_error(net, message):
    with pytest.raises(ExportError, match=message):
        export_nir(net, X)


def test_an_attached_network_is_refused():
    net = network()
    with DFA(net), pytest.raises(ExportError, match=r"call remove\(\) on the DFA first"):
        export_nir(net, X)


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"package 'nir'.* pip install 'snn-dfa\[nir\]'"):
        export_nir(network(), X)
