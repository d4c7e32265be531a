"""Posteriors of redshift, and the one that a checkpoint gives by itself: its probabilities of the token `tok_z`.

AION-1's grid ends at z = 1 and its last code stands for everything beyond, so a posterior that piles up there says
only "1 or more": it is flagged `z_posterior_saturated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Engine, Tokens
from albireo.observations.errors import BadInput

SATURATED = 0.05
"""Probability in the last code from which a posterior is flagged."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Probabilities of redshift.

    edges        (V + 1,) cell k lies between edges[k] and edges[k + 1], as wide as it may be. Of `tok_z` cell 0 is
                 z <= 0 and the last has no upper end: its upper edge here is the end of the grid
    probability  (V,), sums to 1
    flags        of `tok_z`: "z_posterior_saturated" if the last cell has SATURATED or more
    """

    edges: Doubles
    probability: Doubles
    flags: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.probability @ self._centres)

    @property
    def std(self) -> float:
        return float(np.sqrt(self.probability @ (self._centres - self.mean) ** 2))

    @property
    def mode(self) -> float:
        """Centre of the most probable cell."""
        return float(self._centres[self.probability.argmax()])

    def quantile(self, p: float) -> float:
        """Redshift below which there is probability p; uniform inside a cell."""
        return float(np.interp(p, np.concatenate([[0.0], np.cumsum(self.probability)]), self.edges))

    def below(self, z: float) -> float:
        """Probability of a redshift below z; uniform inside a cell."""
        return float(np.interp(z, self.edges, np.concatenate([[0.0], np.cumsum(self.probability)])))

    @property
    def _centres(self) -> Doubles:
        return 0.5 * (self.edges[:-1] + self.edges[1:])


def cell_edges(engine: Engine) -> Doubles:
    """(V + 1,) edges of the cells of `Posterior`; BadInput if the checkpoint does not predict redshifts."""
    if "tok_z" not in engine.outputs:
        raise BadInput(
            "modality_not_in_checkpoint",
            f"{engine.name} does not predict redshifts",
            field="redshift",
            fix="name a model that does, with --model",
        )
    grid = engine.values("tok_z", np.arange(engine.n_codes("tok_z"))[:, None])[:, 0].astype(np.float64)
    return np.concatenate([grid[:1], grid])


def redshift_posterior(engine: Engine, tokens: Sequence[Tokens]) -> list[Posterior]:
    """The posterior of each object, from one decoder call. A redshift among the tokens is refused: it is the answer."""
    for one in tokens:
        if "tok_z" in one.ids:
            raise BadInput(
                "label_given", "the object's redshift is among its tokens", field="tok_z", fix="leave the redshift out"
            )
    edges = cell_edges(engine)
    cells = len(edges) - 1
    out = []
    for row in engine.logits(tokens, ["tok_z"]):
        # The published vocabulary has one entry more than the codec has codes; it stands for nothing.
        logits = row["tok_z"][0, :cells].astype(np.float64)
        e = np.exp(logits - logits.max())
        probability = e / e.sum()
        flags = ("z_posterior_saturated",) if probability[-1] >= SATURATED else ()
        out.append(Posterior(edges, probability, flags))
    return out
