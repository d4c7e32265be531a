"""What every tokenizer is: payloads in, integer tokens out, and back.

The public methods check, the private ones compute. `encode` is deterministic, never changes its input, and gives an
object the same tokens whatever else is in the batch: the networks run one object at a time, because a convolution
over another batch shape rounds differently and a latent near a cell's edge would change its code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import IMAGE_SIZE, Modality
from albireo.tokenizers.preprocessing import AION_1, PREPROCESSINGS, PreprocessingName

P = TypeVar("P")


class Tokenizer(nn.Module, ABC, Generic[P]):
    """One tokenizer of a checkpoint.

    row         the modality whose payloads it reads
    preprocessing  version of what happens to a payload before it is tokenized (tokenizers/preprocessing.py)
    n_tokens    tokens of one object; of a kind that varies in length, the most that it may have
    vocab_size  number of different tokens
    grid        (height, width) of the tokens for their position embedding; height * width = n_tokens
    lengths     numbers of tokens that an object may have: `n_tokens` only, unless the kind varies in length
    decoder_parts  how the names of the weights begin that only `decode` needs
    encoder_parts  names of the networks of `encode`, which may compute in another type than float32
    dtype       the type that they compute in
    read_rest   reads the weights that were left in the file, if any were: called when they are first needed
    """

    row: Modality
    n_tokens: int
    vocab_size: int
    grid: tuple[int, int]
    preprocessing: PreprocessingName
    decoder_parts: ClassVar[tuple[str, ...]] = ()
    encoder_parts: ClassVar[tuple[str, ...]] = ()
    dtype: torch.dtype = torch.float32
    read_rest: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, row: Modality, config: Mapping[str, Any]) -> None:
        """Raises BadCheckpoint if the codec's configuration names a preprocessing that there is not."""
        super().__init__()
        self.row = row
        named = config.get("preprocessing", AION_1)
        if named not in PREPROCESSINGS:
            raise BadCheckpoint(
                "checkpoint_invalid",
                f"unknown preprocessing {named!r}",
                field=row.key,
                fix=f"one of {', '.join(PREPROCESSINGS)}",
            )
        self.preprocessing = named

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let the networks of `encode` compute in float32 or bfloat16; returns self.

        What stands around them stays in float32: preprocessing, a spectrum's first token, the last projection and the
        quantizer. So does all of `decode`. In bfloat16 tokens are nearly the same (docs/aion.md); float16 is no choice,
        because activations of trained networks overflow in it.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"tokenizers compute in float32 or bfloat16, not in {dtype}")
        self.dtype = dtype
        for name in self.encoder_parts:
            self.get_submodule(name).to(dtype)
        return self

    @property
    def lengths(self) -> range:
        return range(self.n_tokens, self.n_tokens + 1)

    @property
    def wavelength(self) -> NDArray[np.float32]:
        """(L,) Angstrom of what `decode` gives; empty unless it gives spectra."""
        return np.zeros(0, np.float32)

    def positions(self, region: Sequence[float]) -> NDArray[np.bool_]:
        """(n_tokens,) True where a token stands for any part of a region; a token without a place is in none.

        region  x0, y0, x1, y1 of images and maps: pixels x0 <= x < x1, y0 <= y < y1, row 0 is the bottom;
                low, high in Angstrom of spectra
        Raises BadInput if there is no such region: of numbers that have no place, or not in the picture.
        """
        raise BadInput("option_invalid", f"{self.row.name} has no regions", field=self.row.name, fix="leave it out")

    @abstractmethod
    def check(self, payload: P) -> tuple[str, ...]:
        """QA flags of a payload; raises BadInput if it would give a meaningless token."""

    def check_each(self, payloads: Sequence[P]) -> list[tuple[str, ...] | BadInput]:
        """The QA flags of each payload, or why it would give a meaningless token."""
        out: list[tuple[str, ...] | BadInput] = []
        for payload in payloads:
            try:
                out.append(self.check(payload))
            except BadInput as error:
                out.append(error)
        return out

    def encode(self, payloads: Sequence[P]) -> Tensor:
        """Tokens (B, n) int64 of B payloads of equal length n. Raises BadInput for the first that fails its check."""
        for checked in self.check_each(payloads):
            if isinstance(checked, BadInput):
                raise checked
        return self.encode_checked(payloads) if payloads else torch.zeros(0, self.n_tokens, dtype=torch.int64)

    @torch.inference_mode()
    def encode_checked(self, payloads: Sequence[P]) -> Tensor:
        """`encode` of one payload or more that passed their check."""
        return torch.cat([self._encode(payload) for payload in payloads])

    @torch.inference_mode()
    def decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """Numbers that tokens (B, n) stand for; their axes are the subclass's."""
        if tokens.ndim != 2 or tokens.shape[1] not in self.lengths:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, not (B, {self.n_tokens})")
        if any(parameter.is_meta for parameter in self.parameters()):
            self.read_rest()
        return self._decode(tokens, **target)

    @abstractmethod
    def _encode(self, payload: P) -> Tensor: ...

    @abstractmethod
    def _decode(self, tokens: Tensor, **target: Any) -> Tensor: ...

    @property
    def device(self) -> torch.device:
        """Where the buffers and weights are."""
        # One look, not a list of all: the codecs have hundreds, and are asked several times for each object.
        tensor = next(tensor for tensor in chain(self.buffers(), self.parameters()) if not tensor.is_meta)
        return tensor.device


def grid_positions(grid: tuple[int, int], box: Sequence[float], row: Modality) -> NDArray[np.bool_]:
    """`positions` of tokens that stand row by row for equal squares of a picture."""
    inside = len(box) == 4 and 0 <= box[0] < box[2] <= IMAGE_SIZE and 0 <= box[1] < box[3] <= IMAGE_SIZE
    if not inside or any(edge != int(edge) for edge in box):
        wanted = f"whole numbers X0,Y0,X1,Y1 with 0 <= X0 < X1 <= {IMAGE_SIZE}, and Y alike"
        raise BadInput("option_invalid", f"no box of pixels: {box}", field=row.name, fix=wanted)
    touched = []
    for n, low, high in ((grid[0], box[1], box[3]), (grid[1], box[0], box[2])):
        side = IMAGE_SIZE // n
        first = np.arange(n) * side
        touched.append((first < high) & (first + side > low))
    out: NDArray[np.bool_] = np.logical_and.outer(*touched).ravel()
    return out
