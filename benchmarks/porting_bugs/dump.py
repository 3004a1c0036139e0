"""Write recordings to files, for whoever wants to look at them without recording."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.porting_bugs.families import BUGS, FAMILIES
from benchmarks.porting_bugs.record import FRAMEWORKS, TWINS, record, twin

README = """# Recordings

`FAMILY/NAME.npz`, each written by `MemoryTraining.save` and read by `MemoryTraining.load`: a member `UPDATE/STAGE/NAME`
is an array in PyTorch's layout; activations of images are NCHW. Members stand in the order of the computation.

- `base_torch`, `base_jax`: the correct pair, seed 0. `other_torch`, `other_jax`: the correct pair of seed 1.
- `twin_torch_N`, `twin_jax_N`: twins of that framework's base; all weights nudged by one float; for odd N rows permuted.
- `bug_ID`: with that bug, in the side that `bugs.json` says; compare it with the *other* framework's base.
- `way_ID`: correct, but computed otherwise, as Flax or optax do: fast variance, bias correction in float32.
- `bugs.json`: of each bug its truth: side, stage, patterns for the key, first update, accepted causes, culprit.
"""


def dump(folder: Path, families: Sequence[str]) -> None:
    """Write all recordings of families."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README").write_text(README, encoding="utf-8")
    (folder / "bugs.json").write_text(
        json.dumps({bug.id: bug.truth() for bug in BUGS.values()}, indent=1), encoding="utf-8"
    )
    for family in families:
        place = folder / family
        place.mkdir(exist_ok=True)
        for framework in FRAMEWORKS:
            record(family, framework).save(place / f"base_{framework}.npz")
            for number in range(TWINS):
                twin(family, framework, number).save(place / f"twin_{framework}_{number}.npz")
            record(family, framework, seed=1).save(place / f"other_{framework}.npz")
        for way in FAMILIES[family].ways:
            record(family, way.side, way.id).save(place / f"way_{way.id}.npz")
        for bug in FAMILIES[family].bugs:
            record(family, bug.side, bug.id).save(place / f"bug_{bug.id}.npz")
            print(bug.id, flush=True)
