"""What is probed of a step, in both frameworks: the same keys, values and places; and only when it is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from probed_trainings import BATCHES, FlaxModel, train_jax, train_torch
from pydantic import ValidationError
from torch import nn

import noether_jax
import noether_torch
from noether_core import HookOrderError, NoetherError
from noether_core.config.load import parse_callback
from noether_core.config.loop import ProbeCallbackConfig
from noether_core.parity import divergence
from noether_core.probes import STAGES, Due, RecordedTraining, Statistics, read_training, statistics_of
from noether_jax.probes import stage_values
from noether_torch.probes import stage_values as torch_stage_values

CONFIG = {"every_n_updates": 5, "arrays": 2}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedTraining, RecordedTraining]:
    """Return what the training computed in JAX and in PyTorch."""
    root = tmp_path_factory.mktemp("trainings")
    train_jax(root / "jax", CONFIG)
    train_torch(root / "torch", CONFIG)
    return read_training(root / "jax"), read_training(root / "torch")


def test_both_frameworks_probe_the_same_updates_and_keys(trainings: tuple[RecordedTraining, ...]) -> None:
    jax_s, torch_s = trainings
    assert (jax_s.framework, torch_s.framework) == ("jax", "torch")
    assert jax_s.updates() == torch_s.updates() == [1, 2, 5, 10]
    assert jax_s.array_updates() == torch_s.array_updates() == [1, 2]
    for update in torch_s.updates():
        keys = {stage: {k for k in torch_s.keys(update) if k.startswith(f"{stage}/")} for stage in STAGES}
        assert all(keys.values())
        found = {key for key in jax_s.keys(update) if not key.startswith("act/")}
        assert found == set(torch_s.keys(update)) - keys["act"]
        stages = [STAGES.index(key.partition("/")[0]) for key in jax_s.keys(update)]
        assert stages == sorted(stages)
    assert [key for key in torch_s.keys(1) if key.startswith("act/")] == [f"act/{at}" for at in range(4)]
    assert [k for k in torch_s.keys(1) if k[:5] == "grad/"][:2] == ["grad/0.weight", "grad/0.bias"]


def test_both_frameworks_have_the_same_values(trainings: tuple[RecordedTraining, ...]) -> None:
    jax_s, torch_s = trainings
    for key in torch_s.keys(1):
        other = {"act/3": "act/layers.2", "act/1": "act/layers.1", "act/0": "act/layers.0"}.get(key, key)
        if key == "act/2":
            continue
        a, b = torch_s.array(1, key), jax_s.array(1, other)
        assert a is not None
        assert b is not None
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=key)
        mine, others = torch_s.statistics(1, key), jax_s.statistics(1, other)
        assert mine is not None
        assert others is not None
        assert (mine.fingerprint == others.fingerprint) == (sorted(a.ravel()) == sorted(b.ravel()))
        assert mine.norm == pytest.approx(others.norm, rel=1e-3, abs=1e-6)
    for key in ("data/x", "data/y", "param/0.weight", "param/3.bias", "opt/count"):
        one, other = (dict(vars(each.statistics(1, key) or ())) for each in trainings)
        assert one.pop("fingerprint") == other.pop("fingerprint")
        assert one == pytest.approx(other, rel=1e-12)  # of another order of summation


@pytest.mark.parametrize("at", [0, 1], ids=["jax", "torch"])
def test_the_pieces_are_of_one_step(trainings: tuple[RecordedTraining, ...], at: int) -> None:
    training = trainings[at]

    def array(update: int, key: str) -> Any:
        found = training.array(update, key)
        assert found is not None
        return found.astype(np.float64)

    for name in ("0.weight", "1.bias", "3.weight"):
        np.testing.assert_allclose(
            array(1, f"param/{name}") + array(1, f"update/{name}"), array(2, f"param/{name}"), atol=1e-7
        )
        np.testing.assert_allclose(array(1, f"opt/mu/{name}"), 0.1 * array(1, f"clip/{name}"), rtol=1e-5)
        np.testing.assert_allclose(array(1, f"opt/nu/{name}"), 1e-3 * array(1, f"clip/{name}") ** 2, rtol=1e-4)
        assert np.linalg.norm(array(1, f"clip/{name}")) < np.linalg.norm(array(1, f"grad/{name}"))
    for update in (1, 2):
        np.testing.assert_array_equal(array(update, "data/x"), BATCHES[update - 1][0])
        assert int(array(update, "opt/count")) == update
        for key in training.keys(update):
            kept, known = training.array(update, key), training.statistics(update, key)
            assert kept is not None
            wanted = statistics_of(kept)
            assert known is not None
            assert (known.fingerprint, known.count) == (wanted.fingerprint, wanted.count)
            np.testing.assert_allclose([known.norm, known.min], [wanted.norm, wanted.min], rtol=1e-11, atol=1e-13)


def test_probing_changes_nothing_that_is_computed(tmp_path: Path) -> None:
    probed = train_torch(tmp_path / "a", {"every_n_updates": 1})
    silent = train_torch(tmp_path / "b", {"every_n_updates": 1000, "arrays": 0})
    for one, other in zip(probed.parameters(), silent.parameters(), strict=True):
        assert torch.equal(one, other)
    assert read_training(tmp_path / "b").updates() == []


def test_a_step_of_jax_is_compiled_once_for_each_depth_and_computes_nothing_that_is_not_due(tmp_path: Path) -> None:
    @jax.jit
    def step(x: Any, due: Due) -> Any:
        return {"loss": x.sum(), **noether_jax.probe(due, params={"kernel": x})}

    with noether_jax.Run(tmp_path, [{"kind": "ProbeCallback", "every_n_updates": 3, "arrays": 2}]) as run:
        for _ in range(12):
            run.step(step(jnp.ones((3, 5)), run.probes_due))
    assert step._cache_size() == 3
    silent = str(jax.make_jaxpr(step)(jnp.ones((3, 5)), Due()))
    assert silent == str(jax.make_jaxpr(jax.jit(lambda x: {"loss": x.sum()}))(jnp.ones((3, 5)))).replace(
        "<lambda>", "step"
    )
    assert read_training(tmp_path).updates() == [1, 2, 3, 6, 9, 12]


def hooks_of(model: nn.Module, optimizer: Any) -> int:
    modules = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    grads = sum(len(each._post_accumulate_grad_hooks or ()) for each in model.parameters())
    return modules + grads + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_hooks_are_there_only_while_an_update_is_probed(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with noether_torch.Run(tmp_path, [{"kind": "ProbeCallback", "every_n_updates": 3, "arrays": 1}]) as run:
        run.probe(model, optimizer)
        for _ in range(6):
            found.append(hooks_of(model, optimizer))
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            run.step({})
        found.append(hooks_of(model, optimizer))
    assert [each > 0 for each in found] == [True, False, True, False, False, True, False]
    assert hooks_of(model, optimizer) == 0
    assert read_training(tmp_path).updates() == [1, 3, 6]


def test_gradients_that_nothing_changes_are_not_clipped_ones(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}]) as run:
        run.probe(model, optimizer)
        for number in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            if number:
                nn.utils.clip_grad_norm_(model.parameters(), 1e6)  # by a factor of 1
            optimizer.step()
            run.step({})
    training = read_training(tmp_path)
    assert [any(key.startswith("clip/") for key in training.keys(update)) for update in (1, 2)] == [False, True]
    assert "opt/trace/weight" in training.keys(1)
    assert training.statistics(1, "clip/weight") is None
    assert training.statistics(2, "clip/weight") == training.statistics(2, "grad/weight")


@pytest.mark.parametrize("activations", [True, False])
def test_parameters_are_those_before_a_forward_pass_that_changes_them(tmp_path: Path, activations: bool) -> None:
    model = nn.Sequential(nn.Embedding(3, 4, max_norm=0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = model[0].weight.detach().clone()
    with noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}], accumulation_steps=2) as run:
        run.probe(model, optimizer, activations=activations)
        for step in range(4):
            (model(torch.tensor([step % 2])).sum() / 2).backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
            run.step({})
    training = read_training(tmp_path)
    assert np.array_equal(training.array(1, "param/0.weight"), first.numpy())
    for update, after in ((1, training.array(2, "param/0.weight")), (2, model[0].weight.detach().numpy())):
        moved = training.array(update, "param/0.weight") + training.array(update, "update/0.weight")
        np.testing.assert_allclose(moved, after, rtol=0, atol=1e-7)
        assert np.linalg.norm(training.array(update, "update/0.weight")) > 0.1 or update == 2


def test_the_batches_of_accumulation_steps_are_told_apart_and_the_gradient_is_of_all(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}], accumulation_steps=2) as run:
        run.probe(model, optimizer)
        for number in range(2):
            x = torch.full((2, 4), 1.0 + number)
            loss = model(x).sum()
            loss.backward()
            if number:
                optimizer.step()
            run.step({}, batch=x, losses={"sum": loss})
    training = read_training(tmp_path)
    keys = ["data/total", "data/total@1", "param/weight", "param/bias", "loss/sum", "loss/sum@1"]
    assert list(training.keys(1)) == [*keys, "grad/weight", "grad/bias", "update/weight", "update/bias"]
    np.testing.assert_array_equal(training.array(1, "data/total@1"), np.full((2, 4), 2.0))
    np.testing.assert_array_equal(training.array(1, "grad/weight"), np.full((1, 4), 6.0))


# ---------------------------------------------------------------------- optimizers' states

OPTAX = {
    "adamw": (optax.adamw(0.1), {"mu", "nu"}),
    "sgd with momentum": (optax.sgd(0.1, momentum=0.9), {"trace"}),
    "rmsprop, centred": (optax.rmsprop(0.1, centered=True), {"mu", "nu"}),
    "clipped, in a chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(0.1))),
        {"mu", "nu"},
    ),
    "with hyperparameters": (optax.inject_hyperparams(optax.adam)(learning_rate=0.1), {"mu", "nu"}),
    "masked": (optax.masked(optax.sgd(0.1, momentum=0.9), {"dense": {"kernel": True, "bias": False}}), {"trace"}),
    "in parts": (
        optax.multi_transform(
            {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, {"dense": {"kernel": "a", "bias": "b"}}
        ),
        {"mu", "nu", "trace"},
    ),
    "over several steps": (optax.MultiSteps(optax.adam(0.1), 2), {"mu", "nu", "acc_grads"}),
    "adadelta": (optax.adadelta(0.1), {"nu", "e_x"}),
    "none": (optax.sgd(0.1), set()),
}


@pytest.mark.parametrize("name", OPTAX)
def test_what_optax_keeps_of_parameters_is_found(name: str) -> None:
    transform, fields = OPTAX[name]
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    grads = jax.tree.map(lambda each: 2 * each, params)
    _, state = transform.update(grads, transform.init(params), params)
    found = {key: value for key, value in stage_values(params=params, opt_state=state).items() if key[:4] == "opt/"}
    assert {key.split("/")[1] for key in found} - {"count"} == fields
    for key, value in found.items():
        if key != "opt/count":
            assert value.shape == ((3, 2) if key.endswith("dense.weight") else (3,)), key
    assert ("opt/count" in found) == bool({"mu"} & fields and "centred" not in name)


TORCH = {
    "AdamW": (torch.optim.AdamW, {"amsgrad": True}, {"mu", "nu", "nu_max"}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"trace"}),
    "RMSprop": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}, {"mu", "nu", "trace"}),
    "Adagrad": (torch.optim.Adagrad, {}, {"sum_of_squares"}),
    "Adamax": (torch.optim.Adamax, {}, {"mu", "nu"}),
    "Adadelta": (torch.optim.Adadelta, {}, {"nu", "e_x"}),
}


@pytest.mark.parametrize("name", TORCH)
def test_what_an_optimizer_of_pytorch_keeps_is_found(name: str) -> None:
    kind, options, fields = TORCH[name]
    model = nn.Linear(2, 3)
    optimizer = kind(model.parameters(), **options)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = [key for key in torch_stage_values(params=model, opt_state=optimizer) if key.startswith("opt/")]
    assert {key.split("/")[1] for key in found} - {"count"} == fields
    assert all(f"opt/{field}/{name}" in found for field in fields for name in ("weight", "bias"))


def test_linen_and_nnx_states_are_taken_with_their_buffers() -> None:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Conv(4, (3, 5))(x)
            x = linen.BatchNorm(use_running_average=False)(x)
            return linen.Dense(2)(x.reshape(len(x), -1))

    x = jnp.ones((2, 6, 7, 3))
    variables = Net().init(jax.random.key(0), x)
    found = stage_values(
        batch=x, params=variables["params"], buffers={"batch_stats": variables["batch_stats"]}, images=True
    )
    shapes = {key: value.shape for key, value in found.items()}
    assert shapes["param/Conv_0.weight"] == (4, 3, 3, 5)
    assert shapes["param/Dense_0.weight"] == (2, 6 * 7 * 4)
    assert shapes["param/BatchNorm_0.weight"] == shapes["opt/BatchNorm_0.running_var"] == (4,)
    assert shapes["data/total"] == (2, 3, 6, 7)
    model = FlaxModel()
    state = stage_values(params=nnx.state(model, nnx.Param))
    assert state["param/layers.0.weight"].shape == (8, 4)
    assert list(stage_values(batch={"key": jax.random.key(0), "x": x})) == ["data/x"]  # a random key is no array


def test_misuse_is_told(tmp_path: Path) -> None:
    with pytest.raises(HookOrderError, match="this run has no ProbeCallback; give it one"):
        _ = noether_jax.Run(tmp_path, []).probes_due
    run = noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}])
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(NoetherError, match=r"run\.probe got a Linear and optimizers that have none of its parameters"):
        run.probe(nn.Linear(2, 2), other)
    with pytest.raises(
        ValidationError, match="a ProbeCallback counts updates, the same in every run; give every_n_updates"
    ):
        parse_callback({"kind": "ProbeCallback", "every_n_epochs": 1})
    with pytest.raises(NoetherError, match=r"unknown piece 'lossess'; it takes .* Did you mean 'losses'"):
        stage_values(lossess=1.0)  # type: ignore[call-arg]


def alternate(path: Path, rate: float = 0.1) -> RecordedTraining:
    """Train a generator and a discriminator in turn, an update for each one's step."""
    torch.manual_seed(0)
    nets = {name: nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for name in ("generator", "discriminator")}
    optimizers = {name: torch.optim.Adam(net.parameters(), 0.1) for name, net in nets.items()}
    optimizers["discriminator"].param_groups[0]["lr"] = rate
    with noether_torch.Run(path, [{"kind": "ProbeCallback"}]) as run:
        for name, net in nets.items():
            run.probe(net, optimizers[name], name=name)
        for _ in range(2):
            for name in ("discriminator", "generator"):
                loss = nets["discriminator"](nets["generator"](torch.randn(4, 2))).mean()
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
                nets[name](torch.zeros(1, 2))  # with parameters that are no longer those of the step
                run.step({"loss": loss}, losses={name: loss})
    return read_training(path)


def test_several_models_are_probed_each_under_its_name(tmp_path: Path) -> None:
    one, other = alternate(tmp_path / "a"), alternate(tmp_path / "b", rate=0.2)
    acts = ["act/generator.0", "act/generator.1", "act/discriminator.0", "act/discriminator.1"]
    for update, name in enumerate(("discriminator", "generator") * 2, 1):
        keys = one.keys(update)
        assert [key for key in keys if key[:4] == "act/"] == acts
        owned = [
            f"{stage}/{name}.0.{part}"
            for stage in ("param", "grad", "update", "opt/mu", "opt/nu")
            for part in ("weight", "bias")
        ]
        assert {*owned, f"loss/{name}", f"opt/{name}.count", *acts} == set(keys)
        out = one.array(update, f"act/{name}.0")
        assert out is not None
        assert out.shape == (4, 2)  # of the step, not of what ran after it
    found = divergence.compare(one, other)
    assert found.first is not None
    assert (found.first.update, found.first.key) == (1, "update/discriminator.0.weight")


def test_what_the_optimizers_of_several_models_keep_is_found_by_model() -> None:
    params = {
        name: {"fc": {"kernel": jnp.ones((2, size)), "bias": jnp.ones(size)}} for name, size in (("a", 3), ("b", 1))
    }
    states = {name: optax.adam(0.1).init(each) for name, each in params.items()}
    found = stage_values(params=params, opt_state=states)
    kept = [f"opt/{field}/{name}.fc.{part}" for name in "ab" for field in ("mu", "nu") for part in ("bias", "weight")]
    assert {key for key in found if key[:4] == "opt/"} == {*kept, "opt/a.count", "opt/b.count"}
    assert found["opt/mu/a.fc.weight"].shape == (3, 2)
    one = stage_values(params={"b": params["b"]}, opt_state={"b": states["b"]})
    assert {key for key in one if key[:4] == "opt/"} == {
        key for key in found if key[:4] == "opt/" and "b.fc" in key
    } | {"opt/b.count"}


def test_models_that_would_share_names_are_refused(tmp_path: Path) -> None:
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    steps, others = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    run = noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}])
    run.probe(net, steps)
    with pytest.raises(NoetherError, match=r"both have 'weight', 'bias'\. Give each a name: run\.probe\(generator"):
        run.probe(other, others)
    run.probe(other, others, name="other")
    with pytest.raises(NoetherError, match=r"both have 'other\.weight', 'other\.bias'"):
        run.probe(net, steps, name="other")
    odd = nn.Bilinear(1, 1, 1, bias=False)
    odd.register_parameter("own", nn.Parameter(torch.ones(1)))
    del odd.weight
    with pytest.raises(NoetherError, match="both are called 'other'"):
        run.probe(odd, torch.optim.SGD(odd.parameters(), lr=0.1), name="other")


SWAPPED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (torch.optim.SGD, nn.Linear, {}, "got a SGD as its model, and the model as its optimizer; write"),
    (torch.optim.SGD, nn.Sequential, {}, "got a SGD as its model, and the model as its optimizer; write"),
    (nn.Linear, int, {}, "got a int as an optimizer; write"),
    (nn.Linear, torch.optim.SGD, {"name": "a/b"}, "give one without '/'"),
]


@pytest.mark.parametrize(("first", "second", "named", "says"), SWAPPED)
def test_what_is_no_model_and_its_optimizer_is_told(
    tmp_path: Path, first: Any, second: Any, named: Any, says: str
) -> None:
    model = nn.Linear(2, 2)
    made = {
        nn.Linear: model,
        nn.Sequential: nn.Sequential(model),
        int: 3,
        torch.optim.SGD: torch.optim.SGD(model.parameters(), lr=0.1),
    }
    with pytest.raises(NoetherError, match=says):
        noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}]).probe(made[first], made[second], **named)


def test_the_config_says_what_is_due() -> None:
    config = parse_callback({"kind": "noether.core.callbacks.ProbeCallback", "arrays_at": [200], "array_limit": 8})
    assert isinstance(config, ProbeCallbackConfig)
    assert (config.every_n_updates, config.arrays, config.logs) == (100, 12, ())


def test_the_protocol_of_a_training_is_met(trainings: tuple[divergence.Training, ...]) -> None:
    assert divergence.STAGES == STAGES
    assert divergence.Statistics is Statistics
    assert trainings[0].settings["callbacks"][0]["kind"] == "ProbeCallback"
    assert "jax" in trainings[0].settings["versions"]
