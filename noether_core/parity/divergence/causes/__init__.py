"""Name why two trainings part: rules on the stage, the shape and the time course of the first difference."""

from noether_core.parity.divergence.causes.names import CAUSES
from noether_core.parity.divergence.causes.ranking import causes_of, with_causes
from noether_core.parity.divergence.causes.upstream import Upstream, upstream

__all__ = ["CAUSES", "Upstream", "causes_of", "upstream", "with_causes"]
