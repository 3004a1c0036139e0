"""Take the pieces of a training step by hooks, which are there only while an update is probed: others cost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from noether_core.errors import NoetherError, listing
from noether_core.probes.naming import Names
from noether_core.probes.probed import Due, Probed
from noether_core.probes.stages import with_stage
from noether_core.probes.walk import named
from noether_torch.measuring import measured
from noether_torch.probes import READER, buffers_of, optimizer_fields, parameters_of, unwrapped

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Held(NamedTuple):
    """Hold what is known of a gradient as the backward pass left it: its statistics, or a copy, and how to tell a change."""

    probed: Probed | None  # under `grad/NAME`
    copy: Tensor | None
    grad: Tensor
    version: int


class Watched:
    """Watch a model and its optimizers: what modules return, gradients before and after clipping, updates, state.

    What a module returns is its last run's of the forward pass that began last before the update's first `optimizer.step`, for
    what comes after it has other parameters. A gradient is read when the backward pass has added the last to it; if it was
    changed in place by the time of `optimizer.step`, as clipping does, it is the clipped one that is read there. Parameters
    are those that the step starts from: what the forward pass changes in place, as an embedding with `max_norm` does, is read
    before it.

    Args:
        model: the module.
        optimizers: those that have its parameters.
        names: gives other names and layouts to what has the parameters' names.
        activations: whether what modules return is read.
        name: what the model is called among several; its names begin with it.

    Raises:
        NoetherError: for what is no model and its optimizers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        names: Names | None = None,
        *,
        activations: bool = True,
        name: str = "",
    ) -> None:
        _check(model, optimizers, name)
        self._model, self._optimizers, self._names = model, optimizers, names
        self._prefix = f"{name}." if name else ""
        self._has_activations = activations
        self._parameters = parameters_of(model)
        tables = [each for each in model.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)]
        renormed = {id(each.weight) for each in tables if each.max_norm is not None}
        self._renormed = {name: each for name, each in self._parameters.items() if id(each) in renormed}
        watched = {id(parameter) for parameter in self._parameters.values()}
        held = [each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]]
        if not any(id(parameter) in watched for parameter in held):
            raise NoetherError(
                f"run.probe got a {type(model).__name__} and optimizers that have none of its parameters; give the module"
                " whose parameters they update, and call it after the optimizers are made"
            )
        if lazy := [name for name, each in self._parameters.items() if isinstance(each, UninitializedParameter)]:
            raise NoetherError(
                f"run.probe got a {type(model).__name__} of which {listing(lazy)} are not made yet; call the model once first"
            )
        self._due = Due()
        self._handles: list[Any] = []
        self._forget()

    def check_beside(self, other: Watched) -> None:
        """Raise `NoetherError` if another model, which is watched already, has some of this one's names."""
        mine, theirs = ([each._prefix + name for name in each._parameters] for each in (self, other))
        both = [name for name in mine if name in set(theirs)]
        if both or self._prefix == other._prefix:
            shared = f"both have {listing(both, 3)}" if both else f"both are called {self._prefix.rstrip('.')!r}"
            raise NoetherError(
                f"run.probe got a {type(self._model).__name__}, and has a {type(other._model).__name__} already: {shared}. Give"
                " each a name: run.probe(generator, optimizer, name='generator')"
            )

    def _forget(self) -> None:
        self._activations: dict[str, Tensor] = {}
        self._accumulated: set[str] = set()  # whose gradients the backward pass under way has added to
        self._stepped: set[str] = set()  # what the update under way has moved
        self._of_first: dict[str, Tensor] = {}  # activations that the first step of the update came from
        self._grads: dict[str, _Held] = {}
        self._before: dict[str, Tensor] = {}
        self._started: dict[str, Tensor] = {}  # parameters as the first forward pass found them, which it may change
        self._parts: list[Probed] = []

    # ------------------------------------------------------------------ what the callback calls

    def prepare(self, due: Due) -> None:
        """Put the hooks there for an update that is due, or take them away."""
        if bool(due) != bool(self._handles):
            self.remove()
            if due:
                self._put_hooks()
        self._due, self._stepped = due, set()

    def take(self, due: Due) -> list[Probed]:
        """Return what was read since the last call."""
        parts = self._parts
        if activations := self._in_order():
            parts.append(measured(activations, due))
        self._activations, self._of_first, self._parts = {}, {}, []
        return parts

    def remove(self) -> None:
        """Take the hooks away, and let go of what they read."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._forget()

    def _put_hooks(self) -> None:
        put = self._handles.append
        if self._has_activations or self._renormed:
            put(self._model.register_forward_pre_hook(self._begin_forward))
        if self._has_activations:
            parameters = [name for name, _ in self._model.named_parameters()]
            for name, module in unwrapped(dict(self._model.named_modules()), parameters).items():
                if name and not isinstance(module, _CONTAINERS):
                    put(module.register_forward_hook(partial(self._hold, self._prefix + name)))
        if not _is_distributed():  # else gradients are exchanged after this
            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    put(parameter.register_post_accumulate_grad_hook(partial(self._note_grad, name)))  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            put(optimizer.register_step_pre_hook(self._before_step))
            put(optimizer.register_step_post_hook(self._after_step))

    # ------------------------------------------------------------------ the hooks

    def _begin_forward(self, module: nn.Module, inputs: Any) -> None:
        self._activations = {}
        for name, parameter in self._renormed.items():
            if name not in self._started:  # of several accumulation steps, the first
                self._started[name] = parameter.detach().clone()

    def _hold(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # what is compiled has no such values
            return
        for key, value in named(READER, "act", {name: output}).items():
            if isinstance(value, Tensor):
                self._activations.pop(key, None)  # the order is that of the last run
                self._activations[key] = value.detach().clone()  # a copy, for a later layer may work in place

    def _in_order(self) -> dict[str, Tensor]:
        """Return the activations that the update's first step came from, and after them those of modules that had not run."""
        return self._of_first | {key: each for key, each in self._activations.items() if key not in self._of_first}

    def _note_grad(self, name: str, parameter: Tensor) -> None:
        """Let the gradient be read when this backward pass is done: all are then read in one go, and need no copies."""
        if name in self._stepped:  # by a step within the backward pass, after which a gradient is none any more
            return
        if torch.compiler.is_compiling():  # the backward pass itself, where nothing can be called at its end
            if parameter.grad is not None:
                self._hold_copies({name: parameter.grad})
            return
        self._accumulated.add(name)
        # what DistributedDataParallel and FSDP do; a pass that fails calls nothing, so that every gradient asks for it
        torch.autograd.Variable._execution_engine.queue_callback(self._hold_grads)

    def _hold_grads(self) -> None:
        names, self._accumulated = self._accumulated, set()
        found = {name: each.grad for name, each in self._parameters.items() if name in names and each.grad is not None}
        if not found or not self._handles:
            return
        if self._names is not None:  # these may make one array of several, of which not all need be there yet
            self._hold_copies(found)
            return
        probed = measured(self._of_stage("grad", found), self._due)
        self._grads |= {name: _Held(probed, None, grad, grad._version) for name, grad in found.items()}

    def _hold_copies(self, grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            self._grads[name] = _Held(None, grad.detach().clone(), grad, grad._version)

    def _before_step(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        own = self._own(optimizer)
        later = {name: each for name, each in self._parameters.items() if name not in self._before}
        read = self._of_stage("param", {name: self._started.get(name, each) for name, each in later.items()})
        with torch.no_grad():
            self._before |= {
                name: self._started[name] if name in self._started else each.clone() for name, each in own.items()
            }
        self._accumulated -= own.keys()
        now = {name: parameter.grad.detach() for name, parameter in own.items() if parameter.grad is not None}
        held = {name: self._grads[name] for name in now if name in self._grads}
        self._parts += _parts_of({self._prefix + name: each for name, each in held.items()})
        copies = {name: each.copy for name, each in held.items()}
        read |= self._of_stage("grad", {name: grad for name, grad in (now | copies).items() if grad is not None})
        if any(each.grad is not own[name].grad or each.grad._version != each.version for name, each in held.items()):
            read |= self._of_stage("clip", now)
        self._of_first = self._in_order()
        self._read(read)

    def _after_step(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        own = self._own(optimizer)
        self._stepped |= own.keys()
        with torch.no_grad():
            read = self._of_stage("update", {name: self._moved(name, each) for name, each in own.items()})
        for field, kept in optimizer_fields(optimizer, own).items():
            read |= self._of_stage("opt", kept, "" if field == "count" else f"{field}/")
        if optimizer is self._optimizers[-1]:
            read |= self._of_stage("opt", buffers_of(self._model))
            self._before, self._grads, self._started = {}, {}, {}
        self._read(read)

    def _moved(self, name: str, parameter: Tensor) -> Tensor:
        """Return how far a parameter has moved, in the memory of the copy of what it was: fresh memory takes longer."""
        before = self._before[name]
        return torch.sub(parameter.detach(), before, out=before)

    def _own(self, optimizer: Optimizer) -> dict[str, Tensor]:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return {name: parameter for name, parameter in self._parameters.items() if id(parameter) in held}

    def _of_stage(self, stage: str, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Return values by key, renamed."""
        renamed = self._names(values) if self._names is not None and "count" not in values else values
        return with_stage(stage, {prefix + self._prefix + name: each for name, each in renamed.items()})

    def _read(self, values: Mapping[str, Any]) -> None:
        """Measure values of several stages in one go, which on an accelerator takes no longer than those of one."""
        if values:
            self._parts.append(measured(values, self._due))


def _parts_of(held: Mapping[str, _Held]) -> Iterable[Probed]:
    """Return what was read of gradients, by the backward pass that read it."""
    keys: dict[int, tuple[Probed, list[str]]] = {}
    for name, each in held.items():
        if each.probed is not None:
            keys.setdefault(id(each.probed), (each.probed, []))[1].append(f"grad/{name}")
    return [probed.part(chosen) for probed, chosen in keys.values()]


def _check(model: Any, optimizers: Sequence[Any], name: str) -> None:
    """Raise `NoetherError` unless these are a model and optimizers, in this order, and the model's name."""
    if "/" in name:
        raise NoetherError(f"run.probe got name={name!r}; give one without '/', for keys are `stage/name`")
    if not isinstance(model, nn.Module):
        swapped = isinstance(model, Optimizer) and any(isinstance(each, nn.Module) for each in optimizers)
        raise NoetherError(
            f"run.probe got a {type(model).__name__} as its model{', and the model as its optimizer' * swapped}; write"
            " run.probe(model, optimizer), with a torch.nn.Module"
        )
    if strange := [each for each in optimizers if not isinstance(each, Optimizer)]:
        raise NoetherError(
            f"run.probe got a {type(strange[0]).__name__} as an optimizer; write run.probe(model, optimizer), with a"
            " torch.optim.Optimizer or a list of them"
        )


def _is_distributed() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
