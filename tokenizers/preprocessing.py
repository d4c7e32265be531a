"""Versions of what tokenizers do to measurements before their networks see them: names only, without torch."""

from __future__ import annotations

from typing import Literal, get_args

PreprocessingName = Literal["aion-1", "albireo-1"]

PREPROCESSINGS: tuple[PreprocessingName, ...] = get_args(PreprocessingName)

AION_1, ALBIREO_1 = PREPROCESSINGS
"""AION-1's preprocessing exactly, traps included; and the corrected one. A codec's configuration may name either as
`preprocessing`; one that names none is AION-1's."""
