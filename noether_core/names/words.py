"""Take names apart, and say which words of them mean the same to people who name layers."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_CONTAINERS = frozenset(
    (
        "layer",
        "layers",
        "block",
        "blocks",
        "module",
        "modules",
        "model",
        "net",
        "network",
        "backbone",
        "self",
        "base",
        "default",
    )
)
_MEANINGS = {
    word: meaning
    for meaning, words in {
        "linear": "linear dense fc lin proj projection",
        "norm": "norm ln bn gn rms batch group instance",
        "query": "q query wq",
        "key": "k key wk",
        "value": "v value wv",
        "embed": "embed embedding embeddings emb wte tok token",
        "attention": "attn att attention mha multihead multi head",
        "encoder": "enc encoder",
        "decoder": "dec decoder",
        "out": "o out output wo",
        "conv": "conv convolution",
        "reverse": "reverse backward",
        "forward": "forward fwd",
    }.items()
    for word in words.split()
}


def words(name: str) -> tuple[str, ...]:
    """Return a name's words and numbers, in lower case.

    >>> words("encoder.layers.0.fc1"), words("Encoder_0/LayerNorm_1")
    (('encoder', 'layers', '0', 'fc', '1'), ('encoder', '0', 'layer', 'norm', '1'))
    """
    return tuple(word.lower() for word in _WORD.findall(name))


def meanings(name: str) -> tuple[str, ...]:
    """Return what a name's words mean, without words for containers.

    >>> meanings("model.layers.0.self_attn.q_proj") == meanings("block_0/attention/query")
    True
    >>> meanings("rnn.l0_reverse") == meanings("rnn/l0_backward")
    True
    """
    meant = [_MEANINGS.get(word, word) for word in words(name) if word not in _CONTAINERS]
    if {"query", "key", "value", "out"} & set(meant[-2:]) and meant[-1] == "linear":
        del meant[-1]  # a q_proj is a query
    return tuple(word for i, word in enumerate(meant) if i == 0 or word != meant[i - 1])


def last_meaning(name: str) -> tuple[str, ...]:
    """Return a name's numbers, and the last word's meaning.

    >>> last_meaning("decoder.2.cross.k_proj")
    ('2', 'key')
    """
    meant = meanings(name)
    numbers = tuple(word for word in meant if word.isdigit())
    return (*numbers, *[word for word in meant if not word.isdigit()][-1:])


def numbers(name: str) -> tuple[int, ...]:
    """Return a name's numbers.

    >>> numbers("block_2/Dense_10")
    (2, 10)
    """
    return tuple(int(word) for word in re.findall(r"\d+", name))


def without_numbers(name: str) -> str:
    """Return a name with its numbers left out: equal for names that only count.

    >>> without_numbers("block_2/Dense_10")
    'block_#/Dense_#'
    """
    return re.sub(r"\d+", "#", name)
