"""A step inside of a function that `torch.compile` compiles stands outside of it, or the compiler says where it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import noether_torch
from noether_core import read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("seed", range(3))
def test_steps_in_a_compiled_function_are_those_of_the_plain_one(backend: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    config = {
        "every_n_updates": 2, "patterns": ["k"], "reduce": {"k0": ["mean", "last", "stack"]}, "save_output": True,
        "log_output": False,
    }  # fmt: skip
    sizes = [rng.choice([1, 3, 200]) for _ in range(3)]
    logs, nested = rng.random() < 0.5, rng.random() < 0.5

    def train(path: Path, wrap: Any) -> Any:
        with noether_torch.Run(path, [config]) as run:

            @wrap
            def inner(value: torch.Tensor) -> torch.Tensor:
                outputs = {f"k{n}": value[:size] * n for n, size in enumerate(sizes)}
                run.step({"nested": outputs, **outputs} if nested else outputs)
                return value * 2

            @wrap
            def outer(value: torch.Tensor) -> torch.Tensor:
                result = inner(value + 1).sum()
                if logs:
                    run.log({"own": result})
                return result

            torch._dynamo.reset()
            results = []
            for number in range(6):
                value = torch.full((200,), float(number), requires_grad=True)
                results.append(outer(value))
                results[-1].backward()
                assert value.grad is not None
            assert run.counter.update == 6
        read = read_run(path)
        return repr(
            [
                [result.item() for result in results],
                read.entries,
                [(str(file.iteration), file.load()) for file in read.arrays],
            ]
        )

    plain = train(tmp_path / "plain", lambda function: function)
    assert train(tmp_path / "compiled", lambda function: torch.compile(function, backend=backend)) == plain


def test_a_whole_graph_is_refused_at_the_call_and_counts_nothing(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [{"every_n_updates": 2, "keys": ["loss"]}]) as run:

        @torch.compile(backend="eager", fullgraph=True)
        def function(value: torch.Tensor) -> torch.Tensor:
            run.step({"loss": value})
            return value

        torch._dynamo.reset()
        for _ in range(3):
            with pytest.raises(torch._dynamo.exc.Unsupported, match="_call_outside_of_torch_compile"):
                function(torch.ones(3))
        assert run.counter.update == 0
