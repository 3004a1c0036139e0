"""Keep the handlers of a signal that took one another's place in a chain, without those that are over."""

from __future__ import annotations

from typing import Any


class Link:
    """Handle a signal in the place of another handler.

    Attributes:
        before: that handler, as `signal.getsignal` gives it.
    """

    before: Any = None

    @property
    def is_over(self) -> bool:
        """Tell whether this handles nothing any more."""
        raise NotImplementedError


def lasting(handler: Any) -> Any:
    """Return the first of a handler and those before it that is not over, and let go of the others."""
    first = link = _first(handler)
    while isinstance(link, Link):
        link.before = _first(link.before)
        link = link.before
    return first


def _first(handler: Any) -> Any:
    while isinstance(handler, Link) and handler.is_over:
        handler = handler.before
    return handler
