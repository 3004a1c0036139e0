"""Say how well one colour is read on another."""

from __future__ import annotations


def _luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(colour: str, other: str) -> float:
    """Return the contrast of two colours, each `#rrggbb`: 1 to 21, https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio.

    WCAG 2.1 at level AA asks 4.5 of text and 3 of graphics.
    """
    low, high = sorted((_luminance(colour), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
