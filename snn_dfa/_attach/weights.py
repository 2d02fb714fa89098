"""Finding the modules with weights that lie between a network's neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from snn_dfa._distributed import whole
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.apply import correlation
from snn_dfa.feedback.stand_in import Inflow
from snn_dfa.feedback.way_back import Value, through
from snn_dfa.sequence import AtOnce
from snn_dfa.sequence.attached import Attached

__all__ = [
    "SYNAPSES", "Matrix", "added_parameters", "answer", "check_weights", "computes_as",
    "gradient_at_input", "gradient_at_weight", "gradient_to_mirror", "inside_neurons", "matrices",
    "matrix", "matrix_parameters", "mirror_rows", "own_step", "synapse", "synapses",
    "weight_in_use", "weight_of", "within_layers",
]  # fmt: skip

#: A layer is driven by noise in so many rows at least, or an eighth of the number of inputs of one
#: of its neurons: so its factor comes closer by a tenth or more each time, however many there are.
MIRROR_ROWS = 64
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUNCTIONS = (
    functional.linear, functional.conv1d, functional.conv2d, functional.conv3d,
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
)  # fmt: skip
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
#: What snnTorch's neurons multiply or compare each number with, in any shape, as one for a channel.
_CONSTANTS = {"V", "alpha", "beta", "graded_spikes_factor", "threshold"}


def synapses(net: nn.Module) -> dict[str, Any]:
    """Return the linear and convolutional layers by name, but for those inside neurons.

    In the form of :func:`snn_dfa.over_time` they have the names that they have in the network.
    """
    inside = inside_neurons(net)
    wrapped = {m.module: name for name, m in net.named_modules() if isinstance(m, AtOnce)}
    return {
        wrapped.get(module, name): module
        for name, module in net.named_modules()
        if isinstance(module, SYNAPSES) and module not in inside
    }


def synapse(net: nn.Module, name: str) -> Any:
    """Return the layer that :func:`synapses` has by a name, ``None`` if there is none."""
    try:
        module = net.get_submodule(name)
    except AttributeError:
        return None
    module = module.module if isinstance(module, AtOnce) else module
    return module if isinstance(module, SYNAPSES) else None


class Matrix(nn.Linear):
    """A matrix that no layer holds, as a linear layer: what a program makes of values times it."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight: Any = weight
        self.register_parameter("bias", None)


def layer_of(weight: Tensor, options: Mapping[str, Any]) -> Any:
    """Return a layer that computes with a weight which no layer holds, [N_out, N_in] or [O, I, *k].

    Args:
        weight: The weight.
        options: Stride, dilation, groups, and whether it is transposed, of a convolution.
    """
    if weight.dim() == 2:
        return Matrix(weight)
    given = dict(options)
    transposed, groups = given.pop("transposed", False), given.get("groups", 1)
    first, second = (len(weight), weight.shape[1] * groups)
    channels = (first, second) if transposed else (second, first)
    kind: Any = SYNAPSES[weight.dim() - 2 + 3 * transposed]
    layer = kind(*channels, weight.shape[2:], bias=False, device="meta", **given)
    del layer.weight
    layer.weight = weight
    return layer


def matrices(net: nn.Module) -> dict[str, Tensor]:
    """Return matrices that no layer and no neuron holds, by name: parameters and buffers.

    The transpose of each has the name with ``.T`` behind it: that of ``x @ net.matrix``, where a
    linear layer would compute ``x @ net.matrix.T``.
    """
    within, found = within_layers(net), dict[str, Tensor]()
    for path, module in net.named_modules():
        if module in within:
            continue
        for key, held in {**module._parameters, **module._buffers}.items():
            if held is None or is_lazy(held) or held.dim() != 2 or not held.is_floating_point():
                continue
            # Of one in shards the memory comes and goes; a sparse one has none of its own.
            if held.numel() and not held.is_sparse and not hasattr(held, "full_tensor"):
                name = f"{path}.{key}" if path else key
                found |= {name: held, f"{name}.T": held.t()}
    return found


def matrix(net: nn.Module, name: str) -> Matrix | None:
    """Return the matrix that :func:`matrices` has by a name, ``None`` if there is none."""
    path, _, key = name.removesuffix(".T").rpartition(".")
    try:
        module = net.get_submodule(path)
    except AttributeError:
        return None
    held = {**module._parameters, **module._buffers}.get(key)
    if held is None or held.dim() != 2:
        return None
    return Matrix(held.t() if name.endswith(".T") else held)


def matrix_parameters(neuron: nn.Module) -> list[str]:
    """Return the parameters of a neuron that may lead from one number to another, by name."""
    return [
        name
        for name, p in neuron.named_parameters()
        if is_lazy(p) or (p.dim() > 1 and name.rpartition(".")[2] not in _CONSTANTS)
    ]


def inside_neurons(net: nn.Module) -> set[nn.Module]:
    """Return the modules that spiking neurons hold, such as recurrent weights."""
    neurons = (n for n in net.modules() if isinstance(n, snn.SpikingNeuron))
    return {module for neuron in neurons for module in neuron.modules()}


def within_layers(net: nn.Module) -> set[nn.Module]:
    """Return what layers with weights and neurons consist of, such as parametrizations."""
    return inside_neurons(net).union(*(m.modules() for m in synapses(net).values()))


def added_parameters(net: nn.Module) -> list[tuple[dict[str, Any], str, str, bool]]:
    """Return parameters that may be added to values alone, as positional embeddings are.

    The weights of embeddings are among them: words are looked up in them, and no more.

    Returns:
        The store of each, its key there, its name in the network, and whether a pass may leave it
        out, as that of an embedding.
    """
    within = within_layers(net)
    return [
        (module._parameters, key, f"{name}.{key}" if name else key, type(module) is nn.Embedding)
        for name, module in net.named_modules()
        if module not in within
        for key, p in module._parameters.items()
        if p is not None and p.dim() > 1
    ]


def computes_as(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Return whether a module is of one of some classes, and computes what that class does."""
    kind = next((each for each in kinds if isinstance(module, each)), None)
    own = vars(module).get("forward")  # in a copy of an attached network the plain one
    own = own.plain if isinstance(own, Attached) else own
    if kind is None or not (own is None or getattr(own, "__func__", None) is kind.forward):
        return False
    if type(module).__module__.startswith("snn_dfa."):
        return True
    names = ("forward", "_conv_forward")
    return all(getattr(type(module), n, None) is getattr(kind, n, None) for n in names)


def check_weights(net: nn.Module, said: str, instead: str) -> None:
    """Refuse layers whose weights are computed with in another way than is known.

    Args:
        net: The network.
        said: What the error begins with.
        instead: What to use.

    Raises:
        AttachError: naming the layer.
    """
    known = {n: m for n, m in net.named_modules() if isinstance(m, SYNAPSES)}
    for name, module in known.items():
        if not computes_as(module, SYNAPSES):
            raise AttachError(
                f"{said}: layer {name!r} of type {type(module).__name__} has a forward of its own, "
                f"expected that of nn.Linear or of a convolution; call an nn.Linear or a "
                f"convolution inside a module of your own, or use {instead}"
            )
        for parameter, made in getattr(module, "parametrizations", {}).items():
            if next(made.buffers(), None) is not None:
                raise AttachError(
                    f"{said}: the {parameter} of layer {name!r} may change each time that it is "
                    f"read, as with spectral normalisation, expected one that stays; use {instead}"
                )


class _Taken(TorchFunctionMode):
    """Notes the weights with which linear functions and convolutions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            self.weights.append(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **kwargs)


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """Let what makes a layer's weight of parameters draw nothing, and note nothing.

    In training it may do so each time that the weight is read, as spectral normalisation does.
    """
    made = getattr(module, "parametrizations", None)
    training = [] if made is None else [part for part in made.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def weight_of(module: Any) -> Tensor:
    """Return a layer's weight, of which nothing is changed by that."""
    with _at_rest(module):
        weight: Tensor = module.weight
    return weight


def weight_in_use(module: Any, name: str) -> Tensor:
    """Return the weight with which a layer computes.

    A ``forward`` of its own may make it of the parameter, as by a mask. It runs on a copy with
    buffers of its own, so that nothing that it notes or draws is changed.

    Args:
        module: The layer.
        name: Of the layer.

    Raises:
        FeedbackError: if it computes in a way that is not known.
    """
    own = weight_of(module)
    if computes_as(module, SYNAPSES):
        return own
    twin, error = object.__new__(type(module)), ""
    vars(twin).update(vars(module))
    twin._buffers = {k: b if b is None else b.clone() for k, b in module._buffers.items()}
    devices = [own.device] if own.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), _at_rest(module), _Taken() as taken:
        try:
            type(module).forward(twin, _zeros(module).to(own))
        except Exception as raised:
            error = f" ({type(raised).__name__}: {raised})"
    if error or len(taken.weights) != 1 or taken.weights[0].shape != own.shape:
        raise FeedbackError(
            f"feedback: layer {name!r} of type {type(module).__name__} has a forward of its own, "
            f"expected one that calls one functional.linear or convolution with a weight of the "
            f"shape {list(own.shape)}{error}; use torch.nn.utils.parametrize for what it does to "
            f"its weight, or feedback='kolen-pollack'"
        )
    return taken.weights[0]


def _zeros(module: Any) -> Tensor:
    """Return an input of one sample."""
    if isinstance(module, nn.Linear):
        return torch.zeros(1, module.in_features)
    sizes = (d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return torch.zeros(1, module.in_channels, *sizes)


def answer(
    module: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    size: torch.Size | None = None,
) -> Tensor:
    """Return what a module would make of an input with this weight; its own hooks do not run.

    Args:
        module: The module.
        x: What comes in.
        weight: In place of its own.
        bias: In place of its own.
        size: Of the result, where a call of a transposed convolution may name it.
    """
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias)
    if not isinstance(module, _TRANSPOSED):
        convolved: Tensor = module._conv_forward(x, weight, bias)
        return convolved
    dims = weight.dim() - 2
    function: Any = getattr(functional, f"conv_transpose{dims}d")
    more = module.output_padding
    if size is not None:
        padding: Any = module._output_padding  # by which a call of the module finds it
        more = padding(
            x, list(size[-dims:]), module.stride, module.padding, module.kernel_size, dims,
            module.dilation,
        )  # fmt: skip
    made: Tensor = function(
        x, weight, bias, module.stride, module.padding, more, module.groups,
        module.dilation,
    )  # fmt: skip
    return made


def gradient_at_weight(module: Any, x: Tensor, error: Tensor) -> Tensor:
    """Return what the module's weight gets from an input [..., *] and the error at its output."""
    x = x.to(error.dtype)
    if isinstance(module, nn.Linear):
        return correlation(error, x)
    with torch.enable_grad():
        weight = torch.zeros_like(weight_of(module), dtype=error.dtype, requires_grad=True)
        out = answer(module, x, weight, size=error.shape)
    return torch.autograd.grad(out, weight, error)[0]


def gradient_at_input(module: Any, x: Tensor, weight: Tensor, error: Tensor) -> Tensor:
    """Return what an input gets from the error at the output of the module with this weight."""
    if isinstance(module, nn.Linear):
        return error @ weight
    with torch.enable_grad():
        x = torch.zeros_like(x, dtype=error.dtype, requires_grad=True)
        out = answer(module, x, weight, size=error.shape)
    return torch.autograd.grad(out, x, error)[0]


def mirror_rows(weight: Tensor) -> int:
    """Return in how many rows noise drives a layer."""
    return max(MIRROR_ROWS, weight[0].numel() // 8)


def gradient_to_mirror(
    module: Any, weight: Tensor, factor: Tensor, noise: Callable[..., Tensor]
) -> Tensor:
    """Return the step that makes a factor answer noise more as the module's weight does.

    Args:
        module: The module; it is driven by noise, forwards.
        weight: With which it computes.
        factor: Of its weight's shape.
        noise: From a shape to numbers of mean 0 and variance 1.
    """
    transposed = isinstance(module, _TRANSPOSED)
    channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    inputs = factor.numel() // channels
    rows = mirror_rows(factor)
    if isinstance(module, nn.Linear):
        x = noise(rows, inputs)
    else:
        sizes = [8 if transposed else d * (k - 1) + s * 8 for d, k, s in zip(
            module.dilation, module.kernel_size, module.stride, strict=True)]  # fmt: skip
        x = noise(-(-rows // 8 ** len(sizes)) + 1, module.in_channels, *sizes)
    with torch.no_grad():
        weight = whole(weight.detach()).to(factor)
        error = answer(module, x, weight) - answer(module, x, factor)
    places = x if transposed else error  # at each of which the whole weight is used once
    rows = places.numel() // places.shape[1]
    return gradient_at_weight(module, x, error) / (rows + inputs)


def own_step(x: Inflow, name: str, module: Any, shape: tuple[int, ...]) -> Inflow:
    """Return an inflow through the factor of a layer, as the layer's module would send it.

    Args:
        x: The inflow.
        name: Of the layer.
        module: The module.
        shape: Of what comes in.
    """
    if isinstance(module, nn.Linear):
        return stand_in.weigh(x, name)
    dims = len(module.kernel_size) + 1  # a weight that is computed would change by being read

    def convolved(value: Value, v: Tensor) -> Value:
        return through(lambda x: answer(module, x, v), value.reshape(-1, *shape[-dims:]))

    return x.through(name, convolved)
