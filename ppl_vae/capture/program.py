r"""What a graph of a program would freeze: the modules behind it, their modes and parameters, and its Python numbers.

.. math:: \text{key} = (\text{shapes}, \text{dtypes}, \text{modes}, \text{parameters}, \ldots), \qquad
    \text{one graph a key}

A recorded graph holds whatever Python decided while it was recorded. Where that can change, it is in the key, and
another key is another graph; where it cannot be seen cheaply, the comparison with the stock step finds it, and the
snapshot of Python numbers taken here gives it a name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeVar

import pyro
import torch
from torch import Tensor, nn

__all__ = ["SCALARS", "Call", "Latest", "Program", "kind"]

V = TypeVar("V")

# What a graph takes for a constant.
SCALARS = (bool, int, float, str)


def kind(value: Any) -> Any:
    """Return what of an argument decides the graph: of a tensor all but its numbers, of anything else itself."""
    if isinstance(value, Tensor):
        # Whether it can be viewed in another shape hangs on the strides.
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return value


class Call(NamedTuple):
    """The arguments of a step, taken apart, and the key of the graph that they have; None where no step has one."""

    key: Any
    flat: Sequence[Any]
    spec: Any

    @property
    def tensors(self) -> list[Tensor]:
        """What a replay is given."""
        return [value for value in self.flat if isinstance(value, Tensor)]


class Latest(dict[Any, V]):
    """What was set last, of so many keys; one that goes out of it goes out of another dict, too.

    Example:
        >>> others = {"a": 1, "b": 2}
        >>> latest = Latest(2, others)
        >>> latest["a"] = latest["b"] = latest["a"] = latest["c"] = 0
        >>> list(latest), list(others)
        (['a', 'c'], ['a'])
    """

    def __init__(self, most: int, others: dict[Any, Any]) -> None:
        super().__init__()
        self.most, self.others = most, others

    def __setitem__(self, key: Any, value: V) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        for old in list(self)[: -self.most]:
            del self[old]
            self.others.pop(old, None)

    def again(self, key: Any) -> bool:
        """Set what is there again; return whether it is."""
        if there := key in self:
            self[key] = self[key]
        return there


class Program:
    """A model and its guide, and everything of theirs that Python can reach.

    Arguments:
        functions: the model and the guide: functions, bound methods, modules, partials or handlers around one.
    """

    def __init__(self, *functions: Any) -> None:
        self._found = dict(_reachable(functions))
        found = [value for value in self._found.values() if isinstance(value, nn.Module)]
        inside = {id(m) for module in found for m in module.modules() if m is not module}
        self._roots = [module for module in found if id(module) not in inside]

    @property
    def modules(self) -> list[nn.Module]:
        """Every module there is now: a part, or a layer of one, may have been exchanged since the last step."""
        # Every step asks, and torch's own walk, which also makes up names, takes several times as long.
        modules = list(self._roots)
        seen = set(map(id, modules))
        for module in modules:
            for child in module._modules.values():
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    modules.append(child)
        return modules

    def key(self, names: Iterable[str] = ()) -> tuple[Any, ...]:
        """Return what decides the graph: modes, the ``structure`` a module says of itself, and parameters.

        Arguments:
            names: of parameters to look for in Pyro's store, where those made by ``pyro.param`` live.
        """
        modules = self.modules
        # The modules themselves: another could come to stand at the address of one that was exchanged.
        modes = tuple((m, m.training) for m in modules)
        structure = tuple(m.structure for m in modules if hasattr(type(m), "structure"))
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        own = tuple((id(t), t.requires_grad, t.dtype, t.device) for t in tensors)
        params = pyro.get_param_store().get_state()["params"]
        return modes, structure, own, tuple(id(params.get(name)) for name in names)

    @property
    def buffers(self) -> list[Tensor]:
        """What a step in training mode may write to: buffers, and parameters that have no gradient."""
        held = [t for m in self.modules for t in (*m._buffers.values(), *m._parameters.values()) if t is not None]
        return [t for t in held if not t.requires_grad]

    @property
    def running(self) -> list[Tensor]:
        """The running statistics of normalisation layers: what a step writes to besides the parameters."""
        layers = [m for m in self.modules if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
        return [b for m in layers for b in m._buffers.values() if b is not None]

    def numbers(self) -> dict[str, Any]:
        """Return every Python number and string that the program can reach, by name; tuples of them too."""
        numbers = {name: value for name, value in self._cells() if _is_plain(value)}
        for owner in self._found.values():
            if not isinstance(owner, nn.Module):
                held = getattr(owner, "__dict__", {}).items()
                numbers |= {f"{type(owner).__name__}.{k}": v for k, v in held if _is_plain(v)}
        for root in self._roots:
            for path, module in root.named_modules(prefix=type(root).__name__):
                held = vars(module).items()
                numbers |= {f"{path}.{k}": v for k, v in held if k != "training" and _is_plain(v)}
        return numbers

    def _cells(self) -> Iterator[tuple[str, Any]]:
        for found in self._found.values():
            function = getattr(found, "__func__", found)
            code = getattr(function, "__code__", None)
            if code is None:
                continue
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
                if _filled(cell):
                    yield name, cell.cell_contents
            for name in code.co_names:
                if name in function.__globals__:
                    yield name, function.__globals__[name]


def _is_plain(value: Any) -> bool:
    return isinstance(value, SCALARS) or (
        isinstance(value, tuple | list) and all(isinstance(v, SCALARS) for v in value)
    )


def _reachable(functions: Any) -> Iterator[tuple[int, Any]]:
    """Walk from functions to the objects they hold: owners of methods, closures, globals, handlers' inner functions."""
    seen: set[int] = set()
    queue = list(functions)
    while queue:
        found = queue.pop()
        if id(found) in seen or isinstance(found, torch.Tensor | type | ModuleType | int | float | str | None):
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            queue += found.values()
            continue
        if isinstance(found, list | tuple):
            queue += found
            continue
        module = getattr(found, "__module__", None) or ""
        if module.startswith(("torch", "pyro.")) and not isinstance(found, nn.Module) and not hasattr(found, "fn"):
            continue
        yield id(found), found
        if not isinstance(found, nn.Module | FunctionType | MethodType):
            # An object of the user's that owns the programs, or is one.
            queue += getattr(found, "__dict__", {}).values()
        if isinstance(found, functools.partial):
            queue += [found.func, *found.args, *found.keywords.values()]
        if isinstance(found, nn.Module):
            # Parts that are functions, such as a prior, are plain attributes of a module.
            queue += [v for m in found.modules() for v in vars(m).values() if callable(v)]
        for name in ("__self__", "__wrapped__", "fn", "model", "guide"):
            if (inner := getattr(found, name, None)) is not None:
                queue.append(inner)
        function = getattr(found, "__func__", found)
        if (code := getattr(function, "__code__", None)) is not None:
            queue += [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
            queue += [function.__globals__[n] for n in code.co_names if n in function.__globals__]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
