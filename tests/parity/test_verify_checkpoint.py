"""`albireo verify-checkpoint` on weights that the released package drew and saved in AION-1's layout: files, codecs and
equality pass, meaning fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aion.fourm.modality_info import MODALITY_INFO

from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.service.verify_checkpoint import Evidence, Found, verify
from albireo.service.verify_checkpoint_cli import checks_of
from albireo.service.verify_checkpoint_rows import BY_KIND
from tests.parity.conftest import Pair

BEYOND_RANDOM = {"images come back", "spectra come back", "a hidden flux", "hidden image tokens", "redshift intervals"}
"""Figures that random weights cannot have."""


@pytest.fixture(scope="module")
def found(pair_of_shape: Callable[[str], Pair]) -> dict[tuple[str, str], Found]:
    threads = torch.get_num_threads()
    evidence = Evidence(pair_of_shape("aion").folder)
    out = {(one.group, one.name): one for one in verify(checks_of(evidence), evidence)}
    torch.set_num_threads(threads)
    return out


def of_group(found: dict[tuple[str, str], Found], group: str) -> dict[str, str]:
    return {name: one.state for (of, name), one in found.items() if of == group}


def test_the_files_are_aion_1s(found: dict[tuple[str, str], Found]) -> None:
    states = of_group(found, "files")
    assert {name for name, state in states.items() if state != "passed"} == {"bytes", "size"}
    assert states["size"] == "not possible", "the width is of no published size"


def test_the_codecs_keep_the_laws_and_give_the_golden_numbers(found: dict[tuple[str, str], Found]) -> None:
    states = of_group(found, "codecs")
    assert set(states.values()) == {"passed"}, {n: found["codecs", n].measured for n, s in states.items()}
    assert len(states) == 8
    assert found["codecs", "norm of spectra"].measured == "178 222 349 513 304"


def test_the_package_computes_the_same(found: dict[tuple[str, str], Found]) -> None:
    states = of_group(found, "the released package")
    assert states == dict.fromkeys(("tokens", "states", "logits"), "passed")
    assert "of 40 modalities" in found["the released package", "tokens"].measured


def test_random_weights_mean_nothing(found: dict[tuple[str, str], Found]) -> None:
    states = of_group(found, "meaning")
    assert {states[name] for name in BEYOND_RANDOM} == {"failed"}, states
    assert "not possible" not in states.values()


def test_the_table_of_vocabularies_is_the_packages() -> None:
    """The package's own table, but for what its files say otherwise: a catalog's tokens are limited (docs/aion.md)."""
    for key in AION_KEYS:
        about, spec = MODALITY_INFO[key], BY_KIND[MODALITIES[key].kind]
        assert about["vocab_size"] == spec.vocab_size + (key == "tok_z"), key
