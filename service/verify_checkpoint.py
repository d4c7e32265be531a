"""Is a checkpoint what it should be? Every check with what was expected, where that is from, and what was measured.

Check     one expectation, a row of a table
Evidence  what checks look at; each part is computed once, when it is first needed
Found     what came of a check: passed, failed, or not possible here
verify    all checks of a checkpoint folder, one after another
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Tokens
from albireo.observations.errors import AlbireoError
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.sky import simulate
from albireo.service.core import selected
from albireo.service.demo import SAMPLES
from albireo.service.files import expand, read_batches
from albireo.service.subjects import Subject, join
from albireo.tokenizers.checkpoint import Checkpoint

if TYPE_CHECKING:
    from albireo.models.torch_engine import TorchEngine

T = TypeVar("T")

State = Literal["passed", "failed", "not possible"]

SKY_OBJECTS, SKY_SEED = 24, 20261126
"""Objects of the simulated sky beside the bundled samples, which have no HSC images and only twelve spectra."""


class NotPossible(Exception):
    """A check that cannot be made here; says why."""


@dataclass(frozen=True)
class Measured:
    """What a check saw. `ok` None: told, but not judged. `expected` where only the evidence says what to expect."""

    ok: bool | None
    text: str
    value: float | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Check:
    """One expectation.

    group     of checks that belong together
    expected  what, in words
    source    where that is from
    measure   looks at the evidence; raises NotPossible, and whatever else it raises is its failure
    of_aion   whether it is of AION-1's weights only
    """

    group: str
    name: str
    expected: str
    source: str
    measure: Callable[[Evidence], Measured]
    of_aion: bool = False


@dataclass(frozen=True)
class Found:
    """A check and what came of it; `value` is the number in `measured`, if it is one number."""

    group: str
    name: str
    expected: str
    source: str
    measured: str
    state: State
    value: float | None
    seconds: float

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


class Evidence:
    """What checks look at, of one checkpoint folder. Everything is computed in float32 on the CPU.

    package  whether the released package may be asked, if it is installed
    threads  that it computes on; by default the cores granted to this process
    oracle   the released package, opened by the checks that ask it
    """

    def __init__(self, folder: Path, package: bool = True, threads: int | None = None) -> None:
        self.folder = folder
        self.package = package
        self.threads = threads
        self.oracle: object = None
        self._checkpoint = _Opened(lambda: Checkpoint(folder), "the folder is no checkpoint")
        self._engine = _Opened(self._open, "the checkpoint does not open")

    @property
    def checkpoint(self) -> Checkpoint:
        return self._checkpoint()

    @property
    def engine(self) -> TorchEngine:
        return self._engine()

    def _open(self) -> TorchEngine:
        from albireo.models.torch_engine import TorchEngine, use_threads  # torch takes seconds to load

        use_threads(self.threads)
        return TorchEngine.open(self.checkpoint.folder)

    @cached_property
    def samples(self) -> tuple[Observation, ...]:
        """The bundled samples, each with all that its files say of it, through the modalities that are read."""
        return self._readable(objects_of([SAMPLES]))

    @cached_property
    def sky(self) -> tuple[Observation, ...]:
        """Objects of the simulated sky."""
        made = simulate(SKY_OBJECTS, np.random.default_rng(SKY_SEED))
        return self._readable([Subject(one.id, None, one) for one in made])

    @property
    def objects(self) -> tuple[Observation, ...]:
        """The samples, then those of the sky."""
        return (*self.samples, *self.sky)

    def of_objects(self, subjects: Sequence[Subject]) -> Evidence:
        """The same checkpoint, looked at with other objects in the place of the samples and the sky.

        Raises the error of the first that cannot be read: a figure of the others would be taken for one of all.
        """
        for subject in subjects:
            if error := selected(subject, self.checkpoint.inputs).error:
                raise error
        other = Evidence(self.folder, self.package, self.threads)
        other._checkpoint, other._engine = self._checkpoint, self._engine
        # What stands there under the name of a cached property is its value.
        vars(other).update(samples=self._readable(subjects), sky=())
        return other

    def _readable(self, subjects: Iterable[Subject]) -> tuple[Observation, ...]:
        outcomes = [selected(subject, self.checkpoint.inputs) for subject in subjects]
        return tuple(one for outcome in outcomes if (one := outcome.subject.observation) is not None)

    @cached_property
    def sample_outcomes(self) -> Mapping[str, Tokens | AlbireoError]:
        """Tokens of each sample by id, or why there are none."""
        return self._tokenized(self.samples)

    @cached_property
    def outcomes(self) -> Mapping[str, Tokens | AlbireoError]:
        """The same of every object."""
        return {**self.sample_outcomes, **self._tokenized(self.sky)}

    def _tokenized(self, objects: Sequence[Observation]) -> dict[str, Tokens | AlbireoError]:
        return {one.id: result for one, result in zip(objects, self.engine.tokenize(objects), strict=True)}

    @cached_property
    def tokens(self) -> Mapping[str, Tokens]:
        """Tokens of the objects that have any."""
        return {name: one for name, one in self.outcomes.items() if isinstance(one, Tokens)}

    @cached_property
    def sample_means(self) -> Mapping[str, NDArray[np.float32]]:
        """Mean embedding (D,) of each sample that has tokens, by id."""
        good = {name: one for name, one in self.sample_outcomes.items() if isinstance(one, Tokens)}
        found = self.engine.embed(list(good.values()))
        return {name: one.values for name, one in zip(good, found, strict=True)}

    def having(self, *keys: str) -> list[tuple[Observation, Tokens]]:
        """The objects that have tokens of all of the modalities, with them. NotPossible if there is none."""
        found = [(one, self.tokens[one.id]) for one in self.objects if one.id in self.tokens]
        found = [(one, tokens) for one, tokens in found if set(keys) <= tokens.ids.keys()]
        if not found:
            raise NotPossible(f"no object has tokens of {', '.join(keys)}")
        return found


def objects_of(paths: Sequence[Path]) -> list[Subject]:
    """The objects of files and folders, each with all that the files say of it. Raises the first error of reading."""
    batches = read_batches(expand(paths), ReadOptions())
    subjects = [subject for batch in batches for subject in batch.subjects]
    for subject in subjects:
        if subject.error is not None:
            raise subject.error
    return join(subjects)


class _Opened(Generic[T]):
    """A value made when it is first needed. What its making raises is raised once; from then on it is not possible."""

    def __init__(self, make: Callable[[], T], otherwise: str) -> None:
        self._make, self._otherwise = make, otherwise
        self._value: T | None = None
        self._failed = False

    def __call__(self) -> T:
        if self._failed:
            raise NotPossible(self._otherwise)
        if self._value is None:
            try:
                self._value = self._make()
            except Exception:
                self._failed = True
                raise
        return self._value


def verify(checks: Iterable[Check], evidence: Evidence) -> Iterator[Found]:
    """What came of each check. A check that fails takes no other down."""
    for check in checks:
        began = time.perf_counter()
        measured, state = _measured(check, evidence)
        yield Found(
            check.group,
            check.name,
            measured.expected or check.expected,
            check.source,
            measured.text,
            state,
            measured.value,
            round(time.perf_counter() - began, 2),
        )


def _measured(check: Check, evidence: Evidence) -> tuple[Measured, State]:
    try:
        if check.of_aion and not evidence.checkpoint.of_aion:
            raise NotPossible("its configuration says that it is not AION-1's")
        measured = check.measure(evidence)
    except NotPossible as reason:
        return Measured(None, str(reason)), "not possible"
    except AlbireoError as error:
        return Measured(False, f"{error.code}: {error.message}"), "failed"
    except Exception as error:  # Whatever goes wrong in a check is its finding, so that the others are still told.
        return Measured(False, f"{type(error).__name__}: {error}"), "failed"
    if measured.ok is None:
        return measured, "not possible"
    return measured, "passed" if measured.ok else "failed"
