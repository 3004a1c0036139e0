"""Make of a loop's own step one that can be replayed from what was recorded, for `transplant`.

def train_step(batch, place):                       # the loop's body
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(batch["images"]), batch["labels"])
    loss.backward()
    optimizer.step()
    return loss

step = replayable(train_step, model, optimizer)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noether_core.errors import listing
from noether_core.parity.between_runs.replayable import WHOLE, Place, ReplayError, arrays_of, check_names, micro_batches
from noether_core.parity.between_runs.step import Array, Arrays, Inputs, Step, as_step
from noether_core.probes.walk import named
from noether_torch.measuring import measured
from noether_torch.numpy_arrays import to_array, to_tensor
from noether_torch.probes import KEPT, READER, parameters_of, unwrapped
from noether_torch.watching import Watched

TrainStep = Callable[[dict[str, Tensor], Place], Any]
Complete = Callable[[dict[str, Any], Place], None]


def replayable(
    train_step: TrainStep, model: nn.Module, optimizer: Optimizer, *, complete: Complete | None = None
) -> Step:
    """Return a step for `transplant`: it puts what was recorded into a model and its optimizer, and lets them take a step.

    Hooks read what the step computes, as `run.probe` does in a training. What a step does besides is up to `train_step`: if
    the rate changes with the update it sets it, and if it draws random numbers it seeds them.

    Args:
        train_step: takes one accumulation step, as the loop's body does, and returns its losses, as `run.step` takes them. It
            gets the batch, tensors by the names under which they were recorded, on the model's device and whole numbers as
            int64, and the `Place`; the optimizer steps where `place.is_last`.
        model: made as for the training, and not trained yet: the first update starts with its buffers.
        optimizer: of its parameters, not used yet.
        complete: adds to what the optimizer keeps of a parameter, by PyTorch's field names, what no probe records, such as
            NAdam's `mu_product`.

    Raises:
        ReplayError: from the step, for names that the model does not have, other shapes, or an optimizer's state that was not
            recorded.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> def train_step(batch, place):
    ...     optimizer.zero_grad()
    ...     loss = model(batch["x"]).sum()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> step = replayable(train_step, model, optimizer)
    >>> found = step({"x": np.ones((2, 1), "float32")}, {"weight": np.ones((1, 1), "float32")}, {}, {}, 1)
    >>> {key: array.tolist() for key, array in found.items()}
    {'loss/total': 2.0, 'grad/weight': [[2.0]], 'update/weight': [[-1.0]]}
    """
    return as_step(_Replayable(train_step, model, optimizer, complete).compute)


class _Replayable:
    """Replay steps of one model; see `replayable`."""

    def __init__(
        self, train_step: TrainStep, model: nn.Module, optimizer: Optimizer, complete: Complete | None
    ) -> None:
        self._train_step, self._model, self._optimizer, self._complete = train_step, model, optimizer, complete
        self._parameters = parameters_of(model)
        buffers = unwrapped(dict(model.named_buffers()))
        self._buffers = {name: (buffer, buffer.detach().clone()) for name, buffer in buffers.items()}
        self._settings = [copy.deepcopy(_without_params(group)) for group in optimizer.param_groups]
        self._fresh = {parameter: copy.deepcopy(kept) for parameter, kept in optimizer.state.items()}
        self._like: dict[str, dict[str, Any]] | None = None

    def compute(self, given: Inputs) -> dict[str, Array]:
        """Return what the step computes."""
        batches = micro_batches(given.batch)
        self._restore(given, Place(given.update, len(batches) - 1))
        watched = Watched(self._model, [self._optimizer])
        found = []
        with self._in_place_of_own(given.grads):  # before the watching hooks, which then read these
            watched.prepare(WHOLE)
            try:
                for number, micro in enumerate(batches):
                    place = Place(given.update, number, number == len(batches) - 1)
                    losses = self._train_step({name: self._tensor(array) for name, array in micro.items()}, place)
                    of_losses = {} if losses is None else named(READER, "loss", losses)
                    found.append([*watched.take(WHOLE), measured(of_losses, WHOLE)])
            finally:
                watched.remove()
        computed = arrays_of(found, lambda leaf: np.array(to_array(leaf.detach().cpu().contiguous())))
        return {key: array for key, array in computed.items() if not key.startswith("param/")}

    def _tensor(self, array: Any) -> Tensor:
        tensor = to_tensor(np.asarray(array))
        device = next(iter(self._parameters.values())).device
        return tensor.to(device, torch.int64 if tensor.dtype == torch.int32 else tensor.dtype)

    # ------------------------------------------------------------------ what a step starts from

    def _restore(self, given: Inputs, place: Place) -> None:
        whose = f"this {type(self._model).__name__}"
        check_names(given.params, self._parameters, "parameters", whose)
        known = {name: value for name, (value, _) in self._buffers.items()}
        own = {name: array for name, array in given.buffers.items() if name in known}
        like = self._kept_by_optimizer() if given.opt_state else {}
        self._model.zero_grad()
        with torch.no_grad():
            for name, (buffer, initial) in self._buffers.items():
                seen = (place.update - 1) * (place.accumulation_step + 1) if name.endswith("num_batches_tracked") else 0
                buffer.copy_(initial + seen if seen else initial)
            for name, array in (*given.params.items(), *own.items()):
                _put(name, array, self._parameters[name] if name in given.params else known[name])
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(copy.deepcopy(settings))
        self._optimizer.state.clear()
        if not given.opt_state:
            self._optimizer.state.update({each: copy.deepcopy(kept) for each, kept in self._fresh.items()})
        for name, fields in like.items():
            self._restore_state(name, fields, given.opt_state, place)

    def _restore_state(self, name: str, fields: Mapping[str, Any], opt_state: Arrays, place: Place) -> None:
        kept: dict[str, Any] = {}
        for field, value in fields.items():
            recorded = opt_state.get("count" if field == "step" else f"{KEPT.get(field, field)}/{name}")
            if recorded is not None and isinstance(value, Tensor):
                kept[field] = to_tensor(np.array(recorded)).to(value.device, value.dtype).reshape(value.shape)
            elif recorded is not None:
                kept[field] = type(value)(recorded)
        if not kept.keys() - {"step"} and fields.keys() - {"step"}:
            return  # it had no gradient yet
        if self._complete is not None:
            self._complete(kept, place)
        if lacking := [field for field, value in fields.items() if value is not None and field not in kept]:
            raise ReplayError(
                f"{type(self._optimizer).__name__} keeps {listing(lacking)} of {name!r}, which was not recorded; give"
                " replayable(…, complete=function), which adds it to the dict that it is given"
            )
        self._optimizer.state[self._parameters[name]] = kept

    def _kept_by_optimizer(self) -> dict[str, dict[str, Any]]:
        """Return the fields that the optimizer keeps of each parameter, as a step without gradients makes them."""
        if self._like is None:
            for parameter in self._parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            self._optimizer.step()
            state = self._optimizer.state
            self._like = {name: dict(state[each]) for name, each in self._parameters.items() if each in state}
        return self._like

    # ------------------------------------------------------------------ gradients of the other side

    @contextmanager
    def _in_place_of_own(self, grads: Arrays | None) -> Iterator[None]:
        """Let the backward pass give these gradients, whatever it computes."""
        if grads is None:
            yield
            return
        check_names(grads, self._parameters, "gradients of", f"this {type(self._model).__name__}")
        given = {name: to_tensor(np.asarray(array)) for name, array in grads.items()}

        def put(name: str, parameter: Tensor) -> None:
            parameter.grad = given[name].to(parameter.device, parameter.dtype).reshape(parameter.shape).clone()

        def put_rest(*_: Any) -> None:
            for name in given:
                if self._parameters[name].grad is None:
                    put(name, self._parameters[name])

        handles: list[Any] = [self._optimizer.register_step_pre_hook(put_rest)]
        for name in given:
            parameter = self._parameters[name]
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(partial(put, name)))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _put(name: str, array: Any, tensor: Tensor) -> None:
    given = to_tensor(np.asarray(array))
    if given.shape != tensor.shape:
        raise ReplayError(
            f"the step was given {name!r} of shape {tuple(given.shape)}, and this model's is {tuple(tensor.shape)}: were arrays"
            " kept whole? Raise `array_limit` of ProbeCallback"
        )
    tensor.copy_(given)
