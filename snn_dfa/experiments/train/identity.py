"""What a training of the user's own is made of, as text: whether a checkpoint is of the same one.

Two runs of a script give the same text. So what a script may draw anew is left out, such as the
values of weights, and what changes as it runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = ["of_data", "of_network", "of_object", "of_optimizer"]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def of_network(net: nn.Module) -> dict[str, str]:
    """Return names, kinds, shapes, numbers and code of a network that has not run yet."""
    found = {}
    for name, module in net.named_modules():
        found[name or "itself"] = type(module).__qualname__
        for key, value in _attributes(module):
            if not isinstance(value, str):  # such as the name of a file for the log
                found[f"{name}.{key}".lstrip(".")] = of_object(value)
        for kind in type(module).__mro__:
            for key, value in vars(kind).items() if _is_the_users(kind) else ():
                if isinstance(value, FunctionType):
                    found[f"{kind.__qualname__}.{key}"] = of_object(value)
    values = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return found | {name: of_object(value) for name, value in values.items()}


def of_optimizer(optimizer: Optimizer) -> dict[str, str]:
    """Return class and options of an optimiser."""
    found = {"class": type(optimizer).__qualname__}
    for i, group in enumerate(optimizer.param_groups):
        options = {**group, "params": len(group["params"])}
        found |= {f"{key} of group {i}": of_object(value) for key, value in options.items()}
    return found


def of_data(part: Any) -> str:
    """Return how many samples there are, and of what size the batches are, as far as is known."""
    data = getattr(part, "dataset", part)
    options = {name: getattr(part, name, None) for name in ("batch_size", "drop_last")}
    return of_object({"length": len(data) if hasattr(data, "__len__") else None, **options})


def of_object(of: Any, depth: int = 3) -> str:
    """Return plain values, functions by their code, and of other objects class and attributes."""
    of = getattr(of, "__func__", of)
    name = getattr(of, "__qualname__", type(of).__qualname__)
    if isinstance(of, _PLAIN):
        return repr(of)
    if isinstance(of, type) or not depth:
        return name
    inner = partial(of_object, depth=depth - 1)
    if isinstance(of, Tensor):
        plain = "not known yet" if is_lazy(of) else f"{list(of.shape)} {of.dtype}"
        # Of one number only what has no dimension is an option, as beta; a bias of one is drawn.
        return plain if is_lazy(of) or of.dim() else f"{of.item():.6g}"
    if isinstance(of, (list, tuple)):
        return f"[{', '.join(map(inner, of))}]"
    if isinstance(of, Mapping):
        return f"{{{', '.join(f'{key}: {inner(value)}' for key, value in of.items())}}}"
    if isinstance(of, partial):
        return f"partial({inner(of.func)}, {inner(of.args)}, {inner(of.keywords)})"
    if isinstance(of, FunctionType):
        cells = [cell.cell_contents for cell in of.__closure__ or () if _is_full(cell)]
        given = [value for value in (*(of.__defaults__ or ()), *cells) if _counts(value)]
        code = f" of code {_checksum(of.__code__):08x}" if _is_the_users(of) else ""
        return f"{name}{code} with {inner(given)}"
    called = (vars(type(of)).get(key) for key in ("forward", "__call__"))
    code = "".join(f" {inner(call)}" for call in called if isinstance(call, FunctionType))
    return f"{name} with {inner(dict(_attributes(of)))}{code}"


def _attributes(of: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object has been given that is no state of its own."""
    for name, value in getattr(of, "__dict__", {}).items():
        if not name.startswith("_") and name != "training" and _counts(value):
            yield name, value


def _counts(value: Any) -> bool:
    return isinstance(value, (*_PLAIN, tuple, FunctionType, partial))


def _is_the_users(of: Any) -> bool:
    home = str(getattr(of, "__module__", "")).partition(".")[0]
    return home not in ("torch", "snntorch", "snn_dfa", "builtins")


def _is_full(cell: Any) -> bool:
    """Whether a function's variable has been given a value."""
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _checksum(code: CodeType) -> int:
    """Return a checksum of what a function does, wherever it stands in its file."""
    parts = [code.co_code.hex(), *code.co_names]
    for value in code.co_consts:
        if isinstance(value, CodeType):
            parts.append(str(_checksum(value)))
        else:  # the order of a set is another one in each process
            parts += sorted(map(repr, value)) if isinstance(value, frozenset) else [repr(value)]
    return zlib.crc32("\n".join(parts).encode())
