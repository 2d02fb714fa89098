"""The errors of a network that runs, in words: who, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snn_dfa.errors import AttachError, BackwardError, FeedbackError, OutOfStepError


def out_of_step(
    hidden: str, output: str, calls: Mapping[str, int], *, given: bool
) -> OutOfStepError:
    """Say that a hidden layer and the output were not called equally often.

    Args:
        hidden: Name of the hidden layer.
        output: Name of the output.
        calls: How often each layer was called.
        given: Whether the user named the output.
    """
    count, outputs = calls.get(hidden, 0), calls.get(output, 0)
    asked = []
    if not given:
        asked.append(
            f"Is {output!r} not the output? Name it, output=..., and the hidden layers that are "
            f"called as often, hidden=[...]"
        )
    if outputs == 1 < count:
        asked.append(
            "Is a readout called once, on the last step or on a mean? Name the readout with "
            "output=...; all hidden layers must be called equally often then, and those that it "
            "reads be read at the same steps. Does each layer run all steps before the next layer "
            "begins? Name the modules that return whole sequences, hidden=[...]"
        )
    if outputs > 1 or count < outputs:
        asked.append(
            f"Has {hidden!r} steps of its own, as an encoder has, or is it not called at some "
            f"steps? Name the other hidden layers, hidden=[...]; {hidden!r} then learns with the "
            f"layer after it"
        )
    if outputs == 0:
        asked.append(f"Call {output!r} in each time step")
    elif count > outputs:
        asked.append(
            "Does the network call one neuron for several layers? Give each layer a neuron of its "
            "own"
        )
    return OutOfStepError(
        f"hidden layer {hidden!r} was called {count} times and the output {output!r} {outputs} "
        f"times in one forward pass; expected equally many calls, one for each time step. "
        f"{'. '.join(asked)}"
    )


def mixed_steps(output: str) -> OutOfStepError:
    """Say that it is not known which steps a readout reads, or which of its values is of which."""
    return OutOfStepError(
        f"output {output!r} was called once, on the values of several steps, and DFA does not know "
        f"which step each value is of; expected torch.stack of the steps' values, with nothing "
        f"between that joins steps, as a convolution over time does, and none of them "
        f"without a graph; or the mean of the steps, or some of them by an index. Was a tensor "
        f"filled with the steps in place? Use torch.stack. Otherwise call the readout at each "
        f"step. Pick steps of its result"
    )


def parts_out_of_step(layer: str, output: str, calls: Mapping[str, int]) -> OutOfStepError:
    """Say that layers which are called without the network were not called equally often."""
    return OutOfStepError(
        f"layers are called outside of net.forward: layer {layer!r} was called "
        f"{calls.get(layer, 0)} times and the output {output!r} {calls.get(output, 0)} times since "
        f"all were last called equally often; expected one call of each layer and of each output "
        f"in each time step. Is an output not called at some steps? Call it at all steps; the loss "
        f"need not read it. Are parts of the network called for an evaluation? Call them in "
        f"torch.no_grad(). Did an exception stop the last forward pass? Then call the network again"
    )


def changed_inside(block: str) -> BackwardError:
    """Say that the loss reads a value that a hook has kept inside a block, and that changed."""
    return BackwardError(
        f"backward: the loss reads a value that a hook or an object inside of {block!r} has kept, "
        f"and the program changed this value in place after {block!r} had returned it; expected "
        f"the unchanged value. Let the loss read the value that {block!r} returned, or change a "
        f"copy of the value"
    )


def came_in_unseen(layer: str) -> AttachError:
    """Say that a layer has got a value of its own by a way that is not looked at."""
    return AttachError(
        f"layer {layer!r}: a value that it has returned comes into it again by a generator, a set, "
        f"a function's variables or the like, where DFA does not look; pass the value as an "
        f"argument, also inside a tuple, a list, a dictionary or an object, or let the layer keep "
        f"it as an attribute"
    )


def read_inside(output: str) -> BackwardError:
    """Say that the loss reads an output's value before the output has returned it."""
    return BackwardError(
        f"output {output!r}: the loss reads a value inside the layer, for instance one that a hook "
        f"has kept, and not the value that {output!r} returns; let the loss read the value that "
        f"{output!r} returns"
    )


def left_out(layer: str | None) -> BackwardError:
    """Say that the loss reads a value that autograd does not go to."""
    return BackwardError(
        f"layer {layer!r}: the loss reads a value of the layer, as a penalty on spikes does; "
        f"torch.autograd.grad and backward(inputs=...) do not reach such a value, so that a part "
        f"of the gradient would be missing; call loss.backward() and read .grad"
    )


def not_yet_called(output: str) -> OutOfStepError:
    """Say that the size of an output is not known."""
    return OutOfStepError(
        f"output {output!r} was not called, and has not been called before: DFA does not know how "
        f"many numbers it has; expected all outputs to be called in the first forward pass. Run "
        f"one forward pass that calls all of them, for instance on one batch before the training; "
        f"no loss need read it"
    )


def called_late(hidden: str, outputs: Sequence[str]) -> OutOfStepError:
    """Say that a layer was called after all outputs of its step."""
    output = " and ".join(map(repr, outputs))
    return OutOfStepError(
        f"hidden layer {hidden!r} is called after the output {output} in a time step; expected "
        f"the output to be called last. If another layer is the output, name it with output=. If "
        f"{output} is the output, name the layers before it with hidden=[...]"
    )


def other_call(hidden: str, output: str, count: int) -> OutOfStepError:
    """Say that it is not known which call of a hidden layer an output's call belongs with."""
    return OutOfStepError(
        f"output {output!r} is called outside of net.forward on the values of {count} calls of "
        f"hidden layer {hidden!r}, and DFA cannot tell which of them gets its error: expected one "
        f"call, whose values {output!r} gets before it gets values that no layer made. Call both "
        f"layers in the forward of the network, equally often. Does {output!r} read noise, too, or "
        f"values without a graph? Do so before {hidden!r} is called, or in `with dfa.paused():`"
    )


def other_order(hidden: str, output: str) -> OutOfStepError:
    """Say that a layer runs through the steps in another order than the output."""
    return OutOfStepError(
        f"hidden layer {hidden!r} runs through the time steps in another order than the output "
        f"{output!r}, as a layer that goes backward in time; expected the k-th call of {output!r} "
        f"to read the k-th call of {hidden!r}, or an earlier one, since it gets the error of this "
        f"step. Is {hidden!r} an encoder, whose last state starts another layer? Name the other "
        f"hidden layers, hidden=[...]; {hidden!r} then learns with the layer after it. Otherwise "
        f"put {hidden!r} into a module that returns the whole sequence [T, B, ...] in the order of "
        f"the output, name all such modules, hidden=[...], and call the output on the "
        f"whole sequence"
    )


def other_order_of_samples(source: str, layer: str) -> AttachError:
    """Say that samples come into a layer in another order than another one has given them."""
    return AttachError(
        f"layer {layer!r} gets the samples of layer {source!r} in another order; expected the same "
        f"order in all layers and outputs, since DFA sends each sample of a hidden layer the error "
        f"of the output's sample at the same place. Change the order before the first layer or "
        f"after the output, or use rule='fa'"
    )


def shared(layer: str | None) -> BackwardError:
    """Say that values which share memory were changed in place after they were returned."""
    who = "the network" if layer is None else f"layer {layer!r}"
    return BackwardError(
        f"backward: {who} has returned or kept values that share memory, such as a tensor and a "
        f"part of it, and the program has changed one of them in place; expected unchanged values, "
        f"since DFA does not know which of them the change is of. Change a copy: y = y * 2 in "
        f"place of y.mul_(2)"
    )


def other_steps(
    hidden: str, spikes: Sequence[int], output: Sequence[int], dims: int
) -> OutOfStepError:
    """Say that a layer has another number of steps or samples than the output."""
    return OutOfStepError(
        f"hidden layer {hidden!r}: expected spikes of shape {list(output[:dims])} followed by its "
        f"neurons, as the errors at the output are of steps and samples {list(output[:dims])}, got "
        f"{list(spikes)}. Does the output read a mean over time, or the last step, of layers that "
        f"return whole sequences? Call the output on the sequence, and take the mean or the last "
        f"step of what it returns. Does the output have other samples? Name the layers that have "
        f"the same, hidden=[...]"
    )


def square(output: str, size: int) -> OutOfStepError:
    """Say that an output of two dimensions of one size has steps and samples, or has not."""
    return OutOfStepError(
        f"output {output!r}: hidden layers return whole sequences, and the result of {output!r}, "
        f"of shape [{size}, {size}], may be of steps and samples, or a mean over the steps; "
        f"expected [T, B, C], also if C = 1. Call the output on the sequence, and take the mean "
        f"of its result; or give another number of samples"
    )


def second_output(other: str, output: str) -> AttachError:
    """Say that the loss reads a layer whose values go to no other layer."""
    return AttachError(
        f"the loss reads two spiking layers, {output!r} and {other!r}, and no other layer reads "
        f"the spikes of {other!r}; expected one output. If both are outputs, name them: "
        f"output=[{output!r}, {other!r}]. If {output!r} alone is the output, name the layers that "
        f"learn from its error with hidden=[...]"
    )


def unnamed_readout(name: str, output: str) -> AttachError:
    """Say that the loss reads the output through weights."""
    return AttachError(
        f"which layer is the output? The last spiking neuron {output!r} is followed by {name!r}, "
        f"a layer with weights. If {name!r} is the last layer of the network, call "
        f"DFA(net, output={name!r}). If more layers follow, name the last one, or the module that "
        f"holds them all. If {name!r} is a parameter, move the product with it into a module, and "
        f"name that. If {name!r} is an extra head, call DFA(net, output={output!r})"
    )


def heads(found: Mapping[str, str], outputs: Sequence[str]) -> str:
    """Say that the loss reads layers through weights that are no output."""
    first, layer = next(iter(found.items()))
    named = ", ".join(map(repr, [*outputs, *found]))
    return (
        f"the loss reads layer {layer!r} through {first!r}, which is not an output. The gradient "
        f"of this loss goes through the weights of {first!r} into {layer!r}, and into no layer "
        f"before it. If {first!r} is an output, too, name all outputs: output=[{named}]"
    )


def changed(gone: Sequence[str], new: Sequence[str]) -> AttachError:
    """Say that the network has other layers than when DFA was attached to it."""
    if gone:
        return AttachError(
            f"layer {gone[0]!r} was removed from the network or replaced after DFA(net), and DFA "
            f"does not know the layer in its place; call dfa.remove(), then DFA(net) again"
        )
    return AttachError(
        f"layer {new[0]!r} was added to the network after DFA(net), and DFA does not know it; "
        f"call dfa.remove(), then DFA(net) again"
    )


def refuse_repetition(name: str, *, whole: bool, goes_on: bool) -> None:
    """Raise an error for a call that activation checkpointing repeats, where it is another call.

    Args:
        name: Of the layer.
        whole: Whether the whole network's pass is repeated.
        goes_on: Whether the layer's call begins with a state that is hidden in it.

    Raises:
        AttachError: if only some layers are repeated, or the layer's state is hidden in it.
    """
    said = f"activation checkpointing calls layer {name!r} again in the backward pass, and "
    if not whole:
        raise AttachError(
            f"{said}its spikes already belong to a step of the output; checkpoint the whole "
            f"network, or layers without spiking neurons"
        )
    if goes_on:
        raise AttachError(
            f"{said}its hidden state would then start from another membrane; pass the states "
            f"explicitly, use over_time without stateful=True, or checkpoint layers without "
            f"spiking neurons"
        )


def unled() -> FeedbackError:
    """Say that feedback takes its step when a pass begins, where passes repeat."""
    return FeedbackError(
        "feedback: activation checkpointing repeats forward passes, and this feedback learns "
        "at each forward pass; call dfa.follow(optimizer), so that it learns at each step of "
        "the optimiser"
    )


def nested(name: str, inside: str) -> AttachError:
    """Say that a layer is called inside another one."""
    return AttachError(
        f"layer {name!r} is called inside layer {inside!r}; expected layers one after the other: "
        f"name either {inside!r} or the layers inside it with hidden="
    )


def hooked(layer: str) -> BackwardError:
    """Say that a hook changes the gradient of a state that comes back into its layer."""
    return BackwardError(
        f"layer {layer!r}: a hook (register_hook, register_full_backward_hook or "
        f"register_full_backward_pre_hook) changes the gradient of a state that the next step of "
        f"the layer gets; expected a hook that returns None, since DFA does not have this gradient "
        f"as one sum; put register_hook on a copy that the next step alone reads: mem * 1.0"
    )


def hooked_layer(layer: str) -> AttachError:
    """Say that a hidden layer has a hook of a module that the projected error would go past."""
    return AttachError(
        f"hidden layer {layer!r}: expected no register_full_backward_hook and no "
        f"register_full_backward_pre_hook on it, got one; DFA sends the projected error straight "
        f"to the spikes, past such a hook; put it on the layer with weights before {layer!r}"
    )


def functional_weight(layer: str) -> AttachError:
    """Say that a function uses a weight that has feedback."""
    return AttachError(
        f"rule='fa': a function uses the weight of layer {layer!r}, and its error would go "
        f"through the transposed weight; expected the layer alone to use its weight; call the "
        f"layer, or use another rule"
    )


def multiplied(name: str) -> AttachError:
    """Say that a parameter that is no weight of a layer is not added to values alone."""
    return AttachError(
        f"rule='fa': expected weights in nn.Linear or in convolutions, and parameter {name!r} to "
        f"be added to values in each call of the network, and no other use of it; the network uses "
        f"it otherwise, or returns nothing made with it; put it into an nn.Linear, or use another "
        f"rule"
    )


def exported() -> str:
    """Say that a network is exported while DFA is attached."""
    return (
        "torch.export, torch.jit and torch.onnx do not know what DFA puts in place of forward; "
        "expected the plain network; call dfa.remove() first, and DFA(net) again after it"
    )


def transformed() -> AttachError:
    """Say that a transform of ``torch.func`` runs the network."""
    return AttachError(
        "net: a transform of torch.func (grad, vjp, vmap, jacrev, jvp) or forward-mode "
        "differentiation runs the network, and its gradient would not have the errors that DFA "
        "sends; call loss.backward() or torch.autograd.grad, or transform the network in `with "
        "dfa.paused():`, where its gradient is that of back-propagation"
    )


def transformed_part(kind: str) -> AttachError:
    """Say that a transform of ``torch.func`` runs a layer with weights."""
    return AttachError(
        f"net: a transform of torch.func, such as vmap, runs a layer of type {kind} inside the "
        f"network, and with rule='fa' and credit='trace' DFA would not see the layer's input; "
        f"expected plain calls of such layers; call the layer on the whole batch, or use another "
        f"rule or credit"
    )


def shallow_distributed() -> AttachError:
    """Say that hidden parameters would get gradients of zero."""
    return AttachError(
        "rule='shallow': DistributedDataParallel gives the parameters of hidden layers gradients "
        "of zero, so that weight decay would change them; freeze them with requires_grad_(False) "
        "and train the network without DFA, which is the same rule"
    )


def without_ways(layers: Sequence[str]) -> FeedbackError:
    """Say that products of values are passed where errors cannot take each sample's own way."""
    return FeedbackError(
        f"feedback: what comes into layer {layers[0]!r} is a product of values, whose "
        f"derivative differs from sample to sample; expected one dimension of samples, and all "
        f"layers to get the error of the same steps; use feedback='kolen-pollack'"
    )


def none_called(layers: Sequence[str]) -> AttachError:
    """Say that the network has returned what learns, and that no layer was called."""
    return AttachError(
        f"net: the result of this forward pass needs a gradient, and none of the layers "
        f"{list(layers)} was called, so that the gradient would be that of back-propagation; "
        f"expected calls of the layers themselves. Write lif(x, mem) in place of "
        f"snn.Leaky.forward(lif, x, mem) or lif.fire(mem). Does this pass run no spiking layer, as "
        f"where a part is trained alone? Call the network in `with dfa.paused():`"
    )


def read_overwritten(layer: str, shape: Sequence[int]) -> BackwardError:
    """Say that the loss reads a value that a layer was given, and has overwritten."""
    return BackwardError(
        f"backward: layer {layer!r} has changed in place a value of shape {list(shape)} that it "
        f"was given, and the loss reads this value; expected an unchanged value. Change a copy in "
        f"{layer!r}, x = x * 2 in place of x.mul_(2), and return it if the loss reads it"
    )


def overwritten(layer: str, other: str, shape: Sequence[int]) -> AttachError:
    """Say that a value of a layer comes back into it, and that another one has overwritten it."""
    return AttachError(
        f"layer {layer!r} gets an earlier value of its own, of shape {list(shape)}, that layer "
        f"{other!r} was given and has changed in place; expected an unchanged value. Change a copy "
        f"in {other!r}: x = x * 2 in place of x.mul_(2)"
    )
