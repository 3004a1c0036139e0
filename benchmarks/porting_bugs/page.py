"""Write the page that says of each bug what the tool found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.porting_bugs.findings import NAMED, Finding
from benchmarks.results import Correct, share, versions

INTRODUCTION = """# Porting bugs, planted and looked for

Four small trainings are written twice, in PyTorch and in JAX, from the same weights and with the same batches: a
convolutional network on handwritten digits (batch norms, SGD), an LSTM (masked losses, RMSprop), a network for the flow
around airfoils (layer norms, Adam, averaged weights) and a transformer (AdamW, clipping, accumulation, a schedule). One bug
at a time is planted in one of the two, of the kind that ports have. The tool gets twelve updates of both sides, and {twins}
twins of each side, from weights nudged by one rounding error.

This page is written by `{command}`; the code is in `benchmarks/porting_bugs/`, a bug a line in `*_bugs.py`.
"""

COLUMNS = """
The columns: the first difference that was found, and whether update, stage and key are right; the first {named} causes, a right
one in **bold**; what transplanting names, and whether that is right; how many seconds the three took, without the recording.
Bugs with `torch` in their name are in PyTorch's side.
"""


def page(findings: Sequence[Finding], correct: Mapping[str, Sequence[Correct]], twins: int, command: str) -> str:
    """Return the page.

    Args:
        findings: of the bugs.
        correct: for each family its correct pairs, a seed each.
        twins: how many a side had.
        command: what was typed.
    """
    lines = [INTRODUCTION.format(twins=twins, command=command), *_summary(findings), "", *_correct(correct)]
    for family in dict.fromkeys(finding.bug.family for finding in findings):
        lines += [
            "",
            f"## {family}",
            "" if lines[-1] else COLUMNS.format(named=NAMED).strip(),
            "",
            *_table(family, findings),
        ]
    return "\n".join([*lines, "", f"Measured on {versions()}, on the CPU."]) + "\n"


def _summary(findings: Sequence[Finding]) -> list[str]:
    rows = {
        "first update": share(each.update_right for each in findings),
        "update and stage": share(each.stage_right for each in findings),
        "update, stage and key": share(each.key_right for each in findings),
        f"a right cause among the first {NAMED}": share(each.cause_place is not None for each in findings),
        "a right cause first": share(each.cause_place == 1 for each in findings),
        "transplanting names the culprit": share(each.culprit_right for each in findings),
    }
    return ["| of all bugs | right |", "|---|---|", *(f"| {what} | {right} |" for what, right in rows.items())]


def _correct(correct: Mapping[str, Sequence[Correct]]) -> list[str]:
    rows = [f"| {family} | {share(each.is_same for each in found)} |" for family, found in correct.items() if found]
    return ["| correct pairs of | called the same |", "|---|---|", *rows]


def _table(family: str, findings: Sequence[Finding]) -> list[str]:
    rows = [_row(finding) for finding in findings if finding.bug.family == family]
    heads = ("bug", "first difference", "update", "stage", "key", "causes", "culprit", "right", "s")
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows]


def _row(finding: Finding) -> str:
    bug, named = finding.bug, finding.causes[:NAMED]
    cells = (
        bug.id.partition("-")[2],
        "none" if finding.update is None else f"{finding.update}: `{finding.key}`",
        *(_mark(right) for right in (finding.update_right, finding.stage_right, finding.key_right)),
        ", ".join(f"**{cause}**" if cause in bug.causes else cause for cause in named) or "none",
        finding.culprit or "none",
        _mark(finding.culprit_right),
        f"{finding.seconds:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _mark(right: bool) -> str:
    return "yes" if right else "**no**"
