"""Compute with whatever bits an array holds, and let NumPy say nothing of it.

Arrays come from trainings that have gone wrong, too. A signaling NaN is invalid in a cast and a comparison already, infinities
that cancel are, and squares overflow. What is not finite is counted and said in our own words; NumPy's warnings would reach a
terminal beside these, and end a program for which warnings are errors.
"""

from __future__ import annotations

import numpy as np

SILENT = np.errstate(all="ignore")
"""Decorates what computes with values that may be anything; it is no context manager for a `with`, which enters it but once.

>>> @SILENT
... def halved(values):
...     return values / 2 - np.inf * 0
>>> halved(np.float32([1.0]))
array([nan])
"""
