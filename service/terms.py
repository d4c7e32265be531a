"""The terms of a request: what is not accepted of an object, whether one bad object fails all, whether caches answer.

Terms    the options that say so, the same on every door
Refused  the error of a request that a bad object fails as a whole
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation

if TYPE_CHECKING:
    from albireo.service.core import Outcome

OnError = Literal["item", "fail"]
Missing = Literal["mask", "error"]
Qa = Literal["lenient", "strict"]
CacheUse = Literal["use", "bypass"]

TERMS: dict[str, tuple[str, ...]] = {
    name: get_args(kind)
    for name, kind in (("on_error", OnError), ("missing", Missing), ("qa", Qa), ("cache", CacheUse))
}
"""Option -> what it can be, the default first."""

MISSING = ("missing_", "non_detection_")
"""What flags begin with that name a value, a column or a part of a file that the object lacks."""

NOT_MISSED = frozenset({"missing_bands", "missing_errors", "missing_redshift"})
"""Flags that begin so and do not count: bands are looked for in the image, the others are no input of a model."""

DOUBTFUL = frozenset(
    {
        *("saturated", "flux_clipped", "masked_pixels_used", "blank_image", "blank_spectrum", "low_coverage"),
        *("norm_floored", "norm_saturated", "no_inverse_variance", "negative_inverse_variance", "relative_flux"),
        *("fiberstatus", "psf_flux_flagged", "outside_aion_1_masked"),
    }
)
"""QA flags that say that a measurement may be bad, or that its tokens are not what was measured."""

DOUBTFUL_ENDS = ("_token_saturated", "_below_floor")
"""What such flags of single numbers end with."""


@dataclass(frozen=True)
class Terms:
    """The terms of a request; the defaults take what there is.

    on_error  item: a bad object fails alone; fail: the first that is found fails the request
    missing   mask: what an object lacks is left out; error: an object that lacks something fails
    qa        strict: an object fails whose flags say that a measurement may be bad
    cache     bypass: tokens and embeddings are computed anew, and not kept
    dims      numbers of an embedding: those that the model's have, or it is refused
    """

    on_error: OnError = "item"
    missing: Missing = "mask"
    qa: Qa = "lenient"
    cache: CacheUse = "use"
    dims: int | None = None

    def check_dims(self, dim: int) -> None:
        """BadInput unless all `dim` numbers of an embedding are asked for."""
        if self.dims not in (None, dim):
            raise BadInput(
                "option_invalid",
                f"embeddings have {dim} numbers, and {self.dims} of them are no embedding: the model was not trained "
                "so that leading numbers stand for the whole (Matryoshka)",
                field="dims",
                fix=f"leave dims out or give {dim}; to have fewer, reduce what comes, as by principal components",
            )

    def objection(
        self, observation: Observation, flags: Sequence[str], left_out: Sequence[str] = ()
    ) -> BadInput | None:
        """Why an object is not accepted, None if it is.

        flags     that are known of it by now
        left_out  token keys of its modalities that the checkpoint does not read
        """
        if self.missing == "error" and (lacking := list(_lacking(observation, flags, left_out))):
            return BadInput(
                "measurement_missing",
                f"object {observation.id!r}: {'; '.join(lacking)}",
                field="missing",
                fix="give what is missing, leave out what the model does not read, or ask with missing=mask",
            )
        if self.qa == "strict" and (doubts := [flag for flag in flags if doubtful(flag)]):
            return BadInput(
                "measurement_doubtful",
                f"object {observation.id!r} has the QA flags {', '.join(doubts)}",
                field="qa",
                fix="look at the measurement, or ask with qa=lenient",
            )
        return None


USUAL = Terms()


class Refused(BadInput):
    """A request that a bad object fails as a whole: the error of the first, and what became of those found bad."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        first = outcomes[0].error
        assert first is not None
        super().__init__(first.code, first.message, file=first.file, field=first.field, fix=first.fix)
        self.outcomes = tuple(outcomes)


def doubtful(flag: str) -> bool:
    """Whether a QA flag says that a measurement may be bad."""
    return flag in DOUBTFUL or flag.endswith(DOUBTFUL_ENDS)


def _lacking(observation: Observation, flags: Sequence[str], left_out: Sequence[str]) -> Iterator[str]:
    """What an object lacks, for people."""
    for key in left_out:
        yield f"the model does not read {MODALITIES[key].name}"
    for key, payload in observation.data.items():
        if isinstance(payload, Image):
            seen = {band for band, bad in zip(payload.bands, payload.mask, strict=True) if not np.all(bad)}
            bands = [band for band in MODALITIES[key].bands if band not in seen]
            if bands:
                yield f"no {', '.join(bands)} in {MODALITIES[key].name}"
    names = [flag for flag in flags if flag.startswith(MISSING) and flag not in NOT_MISSED]
    if names:
        yield f"no value: {', '.join(names)}"
