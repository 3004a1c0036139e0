"""One layer in PyTorch, in Flax NNX and in Flax Linen, of random shapes, and how each is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from numpy.random import Generator

from noether_core.names import images_to_flax, images_to_torch

TORCH_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
TORCH_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)


@dataclass
class Case:
    """Hold a layer in each framework, and a batch in Flax's layout.

    Attributes:
        torch: the module.
        nnx: makes the NNX module; None if Flax has none.
        linen: the Linen module; None if Linen has none.
        inputs: what Flax's are called with; PyTorch's gets `to_torch` of it.
        to_torch, from_torch: between their inputs and outputs.
        call: calls PyTorch's module, where it is not called with its input alone.
        keywords: what Linen's module is called with besides.
    """

    torch: torch.nn.Module
    nnx: Callable[[], nnx.Module] | None
    linen: linen.Module | None
    inputs: np.ndarray[Any, Any]
    to_torch: Callable[[Any], Any] = lambda x: x
    from_torch: Callable[[Any], Any] = lambda x: x
    call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] = lambda module, x: module(x)
    keywords: dict[str, Any] | None = None

    def forward_torch(self) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            x = torch.from_numpy(np.array(self.to_torch(self.inputs)))
            return np.asarray(self.from_torch(self.call(self.torch.eval(), x).numpy()))


def _rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def _normal(rng: Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape).astype(np.float32)


def _sizes(rng: Generator, count: int, low: int = 2, high: int = 8) -> list[int]:
    return [int(size) for size in rng.integers(low, high, count)]


def linear(rng: Generator) -> Case:
    n, ins, outs = _sizes(rng, 3)
    bias = bool(rng.integers(2))
    return Case(
        torch.nn.Linear(ins, outs, bias=bias),
        lambda: nnx.Linear(ins, outs, use_bias=bias, rngs=_rngs()),
        linen.Dense(outs, use_bias=bias),
        _normal(rng, n, ins),
    )


def linear_general(rng: Generator) -> Case:
    n, a, b, c, d = _sizes(rng, 5, 2, 6)
    ins, outs = [((a,), (c, d)), ((a, b), (c,)), ((a, b), (c, d))][int(rng.integers(3))]
    return Case(
        torch.nn.Linear(int(np.prod(ins)), int(np.prod(outs))),
        lambda: nnx.LinearGeneral(ins, outs, axis=tuple(range(1, 1 + len(ins))), rngs=_rngs()),
        linen.DenseGeneral(outs, axis=tuple(range(1, 1 + len(ins)))),
        _normal(rng, n, *ins),
        to_torch=lambda x: x.reshape(n, -1),
        from_torch=lambda y: y.reshape(n, *outs),
    )


def einsum(rng: Generator) -> Case:
    n, t, a, h, b = _sizes(rng, 5, 2, 6)
    equation, kernel = [("nta,hab->nthb", (h, a, b)), ("nta,bah->nthb", (b, a, h)), ("nta,ahb->nthb", (a, h, b))][
        int(rng.integers(3))
    ]
    return Case(
        torch.nn.Linear(a, h * b, bias=False),
        lambda: nnx.Einsum(equation, kernel, rngs=_rngs()),
        linen.Einsum(kernel, equation, use_bias=False),
        _normal(rng, n, t, a),
        from_torch=lambda y: y.reshape(n, t, h, b),
    )


def _convolution(rng: Generator, dims: int, is_grouped: bool = False) -> Case:
    groups = int(rng.integers(2, 4)) if is_grouped else 1
    ins, outs = (size * groups for size in _sizes(rng, 2, 1, 5))
    kernel = tuple(_sizes(rng, dims, 1, 4))
    strides, dilation = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    bias = bool(rng.integers(2))
    settings: Any = {"strides": strides, "kernel_dilation": dilation, "feature_group_count": groups, "use_bias": bias}
    return Case(
        TORCH_CONVOLUTIONS[dims - 1](ins, outs, kernel, stride=strides, dilation=dilation, groups=groups, bias=bias),
        lambda: nnx.Conv(ins, outs, kernel, padding="VALID", **settings, rngs=_rngs()),
        linen.Conv(outs, kernel, padding="VALID", **settings),
        _normal(rng, 2, *_sizes(rng, dims, 7, 10), ins),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def conv1d(rng: Generator) -> Case:
    return _convolution(rng, 1)


def conv2d(rng: Generator) -> Case:
    return _convolution(rng, 2)


def conv3d(rng: Generator) -> Case:
    return _convolution(rng, 3)


def grouped_conv(rng: Generator) -> Case:
    return _convolution(rng, int(rng.integers(1, 4)), is_grouped=True)


def depthwise_conv(rng: Generator) -> Case:
    channels, times = _sizes(rng, 2, 2, 5)
    return Case(
        torch.nn.Conv2d(channels, channels * times, 3, padding=1, groups=channels),
        lambda: nnx.Conv(channels, channels * times, (3, 3), feature_group_count=channels, rngs=_rngs()),
        linen.Conv(channels * times, (3, 3), feature_group_count=channels),
        _normal(rng, 2, 5, 6, channels),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def _transposed(rng: Generator, transpose_kernel: bool) -> Case:
    dims = int(rng.integers(1, 4))
    ins, outs = _sizes(rng, 2, 1, 5)
    kernel = tuple(_sizes(rng, dims, 2, 4))
    strides = tuple(int(rng.integers(1, size + 1)) for size in kernel)  # beyond its size, VALID pads in Flax
    dilation = tuple(_sizes(rng, dims, 1, 3))
    settings: Any = {
        "strides": strides,
        "padding": "VALID",
        "kernel_dilation": dilation,
        "transpose_kernel": transpose_kernel,
    }
    return Case(
        TORCH_TRANSPOSED[dims - 1](ins, outs, kernel, stride=strides, dilation=dilation),
        lambda: nnx.ConvTranspose(ins, outs, kernel, **settings, rngs=_rngs()),
        linen.ConvTranspose(outs, kernel, **settings),
        _normal(rng, 2, *_sizes(rng, dims, 3, 6), ins),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def transposed_conv(rng: Generator) -> Case:
    return _transposed(rng, transpose_kernel=False)


def transposed_conv_swapped(rng: Generator) -> Case:
    return _transposed(rng, transpose_kernel=True)


def batch_norm(rng: Generator) -> Case:
    dims = int(rng.integers(1, 4))
    channels = _sizes(rng, 1)[0]
    kinds = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d
    return Case(
        kinds[dims - 1](channels),
        lambda: nnx.BatchNorm(channels, use_running_average=True, rngs=_rngs()),
        linen.BatchNorm(use_running_average=True, epsilon=1e-5),
        _normal(rng, 2, *_sizes(rng, dims), channels),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def layer_norm(rng: Generator) -> Case:
    n, t, features = _sizes(rng, 3)
    return Case(
        torch.nn.LayerNorm(features),
        lambda: nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, rngs=_rngs()),
        linen.LayerNorm(epsilon=1e-5, use_fast_variance=False),
        _normal(rng, n, t, features),
    )


def layer_norm_of_images(rng: Generator) -> Case:
    n, h, w, c = rng.permutation([2, 3, 4, 5]).tolist()
    return Case(
        torch.nn.LayerNorm((c, h, w)),
        None,
        linen.LayerNorm(epsilon=1e-5, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3), use_fast_variance=False),
        _normal(rng, n, h, w, c),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def rms_norm(rng: Generator) -> Case:
    n, features = _sizes(rng, 2)
    return Case(
        torch.nn.RMSNorm(features, eps=1e-6),
        lambda: nnx.RMSNorm(features, epsilon=1e-6, rngs=_rngs()),
        linen.RMSNorm(epsilon=1e-6),
        _normal(rng, n, features),
    )


def group_norm(rng: Generator) -> Case:
    groups, each = _sizes(rng, 2, 2, 4)
    return Case(
        torch.nn.GroupNorm(groups, groups * each),
        lambda: nnx.GroupNorm(groups * each, groups, epsilon=1e-5, use_fast_variance=False, rngs=_rngs()),
        linen.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False),
        _normal(rng, 2, *_sizes(rng, 2), groups * each),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def instance_norm(rng: Generator) -> Case:
    channels = _sizes(rng, 1)[0]
    return Case(
        torch.nn.InstanceNorm2d(channels, affine=True),
        lambda: nnx.InstanceNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=_rngs()),
        linen.InstanceNorm(epsilon=1e-5, use_fast_variance=False),
        _normal(rng, 2, *_sizes(rng, 2, 4, 8), channels),
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


def embedding(rng: Generator) -> Case:
    count, features = _sizes(rng, 2, 2, 9)
    return Case(
        torch.nn.Embedding(count, features),
        lambda: nnx.Embed(count, features, rngs=_rngs()),
        linen.Embed(count, features),
        rng.integers(0, count, (3, 4)),
    )


def prelu(rng: Generator) -> Case:
    return Case(
        torch.nn.PReLU(),
        lambda: nnx.PReLU() if hasattr(nnx, "PReLU") else None,
        linen.PReLU(),
        _normal(rng, 3, 4),
    )


def attention(rng: Generator) -> Case:
    heads, depth, n, t = _sizes(rng, 4, 1, 5)
    features = heads * depth
    bias = bool(rng.integers(2))
    return Case(
        torch.nn.MultiheadAttention(features, heads, bias=bias, batch_first=True),
        lambda: nnx.MultiHeadAttention(heads, features, use_bias=bias, decode=False, rngs=_rngs()),
        linen.MultiHeadDotProductAttention(heads, use_bias=bias),
        _normal(rng, n, t, features),
        call=lambda module, x: module(x, x, x, need_weights=False)[0],
    )


class _Recurrent(linen.Module):
    """Call a cell of each layer and direction over a sequence."""

    cell: Any
    features: int
    layers: int
    is_bidirectional: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.layers):
            forward = linen.RNN(self.cell(self.features))
            backward = linen.RNN(self.cell(self.features)) if self.is_bidirectional else None
            x = linen.Bidirectional(forward, backward)(x) if backward else forward(x)
        return x


class _RecurrentNnx(nnx.Module):
    """Call a cell of each layer and direction over a sequence."""

    def __init__(self, cell: Any, ins: int, features: int, layers: int, is_bidirectional: bool) -> None:
        rnns = []
        for _ in range(layers):
            forward = nnx.RNN(cell(ins, features, rngs=_rngs()))
            backward = nnx.RNN(cell(ins, features, rngs=_rngs())) if is_bidirectional else None
            rnns.append(nnx.Bidirectional(forward, backward) if backward is not None else forward)
            ins = features * (1 + is_bidirectional)
        self.rnns = nnx.List(rnns)

    def __call__(self, x: Any) -> Any:
        for rnn in self.rnns:
            x = rnn(x)
        return x


def _recurrent(rng: Generator, module: Any, cell: Any, nnx_cell: Any) -> Case:
    n, t, ins, features = _sizes(rng, 4, 2, 6)
    layers, is_bidirectional = int(rng.integers(1, 3)), bool(rng.integers(2))
    return Case(
        module(ins, features, num_layers=layers, bidirectional=is_bidirectional, batch_first=True),
        lambda: _RecurrentNnx(nnx_cell, ins, features, layers, is_bidirectional),
        _Recurrent(cell, features, layers, is_bidirectional),
        _normal(rng, n, t, ins),
        call=lambda made, x: made(x)[0],
    )


def lstm(rng: Generator) -> Case:
    return _recurrent(rng, torch.nn.LSTM, linen.LSTMCell, nnx.LSTMCell)


def fused_lstm(rng: Generator) -> Case:
    return _recurrent(rng, torch.nn.LSTM, linen.OptimizedLSTMCell, nnx.OptimizedLSTMCell)


def gru(rng: Generator) -> Case:
    return _recurrent(rng, torch.nn.GRU, linen.GRUCell, nnx.GRUCell)


def simple_rnn(rng: Generator) -> Case:
    return _recurrent(rng, torch.nn.RNN, linen.SimpleCell, nnx.SimpleCell)


def _cell(rng: Generator, module: Any, cell: Any, nnx_cell: Any, has_memory: bool) -> Case:
    n, ins, features = _sizes(rng, 3)
    state = jnp.zeros((n, features))

    class Once(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return cell(features)((state, state) if has_memory else state, x)[1]

    class OnceNnx(nnx.Module):
        def __init__(self) -> None:
            self.cell = nnx_cell(ins, features, rngs=_rngs())

        def __call__(self, x: Any) -> Any:
            return self.cell((state, state) if has_memory else state, x)[1]

    return Case(
        module(ins, features),
        OnceNnx,
        Once(),
        _normal(rng, n, ins),
        call=lambda made, x: made(x)[0] if has_memory else made(x),
    )


def lstm_cell(rng: Generator) -> Case:
    return _cell(rng, torch.nn.LSTMCell, linen.LSTMCell, nnx.LSTMCell, has_memory=True)


def gru_cell(rng: Generator) -> Case:
    return _cell(rng, torch.nn.GRUCell, linen.GRUCell, nnx.GRUCell, has_memory=False)


def simple_cell(rng: Generator) -> Case:
    return _cell(rng, torch.nn.RNNCell, linen.SimpleCell, nnx.SimpleCell, has_memory=False)


def _wrapped(body: Callable[[linen.Module, Any], Any]) -> linen.Module:
    """Return a Linen module that calls a function with itself."""

    class Wrapped(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return body(self, x)

    return Wrapped()


def weight_norm(rng: Generator) -> Case:
    ins, outs = _sizes(rng, 2)
    if rng.integers(2):
        layer: torch.nn.Module = torch.nn.Linear(ins, outs)
        flax: linen.Module = linen.Dense(outs, parent=None)
        x = _normal(rng, 3, ins)
    else:
        layer, flax = torch.nn.Conv2d(ins, outs, (2, 3)), linen.Conv(outs, (2, 3), padding="VALID", parent=None)
        x = _normal(rng, 2, 5, 6, ins)
    return Case(
        torch.nn.utils.parametrizations.weight_norm(layer),
        None,
        _wrapped(lambda _, x: linen.WeightNorm(flax.copy())(x)),
        x,
        to_torch=images_to_torch,
        from_torch=images_to_flax,
    )


class _LowRank(torch.nn.Module):
    """Add a product of two thin layers to a linear one, as PEFT's LoRA does."""

    def __init__(self, ins: int, rank: int, outs: int) -> None:
        super().__init__()
        self.base_layer = torch.nn.Linear(ins, outs)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(ins, rank, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(rank, outs, bias=False)})

    def forward(self, x: torch.Tensor) -> Any:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def lora(rng: Generator) -> Case:
    n, ins, rank, outs = _sizes(rng, 4)
    return Case(
        _LowRank(ins, rank, outs),
        lambda: nnx.LoRALinear(ins, outs, lora_rank=rank, rngs=_rngs()),
        None,
        _normal(rng, n, ins),
    )


class _Block(torch.nn.Module):
    """Compute what a layer of a stack computes; every shape in it is there twice."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(features)
        self.up, self.down = torch.nn.Linear(features, features), torch.nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class _BlockLinen(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x: Any, _: Any) -> Any:
        y = linen.Dense(self.features)(linen.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x))
        return x + linen.Dense(self.features)(linen.relu(y)), None


class _BlockNnx(nnx.Module):
    def __init__(self, features: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.up, self.down = (nnx.Linear(features, features, rngs=rngs) for _ in range(2))

    def __call__(self, x: Any) -> Any:
        return x + self.down(nnx.relu(self.up(self.norm(x))))


class _StackNnx(nnx.Module):
    def __init__(self, features: int, layers: int) -> None:
        self.first = nnx.Linear(features, features, rngs=_rngs())
        self.blocks = nnx.vmap(lambda key: _BlockNnx(features, nnx.Rngs(key)))(
            jax.random.split(jax.random.key(0), layers)
        )
        self.last = nnx.Linear(features, features, rngs=_rngs())

    def __call__(self, x: Any) -> Any:
        body = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.last(body(self.first(x), self.blocks))


def stacked_layers(rng: Generator) -> Case:
    """Layers that `nn.scan` or `vmap` stacks in one array each, between others of their shapes."""
    n, features = _sizes(rng, 2)
    layers, axis = int(rng.integers(2, 5)), int(rng.integers(2))
    if layers == features:
        layers += 1

    def body(_: Any, x: Any) -> Any:
        x = linen.Dense(features)(x)
        scanned = linen.scan(_BlockLinen, variable_axes={"params": axis}, split_rngs={"params": True}, length=layers)
        return linen.Dense(features)(scanned(features)(x, None)[0])

    first, last = (torch.nn.Linear(features, features) for _ in range(2))
    return Case(
        torch.nn.Sequential(first, torch.nn.Sequential(*(_Block(features) for _ in range(layers))), last),
        lambda: _StackNnx(features, layers),
        _wrapped(body),
        _normal(rng, n, features),
    )


def rematerialised(rng: Generator) -> Case:
    n, ins, outs = _sizes(rng, 3)

    class Remat(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(ins, outs, rngs=_rngs()), nnx.Linear(outs, outs, rngs=_rngs())])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = nnx.remat(lambda layer, x: layer(x))(layer, x)
            return x

    return Case(
        torch.nn.Sequential(torch.nn.Linear(ins, outs), torch.nn.Linear(outs, outs)),
        Remat,
        _wrapped(lambda _, x: linen.remat(linen.Dense)(outs)(linen.remat(linen.Dense)(outs)(x))),
        _normal(rng, n, ins),
    )


def cross_attention(rng: Generator) -> Case:
    """Attention whose keys and values have other sizes than its queries."""
    heads, depth, n, t = _sizes(rng, 4, 1, 5)
    features, keys, values = heads * depth, *_sizes(rng, 2, 2, 6)
    values += values == t  # Flax warns of values that look like a mask
    x = _normal(rng, n, t, max(features, keys, values))
    return Case(
        torch.nn.MultiheadAttention(features, heads, kdim=keys, vdim=values, batch_first=True),
        None,
        _wrapped(
            lambda _, x: linen.MultiHeadDotProductAttention(heads, qkv_features=features, out_features=features)(
                x[..., :features], x[..., :keys], x[..., :values]
            )
        ),
        x,
        call=lambda module, x: module(x[..., :features], x[..., :keys], x[..., :values], need_weights=False)[0],
    )


def embedding_bag(rng: Generator) -> Case:
    count, features = _sizes(rng, 2, 2, 9)

    class Bag(nnx.Module):
        def __init__(self) -> None:
            self.embed = nnx.Embed(count, features, rngs=_rngs())

        def __call__(self, x: Any) -> Any:
            return self.embed(x).sum(1)

    return Case(
        torch.nn.EmbeddingBag(count, features, mode="sum"),
        Bag,
        _wrapped(lambda _, x: linen.Embed(count, features)(x).sum(1)),
        rng.integers(0, count, (3, 4)),
    )


def decoder_layer(rng: Generator) -> Case:
    """PyTorch's decoder layer, in which all norms, and both attentions, have the same shapes."""
    heads, depth, n, t = _sizes(rng, 4, 1, 4)
    features, hidden = heads * depth * 2, _sizes(rng, 1)[0]

    def body(_: Any, x: Any) -> Any:
        norms = [linen.LayerNorm(epsilon=1e-5, use_fast_variance=False) for _ in range(3)]
        y = norms[0](x + linen.MultiHeadDotProductAttention(heads, name="self_attn")(x))
        y = norms[1](y + linen.MultiHeadDotProductAttention(heads, name="multihead_attn")(y, x))
        return norms[2](y + linen.Dense(features)(linen.relu(linen.Dense(hidden)(y))))

    class Decoder(nnx.Module):
        def __init__(self) -> None:
            self.self_attn, self.multihead_attn = (
                nnx.MultiHeadAttention(heads, features, decode=False, rngs=_rngs()) for _ in range(2)
            )
            self.linear1, self.linear2 = (
                nnx.Linear(features, hidden, rngs=_rngs()),
                nnx.Linear(hidden, features, rngs=_rngs()),
            )
            norms = (nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, rngs=_rngs()) for _ in range(3))
            self.norm1, self.norm2, self.norm3 = norms

        def __call__(self, x: Any) -> Any:
            y = self.norm1(x + self.self_attn(x))
            y = self.norm2(y + self.multihead_attn(y, x))
            return self.norm3(y + self.linear2(nnx.relu(self.linear1(y))))

    return Case(
        torch.nn.TransformerDecoderLayer(features, heads, hidden, dropout=0.0, batch_first=True),
        Decoder,
        _wrapped(body),
        _normal(rng, n, t, features),
        call=lambda module, x: module(x, x),
    )


Make = Callable[[Generator], Case]
TABLE: tuple[tuple[str, str, tuple[Make, ...]], ...] = (
    ("`Linear`", "`Linear`, `Dense`, `LinearGeneral`, `DenseGeneral`, `Einsum`", (linear, linear_general, einsum)),
    (
        "`Conv1d` to `Conv3d`, grouped and depthwise too",
        "`Conv`; the kernel's axes move",
        (conv1d, conv2d, conv3d, grouped_conv, depthwise_conv),
    ),
    (
        "`ConvTranspose1d` to `3d`, dilated too",
        "`ConvTranspose`; with `transpose_kernel=False` its kernel also runs the other way",
        (transposed_conv, transposed_conv_swapped),
    ),
    ("`BatchNorm1d` to `3d`, with running statistics", "`BatchNorm`", (batch_norm,)),
    (
        "`LayerNorm`, `RMSNorm`, `GroupNorm`, `InstanceNorm`, `PReLU`, `Embedding`",
        "the same",
        (layer_norm, layer_norm_of_images, rms_norm, group_norm, instance_norm, embedding, prelu),
    ),
    ("`EmbeddingBag`", "`Embed`, and a sum", (embedding_bag,)),
    (
        "`MultiheadAttention`, of other keys and values too",
        "`MultiHeadAttention`, `MultiHeadDotProductAttention`: `in_proj` is their query, key and value",
        (attention, cross_attention),
    ),
    ("`TransformerDecoderLayer`", "layers in this order, or of these names", (decoder_layer,)),
    (
        "`LSTM`, `GRU`, `RNN` of any layers and directions",
        "`RNN` and `Bidirectional` of `LSTMCell`, `OptimizedLSTMCell`, `GRUCell`, `SimpleCell`",
        (lstm, fused_lstm, gru, simple_rnn),
    ),
    ("`LSTMCell`, `GRUCell`, `RNNCell`", "the same cells", (lstm_cell, gru_cell, simple_cell)),
    ("`parametrizations.weight_norm`, `weight_norm`", "`WeightNorm` of Linen", (weight_norm,)),
    ("PEFT's `lora_A`, `lora_B`", "`LoRA`, `LoRALinear`", (lora,)),
    ("layers in a row", "one whose arrays are stacked, by `nn.scan`, `nn.vmap` or `nnx.vmap`", (stacked_layers,)),
    ("any of these", "the same inside of `remat`", (rematerialised,)),
)
"""What is mapped: rows of docs/weights.md, each with what draws such layers."""

CASES: tuple[Make, ...] = tuple(make for _, _, makes in TABLE for make in makes)
