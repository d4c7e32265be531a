"""Which heads there are, and where: shipped with the checkpoint, the user's own, the checkpoint's token of redshift.

Shelf          finds heads by name, or by path where a person names one
Shelved        one of them, opened
RedshiftToken  the built-in head `tok_z`: what the checkpoint's decoder says of its token of redshift
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from albireo.models.heads import LEVELS, Answer, Card, Doubles, Head, Number, Task
from albireo.models.redshift import Posterior, cell_edges, redshift_posterior
from albireo.observations.errors import AlbireoError, BadInput, NotFound
from albireo.observations.modalities import MODALITIES
from albireo.observations.spaces import same_space

if TYPE_CHECKING:
    from albireo.models.engine import Engine, Tokens
    from albireo.service.core import Described

BUILT_IN = "tok_z"
SUFFIX = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class RedshiftToken:
    """The posterior of the checkpoint's token `tok_z` as a head: uncalibrated, and with a prior that nobody knows."""

    def check(self, engine: Engine) -> None:
        """BadInput if the checkpoint does not predict redshifts."""
        cell_edges(engine)

    def predict(self, engine: Engine, tokens: Sequence[Tokens]) -> list[Answer]:
        """What the decoder says of each object; one encoder and decoder pass of its own."""
        posteriors = redshift_posterior(engine, tokens)
        return [_answer(posterior, one) for posterior, one in zip(posteriors, tokens, strict=True)]


def _answer(posterior: Posterior, tokens: Tokens) -> Answer:
    intervals = {level: (posterior.quantile(0.5 - level / 2), posterior.quantile(0.5 + level / 2)) for level in LEVELS}
    number = Number("redshift", "", posterior.quantile(0.5), intervals)
    names = tuple(MODALITIES[key].name for key in tokens.ids)
    return Answer((number,), {}, posterior, names, posterior.flags, float("nan"))


@dataclass(frozen=True)
class Shelved:
    """A head under the name by which it is asked for; what it is called inside its file does not count.

    origin   whose it is: "own", "shipped", "built in", or "path" of one that was named by its file
    version  first 12 hex digits of the sha256 of its file; "" of the built-in one, which the space names
    """

    name: str
    origin: str
    version: str
    path: Path | None
    head: Head | RedshiftToken

    @property
    def card(self) -> Card | None:
        """None of the built-in head."""
        return None if isinstance(self.head, RedshiftToken) else self.head.card

    @property
    def task(self) -> Task:
        return self.card.task if self.card else "redshift"

    @property
    def targets(self) -> tuple[str, ...]:
        return self.card.targets if self.card else ("redshift",)

    @property
    def units(self) -> tuple[str, ...]:
        return self.card.units if self.card else ("",)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes if self.card else ()

    def edges(self, engine: Engine) -> Doubles | None:
        """(V + 1,) edges of the cells of its densities, None if it gives none."""
        if isinstance(self.head, RedshiftToken):
            return cell_edges(engine)
        return None if self.head.prior is None else self.head.prior.edges

    def identity(self, space: str, edges: Doubles | None = None) -> dict[str, Any]:
        """Which head it is, as plain data, and the edges of its cells if they are wanted.

        space  of the token states of the engine that is loaded: the built-in head is of no other
        """
        about = {
            "name": self.name,
            "origin": self.origin,
            "version": self.version,
            "task": self.task,
            "targets": list(self.targets),
            "units": list(self.units),
            "classes": list(self.classes),
            "space": self.card.space if self.card else space,
        }
        return about if edges is None else about | {"edges": edges.tolist()}

    def about(self, model: Described) -> dict[str, Any]:
        """The head and its card as plain data; `fits` says whether this model can serve it."""
        card, space = self.card, model.space("tokens")
        fits = BUILT_IN in model.outputs if card is None else same_space(card.space, space)
        return self.identity(space) | {"fits": fits, "card": card.as_json() if card else None}


class Shelf:
    """The heads in some folders; in the first folder that has a name, the name is found.

    folders  whose it is -> folder, which need not be there
    """

    def __init__(self, folders: Mapping[str, Path] | None = None) -> None:
        self.folders = dict(folders or {})
        self._opened: dict[Path, tuple[tuple[int, int], Head]] = {}

    def files(self) -> dict[str, tuple[str, Path]]:
        """Name -> where its file is, by name."""
        found: dict[str, tuple[str, Path]] = {}
        for origin, folder in self.folders.items():
            for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
                found.setdefault(path.stem, (origin, path))
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """What can be asked for by name."""
        return [*self.files(), BUILT_IN]

    def hidden(self) -> list[tuple[str, Path]]:
        """Files whose name another folder has before."""
        shown = {path for _, path in self.files().values()}
        everything = [(o, p) for o, folder in self.folders.items() for p in sorted(folder.glob(f"*{SUFFIX}"))]
        return [(origin, path) for origin, path in everything if path not in shown]

    def open(self, name: str) -> Shelved:
        """The head of a name. NotFound head_unknown names those there are."""
        if name == BUILT_IN:
            return Shelved(BUILT_IN, "built in", "", None, RedshiftToken())
        known = self.files()
        if name not in known:
            raise NotFound(
                "head_unknown",
                f"no head is called {name!r}",
                field="head",
                fix=f"heads: {', '.join([*known, BUILT_IN])}; more with `albireo heads fit`",
            )
        origin, path = known[name]
        return self._shelved(name, origin, path)

    def open_named(self, texts: Sequence[str]) -> dict[str, Shelved]:
        """Heads by name or by path, as a person names them on a command line, in that order."""
        found: dict[str, Shelved] = {}
        for text in texts:
            path = Path(text)
            shelved = self._shelved(path.stem, "path", path) if text.endswith(SUFFIX) else self.open(text)
            if shelved.name in found:
                raise BadInput("option_invalid", f"the head {shelved.name!r} is named twice", field="head")
            found[shelved.name] = shelved
        return found

    def all(self) -> Iterator[Shelved | AlbireoError]:
        """Every head, or why it cannot be opened."""
        for name in self.names():
            try:
                yield self.open(name)
            except AlbireoError as error:
                yield error

    def own(self, name: str) -> Path:
        """Where a head of the user's own of this name is kept. BadInput if no head can be called so."""
        taken = next((origin for origin, path in self.files().values() if path.stem == name and origin != "own"), None)
        if taken is not None:
            raise BadInput(
                "option_invalid", f"there is a head {name!r} already: {taken}", field="name", fix="choose another name"
            )
        if not NAME.fullmatch(name) or name == BUILT_IN:
            raise BadInput(
                "option_invalid",
                f"no head of yours can be called {name!r}",
                field="name",
                fix=f"letters, digits, _ and -, but not {BUILT_IN}",
            )
        return self.folders["own"] / f"{name}{SUFFIX}"

    def _shelved(self, name: str, origin: str, path: Path) -> Shelved:
        """A head's file, read once as long as it stays as it is."""
        try:
            about = path.stat()
        except OSError as error:
            raise NotFound("head_unknown", f"there is no file {path}", file=str(path), field="head") from error
        now = (about.st_mtime_ns, about.st_size)
        seen, head = self._opened.get(path, (None, None))
        if head is None or seen != now:
            head = Head.open(path)
            self._opened[path] = (now, head)
        return Shelved(name, origin, head.sha256[:12], path, head)
