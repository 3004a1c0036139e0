"""Write what was examined as a page: rates, what was missed, and what was said of each bug."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.porting_exam.bug import Finding
from noether_core.parity.divergence import Comparison

_GENERAL = ("forward-other", "gradient-other", "optimizer-other")


def page(
    findings: Sequence[Finding], correct: Mapping[str, Sequence[Comparison]], command: str, before: str = ""
) -> str:
    """Return the page in Markdown.

    Args:
        findings: of the bugs.
        correct: by pair, of its seeds.
        command: what made them.
        before: what stands between the introduction and the tables, such as the rates before rules were mended.
    """
    seeds = "\n".join(f"| {name} | {_same(found)} of {len(found)} |" for name, found in correct.items())
    held_out = [each for each in findings if each.bug.held_out]
    groups = {"all": findings, "held out": held_out} if held_out else {"all": findings}
    rates = "\n".join(f"| {name} ({len(found)}) | {_rates(found)} |" for name, found in groups.items())
    missed = "\n".join(f"- **{each.bug.id}** ({each.bug.words}): {_missed(each)}" for each in findings if _missed(each))
    rows = "\n".join(_row(each) for each in findings)
    return f"""# The exam: pairs and bugs that no rule was built on

Six pairs of trainings, each written twice as a user would, and single bugs planted in one side of them, half in JAX's and half
in PyTorch's. The one who planted them did not read the rules, and wrote the truth down first. The correct side is given as
the first run. `benchmarks/porting_exam/bugs.yaml` has the bugs; those held out were asked first after rules had been mended.

`{command}` made this page.
{before}
| correct pair | called the same |
|---|---|
{seeds}

| bugs | update right | stage right too | key right too | a right cause among the first three | not just "other" | \
culprit right |
|---|---|---|---|---|---|---|
{rates}

## What is missed

{missed or "Nothing."}

## All

| bug | side | what it is | where it is said to be first | the right cause, if it is named | culprit named | seconds |
|---|---|---|---|---|---|---|
{rows}
"""


def _same(found: Sequence[Comparison]) -> int:
    return sum(each.outcome == "same" for each in found)


def _rates(found: Sequence[Finding]) -> str:
    judged = [
        sum(each.update_right for each in found),
        sum(each.stage_right for each in found),
        sum(each.key_right for each in found),
        sum(bool(each.cause) for each in found),
        sum(bool(each.cause) and each.cause not in _GENERAL for each in found),
        sum(each.culprit_right for each in found),
    ]
    return " | ".join(f"{count} ({100 * count / len(found):.0f} %)" for count in judged)


def _missed(found: Finding) -> str:
    first, bug = found.comparison.first, found.bug
    said = []
    if not found.key_right:
        where = "no difference" if first is None else f"update {first.update}, `{first.key}`"
        said.append(f"{where} is said, and update {bug.first}, `{bug.keys}` is right")
    if not found.cause:
        named = ", ".join(cause.id for cause in found.comparison.causes[:3]) or "none"
        said.append(f"causes named are {named}; right is {bug.causes.replace(' ', ' or ')}")
    if not found.culprit_right:
        said.append(f"transplanting names {found.culprit or 'nothing'}; right is {bug.culprits.replace(',', ' or ')}")
    return "; ".join(said)


def _row(found: Finding) -> str:
    first = found.comparison.first
    where = "nowhere" if first is None else f"{first.update}, `{first.key}`"
    cells = (
        found.bug.id,
        found.bug.side,
        found.bug.words.replace("|", "\\|"),
        where,
        found.cause or "–",
        found.culprit or "–",
    )
    return f"| {' | '.join(cells)} | {found.seconds:.1f} |"
