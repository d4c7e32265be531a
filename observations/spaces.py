"""Names of embedding spaces, `model@identity`: only what follows the @ says whether two vectors can be compared."""

from __future__ import annotations


def same_space(one: str, other: str) -> bool:
    """True if vectors of the two spaces can be compared. What a model is called is no part of its identity."""
    return identity(one) == identity(other)


def identity(space: str) -> str:
    """`space` without the name of its model; a space that has no @ is all identity."""
    return space.partition("@")[2] or space
