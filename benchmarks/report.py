"""Write what was measured as Markdown tables, and plot how a step's cost grows with the keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.measure import fastest, ratio
from benchmarks.rounding import Found

Table = Mapping[str, Mapping[int, float]]
Times = Mapping[int, Mapping[str, Sequence[float]]]  # by size, by name: those of every turn, in µs


def _keys(sizes: Iterable[int]) -> list[str]:
    return [f"{size:,} key{'s' * (size > 1)}" for size in sizes]


class Report:
    """Collect the tables.

    Args:
        about: what the figures were taken with.
    """

    def __init__(self, about: Mapping[str, str]) -> None:
        self._parts = [
            (
                "# Benchmarks\n\nWhat tracking costs, beside what people use for it. All timings are taken side by side in one"
                " run, on one machine: ratios carry over to others, microseconds do not. Ours counts NaN and infinities and"
                " locates the first, and its means are exact; of the others only torchmetrics looks for NaN.\n"
            ),
            "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n",
            "![A step's cost by the number of keys](benchmarks.svg)\n",
        ]

    def text(self) -> str:
        """Return the whole report."""
        return "\n".join(self._parts)

    def _table(self, title: str, note: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [f"## {title}\n", f"{note}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        self._parts.append("\n".join(lines) + "\n")
        print(self._parts[-1], flush=True)

    def steps(self, framework: str, per_step: Table, ratios: Table) -> None:
        """Add the cost of a step with scalars."""
        sizes = list(next(iter(per_step.values())))
        rows = [
            [name]
            + [f"{times[size]:,.0f} µs ({ratios[name][size]:.1f} ×)" for size in sizes]
            + [f"{(times[sizes[-1]] - times[sizes[0]]) / (sizes[-1] - sizes[0]):.2f} µs"]
            for name, times in per_step.items()
        ]
        note = "The median of a step, and in brackets how many times ours takes (the median of the turns' ratios)."
        head = ["", *_keys(sizes), "each further key"]
        self._table(f"{framework}: a step with scalars", note, head, rows)

    def ends(self, framework: str, per_end: Table) -> None:
        """Add the cost of an interval's end."""
        sizes = list(next(iter(per_end.values())))
        rows = [[name, *(f"{times[size] / 1000:,.2f} ms" for size in sizes)] for name, times in per_end.items()]
        note = (
            "After 100 steps: everything to the host, and rounded. Ours rounds each mean once, and logs. (The metrics of the"
            " other libraries had 10 steps at 1,000 keys; what they do at the end does not depend on it.)"
        )
        self._table(f"{framework}: an interval's end", note, ["", *_keys(sizes)], rows)

    def logged(self, framework: str, times: Times, hand: Sequence[str]) -> None:
        """Add the cost of a step that logs; `hand` names the loops that a user would write."""
        note = (
            "Every update is logged: from the step's scalars, new arrays, to a line that is handed to the thread that"
            " writes it. In brackets"
            " how many times the fastest of the loops by hand takes (the median of the turns' ratios)."
        )
        bases = {size: fastest(by, hand) for size, by in times.items()}
        self._beside(f"{framework}: a step that logs", note, _keys(times), times, bases)

    def arrays(self, framework: str, times: Times) -> None:
        """Add the cost of a step with one array."""
        note = (
            "In brackets how many times a plain float32 sum takes. The steps go round arrays that no cache holds together, as"
            " a training's are new at each; one that is in the cache already makes the plain sum faster, and the ratio higher."
        )
        head = [f"{elements:,} elements" for elements in times]
        bases = dict.fromkeys(times, "float32 sum")
        self._beside(f"{framework}: a step with one float32 array", note, head, times, bases)

    def _beside(self, title: str, note: str, head: Sequence[str], times: Times, bases: Mapping[int, str]) -> None:
        """Add medians, and in brackets how many times that of the row that is a column's base."""
        rows = [
            [
                name,
                *(
                    f"{median(by[name]):,.0f} µs ({ratio(by[bases[size]], by[name]):.1f} ×)"
                    for size, by in times.items()
                ),
            ]
            for name in next(iter(times.values()))
        ]
        self._table(title, note, ["", *head], rows)

    def compilation(self, arrays: int, shape: Sequence[int], seconds: Mapping[str, float]) -> None:
        """Add how long JAX's first step takes; the first row is the plain function."""
        note = (
            f"From the first call until the mean and the standard deviation of {arrays} arrays of {' × '.join(map(str, shape))}"
            " are logged, nearly all of it compilation, each in a process of its own; of the plain function, until they are on"
            " the host. In brackets how many times the plain function takes."
        )
        plain = next(iter(seconds.values()))
        cells = [[way, f"{time:.2f} s ({time / plain:.1f} ×)"] for way, time in seconds.items()]
        self._table("JAX: the first step", note, ["", "the first step"], cells)

    def reading(self, keys: int, updates: int, rows: Iterable[tuple[str, float, int]]) -> None:
        """Add what reading a large run costs: the work, its seconds, the process's greatest resident set in bytes."""
        note = f"A run of {keys:,} keys × {updates:,} updates; each in a process of its own."
        cells = [[work, f"{seconds:.1f} s", f"{peak / 2**20:,.0f} MiB"] for work, seconds, peak in rows]
        self._table("Reading a run", note, ["", "time", "peak memory"], cells)

    def rounding(self, rows: Mapping[str, Found]) -> None:
        """Add how many roundings were right, and how many were left to exact fractions."""
        note = (
            "Sums made to be hard to round (ties and what is beside them, cancellation, the ends of float32's and float64's"
            " range) and some as they come, rounded to float32 and float64 in vectors, beside exact integers: how many differ,"
            " and for how many the vectors leave it to exact fractions."
        )
        cells = [
            [
                kind,
                f"{found.cases:,}",
                f"{found.differing}",
                f"{found.open:,}",
                f"{found.plain_open} of {found.plain:,}",
            ]
            for kind, found in rows.items()
        ]
        self._table("Rounding", note, ["", "cases", "differ", "left to fractions", "of those as they come"], cells)

    def before(self, revision: str, rows: Mapping[str, tuple[float, float, float]]) -> None:
        """Add what takes how many times as long as at another revision."""
        note = (
            f"The medians of {revision} and of this tree, in processes that took turns, and the median of the turns' ratios."
            " An interval's end comes after 100 steps."
        )
        cells = [
            [name, f"{then:,.0f} µs", f"{now:,.0f} µs", f"{times:.2f} ×"] for name, (then, now, times) in rows.items()
        ]
        self._table("Before and now", note, ["", "before", "now", "that is"], cells)

    def fused(self, rows: Mapping[int, tuple[float, float]]) -> None:
        """Add what tracking adds to a compiled training step."""
        note = (
            "A network of 784, 512, 512 and 10 units, adam, a batch of 128. Both steps compute the same update outputs, each by"
            " a reduction of its own; the bare one returns them as one vector."
        )
        cells = [
            [f"{keys}", f"{bare:,.0f} µs", f"{share * 100:+.1f} %", f"{share * bare:+,.0f} µs"]
            for keys, (bare, share) in rows.items()
        ]
        self._table("JAX: fused into a training step", note, ["keys", "the bare step", "tracking", "that is"], cells)

    def memory(self, rows: Sequence[tuple[str, str, int, int, int]]) -> None:
        """Add how memory grows over one interval."""
        note = "By how much a process of its own grew over the steps of one interval, after 600 others, and its peak beyond."
        cells = [
            [name, what, f"{steps:,}", f"{grown / 2**20:,.1f} MiB", f"{peak / 2**20:,.1f} MiB"]
            for name, what, steps, grown, peak in rows
        ]
        self._table("Memory", note, ["", "a step has", "steps", "growth", "peak"], cells)

    def long_log(self, updates: int, keys: int, sizes: Sequence[int]) -> None:
        """Add the memory of a process that logs every update, at equal distances; the first before any."""
        note = f"The resident memory of a process of its own that logs {keys} keys at each of {updates:,} updates."
        marks = [f"{updates * at // (len(sizes) - 1):,}" for at in range(len(sizes))]
        row = [f"{size / 2**20:,.1f} MiB" for size in sizes]
        self._table("Memory of a long log", note, ["after updates", *marks], [["PyTorch", *row]])


def plot(per_step: Mapping[str, Table], path: Path) -> None:
    """Save how a step's cost grows with the keys, one panel a framework."""
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same file for the same figures
    figure, axes = plt.subplots(1, len(per_step), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (framework, table) in zip(axes, per_step.items(), strict=True):
        for name, times in table.items():
            ours = name.startswith("noether")
            axis.loglog(list(times), list(times.values()), marker="o", linewidth=2.5 if ours else 1.2, label=name)
        axis.set(title=framework, xlabel="scalar keys")
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set_ylabel("µs a step")
    figure.savefig(path, metadata={"Date": None})
