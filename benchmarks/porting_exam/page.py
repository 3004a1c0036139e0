"""Write what was examined as a page: rates, what was missed, and what was said of each bug."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.porting_exam.bug import NAMED, Finding, bugs
from benchmarks.results import Correct, share, versions

_GENERAL = ("forward-other", "gradient-other", "optimizer-other")


def page(findings: Sequence[Finding], correct: Mapping[str, Sequence[Correct]], command: str) -> str:
    """Return the page in Markdown.

    Args:
        findings: of the bugs.
        correct: by pair, of its seeds.
        command: what made them.
    """
    seeds = "\n".join(
        f"| {name} | {share(each.is_same for each in found)} |" for name, found in correct.items() if found
    )
    groups = {"all": findings}
    for number in sorted({each.bug.round for each in findings}):
        groups[f"round {number}"] = [each for each in findings if each.bug.round == number]
    rates = "\n".join(f"| {name} | {_rates(found)} |" for name, found in groups.items())
    missed = "\n".join(f"- **{each.name}** ({each.bug.words}): {_missed(each)}" for each in findings if _missed(each))
    rows = "\n".join(_row(each) for each in findings)
    first_asked = Path(__file__).with_name("first_asked.md").read_text(encoding="utf-8")
    return f"""# The exam: pairs and bugs that came after the rules

Six pairs of trainings, each written twice as a user would, and single bugs planted in one side of them, half in JAX's and half
in PyTorch's. The truth was written down before the tool was asked. The correct side is given as the first run.
`benchmarks/porting_exam/bugs.yaml` has the bugs.

`{command}` writes this page: all of it by one set of rules, on {versions()}, on the CPU.{_lacking(findings)}

| correct pair | called the same |
|---|---|
{seeds}

| bugs | update right | stage right too | key right too | a right cause among the first {NAMED} | not just "other" | \
culprit right |
|---|---|---|---|---|---|---|
{rates}

{first_asked}
## What is missed now

{missed or "Nothing."}

## All

| bug | side | what it is | where it is said to be first | the right cause, if it is named | culprit named | seconds |
|---|---|---|---|---|---|---|
{rows}
"""


def _lacking(findings: Sequence[Finding]) -> str:
    """Return which bugs were not asked by these rules; empty if none."""
    asked = {each.name for each in findings}
    left = [bug.id for bug in bugs() if bug.id not in asked]
    if not left:
        return ""
    return (
        f"\n\nIt is not complete: of {len(bugs())} bugs {len(left)} were not asked by these rules: {', '.join(left)}."
    )


def _rates(found: Sequence[Finding]) -> str:
    judged = (
        [each.update_right for each in found],
        [each.stage_right for each in found],
        [each.key_right for each in found],
        [bool(each.cause) for each in found],
        [bool(each.cause) and each.cause not in _GENERAL for each in found],
        [each.culprit_right for each in found],
    )
    return " | ".join(map(share, judged))


def _missed(found: Finding) -> str:
    bug = found.bug
    said = []
    if not found.key_right:
        where = "no difference" if found.update is None else f"update {found.update}, `{found.key}`"
        said.append(f"{where} is said, and update {bug.first}, `{bug.keys}` is right")
    if not found.cause:
        named = ", ".join(found.causes[:NAMED]) or "none"
        said.append(f"causes named are {named}; right is {bug.causes.replace(' ', ' or ')}")
    if not found.culprit_right:
        said.append(f"transplanting names {found.culprit or 'nothing'}; right is {bug.culprits.replace(',', ' or ')}")
    return "; ".join(said)


def _row(found: Finding) -> str:
    cells = (
        found.name,
        found.bug.side,
        found.bug.words.replace("|", "\\|"),
        "nowhere" if found.update is None else f"{found.update}, `{found.key}`",
        found.cause or "–",
        found.culprit or "–",
    )
    return f"| {' | '.join(cells)} | {found.seconds:.1f} |"
