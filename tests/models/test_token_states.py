"""Token states on disk are those that were written, and writing goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from albireo.models import token_states
from albireo.models.token_states import SHARD, StatesWriter, TokenStates, folder_of
from albireo.observations.errors import BadInput, Conflict
from tests.models.toys import ToyEngine, Toys, states_of, toys


@pytest.fixture(scope="module")
def made() -> Toys:
    return toys(SHARD + 20, seed=4)


def write(folder: Path, made: Toys, start: int, end: int, dtype: str = "float16") -> None:
    with StatesWriter(folder, made.engine, dtype) as writer:  # type: ignore[arg-type]
        for i in range(start, end):
            writer.add(made.observations[i], made.embeddings[i])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_read_is_what_was_written(tmp_path: Path, made: Toys, dtype: str) -> None:
    write(tmp_path, made, 0, len(made.observations), dtype)
    states, memory = TokenStates.open(tmp_path), made.states
    assert states.ids == [one.id for one in made.observations]
    assert (states.space, states.dim, states.checkpoint) == ("toy@0123456789ab:tokens", 16, "toy")
    assert states.z_limit == pytest.approx(1022 / 1023)
    assert states.objects == memory.objects
    for i in (0, 1, SHARD - 1, SHARD, SHARD + 19):
        values, keys = states.rows(i)
        assert keys == made.embeddings[i].modalities
        np.testing.assert_array_equal(values, made.embeddings[i].values.astype(dtype).astype(np.float32))
    assert isinstance(np.load(tmp_path / "00000.npy", mmap_mode="r"), np.memmap)


def test_writing_goes_on_where_it_was_interrupted(tmp_path: Path, made: Toys) -> None:
    write(tmp_path / "once", made, 0, SHARD + 20)
    write(tmp_path / "twice", made, 0, SHARD)
    (tmp_path / "twice" / "00001.npy").write_bytes(b"rows without a list of their objects")
    with StatesWriter(tmp_path / "twice", made.engine) as writer:  # type: ignore[arg-type]
        assert writer.written == {one.id for one in made.observations[:SHARD]}
        for observation, embedding in zip(made.observations, made.embeddings, strict=True):
            if observation.id not in writer.written:
                writer.add(observation, embedding)
    once, twice = TokenStates.open(tmp_path / "once"), TokenStates.open(tmp_path / "twice")
    assert once.objects == twice.objects
    for i in range(len(once)):
        np.testing.assert_array_equal(once.rows(i)[0], twice.rows(i)[0])


def test_an_object_is_written_once(tmp_path: Path, made: Toys) -> None:
    write(tmp_path, made, 0, 3)
    with pytest.raises(BadInput) as caught:
        write(tmp_path, made, 2, 3)
    assert caught.value.code == "id_duplicate"


def test_states_of_another_space_are_not_mixed_in(tmp_path: Path, made: Toys) -> None:
    write(tmp_path, made, 0, 3)
    with pytest.raises(Conflict) as caught:
        StatesWriter(tmp_path, ToyEngine(16, "another"))  # type: ignore[arg-type]
    assert caught.value.code == "space_mismatch"


def test_what_does_not_fit_in_half_precision_is_refused(tmp_path: Path, made: Toys) -> None:
    large = states_of(np.full((2, 16), 1e6), ["tok_flux_g", "tok_flux_r"])
    with StatesWriter(tmp_path, made.engine) as writer, pytest.raises(BadInput) as caught:  # type: ignore[arg-type]
        writer.add(made.observations[0], large)
    assert caught.value.code == "not_finite"
    with StatesWriter(tmp_path / "single", made.engine, "float32") as writer:  # type: ignore[arg-type]
        writer.add(made.observations[0], large)
    assert TokenStates.open(tmp_path / "single").rows(0)[0].max() == np.float32(1e6)


def test_a_folder_for_each_space_and_each_input(tmp_path: Path) -> None:
    folders = {folder_of(tmp_path, space, inputs) for space in ("a@1", "a@2") for inputs in ("x", "y")}
    assert len(folders) == 4
    assert folder_of(tmp_path, "a@1", "x") in folders


def test_no_folder_no_states(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        token_states.TokenStates.open(tmp_path)
    assert caught.value.code == "file_not_found"
