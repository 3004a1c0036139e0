"""Describe the JSON of a comparison; `docs/compare.schema.json` is made from here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from noether_core.parity.divergence.result import Outcome

Number = float | Literal["NaN", "Infinity", "-Infinity"]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DivergenceForm(_Form):
    """How far two trainings are apart at one key of one update."""

    update: int = Field(ge=1, description="counted from 1")
    stage: str = Field(description="data, param, act, loss, grad, clip, update or opt")
    key: str = Field(description="stage/name")
    distance: Number = Field(description="relative norm of the difference: ‖a − b‖ / max(‖a‖, ‖b‖)")
    noise: Number = Field(description="what a run drifts there from its own twin, in the same measure")
    ulps: Number | None = Field(description="median over elements, in units in the last place; shown, never decided by")
    shape: str = Field(description="what the difference looks like, in words; may be empty")


class CauseForm(_Form):
    """A likely cause."""

    id: str = Field(description="one of noether_core.parity.divergence.causes.CAUSES")
    sentence: str
    evidence: list[str] = Field(description="what was measured, one line each")
    score: Number = Field(description="between 0 and 1; orders the causes, and is no probability")


class ComparisonForm(_Form):
    """What `noether-parity compare A B --json` prints."""

    schema_version: Literal[1] = Field(alias="schema")
    outcome: Outcome
    sentence: str = Field(description="the answer, in one sentence or two")
    labels: tuple[str, str] = Field(description="what A and B are called")
    first: DivergenceForm | None = Field(description="first difference by update, stage and order of computation")
    differences: list[DivergenceForm] = Field(description="all of them, in that order; at most 1,000")
    causes: list[CauseForm] = Field(description="the best first")
    same_through: int = Field(ge=0, description="last update before the first difference that both have; 0: none")
    compared: int = Field(ge=0, description="how many pairs of arrays or statistics were compared")
    stages: list[str] = Field(description="those of which there were pairs")
    has_twins: bool = Field(description="whether noise was measured; without, floors stand in")
    warnings: list[str]
    settings: tuple[dict[str, Any], dict[str, Any]] = Field(description="what A and B were run with")
    exit_code: Literal[0, 1, 2] = Field(description="0: same, 1: differs, 2: cannot say")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of what `Comparison.as_json` gives.

    >>> json_schema()["properties"]["exit_code"]["enum"]
    [0, 1, 2]
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ComparisonForm.model_json_schema()}
