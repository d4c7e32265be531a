"""The released package with random weights, saved by its own `save_pretrained`, and opened here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from aion.model import AION

from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.modalities import AION_KEYS
from albireo.observations.observation import Observation
from albireo.tokenizers.bank import TokenizerBank
from albireo.tokenizers.checkpoint import Checkpoint
from tests.parity.asking import CLASSES, encode
from tests.parity.codecs import AION_SIZE, SMALL, make_codecs, save_codecs
from tests.parity.objects import payloads
from tests.parity.transformers import config, make_transformer

SEED = 20261125
OBJECTS = 40
"""Objects drawn of every modality; the first thirty or fewer are its extremes."""


LINES = pytest.StashKey[list[str]]()
"""Figures of this run, see `report`."""


@dataclass(frozen=True)
class Codecs:
    """The package's codecs by token key, and a checkpoint that they were saved in."""

    by_folder: dict[str, Any]
    folder: Path

    def __getitem__(self, key: str) -> Any:
        return self.by_folder[CLASSES[key].name]

    @cached_property
    def bank(self) -> TokenizerBank:
        """Our tokenizers on the same files."""
        return TokenizerBank.open(Checkpoint(self.folder))


@dataclass(frozen=True)
class Pair:
    """The package's transformer, ours on the same folder, and the mean cosines between objects by `JUDGED`."""

    model: AION
    folder: Path
    cosines: list[float]

    @cached_property
    def engine(self) -> TorchEngine:
        return TorchEngine.open(self.folder)


@pytest.fixture(scope="module", autouse=True)
def on_all_cores(all_cores: None) -> None:
    """Real networks, and those of the package at that."""


@pytest.fixture(scope="session", autouse=True)
def one_at_a_time() -> Iterator[None]:
    """Deterministic kernels, so that a difference is a difference."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def codecs_of_size(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Codecs]:
    """Codecs with networks of a size, "small" or "aion", made once."""
    made: dict[str, Codecs] = {}

    def of_size(size: str) -> Codecs:
        if size not in made:
            by_folder = make_codecs({"small": SMALL, "aion": AION_SIZE}[size], SEED)
            made[size] = Codecs(by_folder, tmp_path_factory.mktemp(f"codecs-{size}"))
            save_codecs(by_folder, made[size].folder)
            AION(config(dim=8, num_heads=1, encoder_depth=1, decoder_depth=1)).save_pretrained(made[size].folder)
        return made[size]

    return of_size


@pytest.fixture(scope="session")
def codecs(codecs_of_size: Callable[[str], Codecs]) -> Codecs:
    return codecs_of_size("small")


@pytest.fixture(scope="session")
def observations() -> list[Observation]:
    """Objects with every modality: two of extremes and six ordinary ones."""
    columns = {key: payloads(key, OBJECTS, SEED + 1) for key in AION_KEYS}
    some = [*range(2), *range(OBJECTS - 6, OBJECTS)]
    return [Observation(str(i), {key: column[i] for key, column in columns.items()}) for i in some]


@pytest.fixture(scope="session")
def tokens(codecs: Codecs, observations: list[Observation]) -> list[Tokens]:
    """Their tokens by the package."""
    return [Tokens({key: encode(codecs[key], key, payload) for key, payload in o.data.items()}) for o in observations]


@pytest.fixture(scope="session")
def pair_of_shape(
    tmp_path_factory: pytest.TempPathFactory, codecs: Codecs, tokens: list[Tokens]
) -> Callable[[str], Pair]:
    """A transformer of a shape of `SHAPES`, made once."""
    made: dict[str, Pair] = {}

    def of_shape(shape: str) -> Pair:
        if shape not in made:
            folder = tmp_path_factory.mktemp(f"aion-{shape}")
            (folder / "codecs").symlink_to(codecs.folder / "codecs")
            model, cosines = make_transformer(shape, tokens, SEED)
            model.save_pretrained(folder)
            made[shape] = Pair(model, folder, cosines)
        return made[shape]

    return of_shape


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keeps a line for the end of the run: what was compared and how well it agreed."""
    lines: list[str] = request.config.stash.setdefault(LINES, [])
    return lines.append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With -v, as `make parity` calls it, the figures; without, only that all agreed."""
    if terminalreporter.verbosity > 0 and (lines := config.stash.get(LINES, [])):
        terminalreporter.section("parity with polymathic-aion")
        for line in lines:
            terminalreporter.write_line(line)
