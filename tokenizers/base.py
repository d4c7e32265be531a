"""What every tokenizer is: payloads in, integer tokens out, and back.

The public methods check, the private ones compute. `encode` is deterministic, never changes its input, and gives an
object the same tokens whatever else is in the batch: the networks run one object at a time, because a convolution
over another batch shape rounds differently and a latent near a cell's edge would change its code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from albireo.observations.modalities import Modality

P = TypeVar("P")


class Tokenizer(nn.Module, ABC, Generic[P]):
    """One tokenizer of a checkpoint.

    row         the modality whose payloads it reads
    n_tokens    tokens of one object; of a kind that varies in length, the most that it may have
    vocab_size  number of different tokens
    grid        (height, width) of the tokens for their position embedding; height * width = n_tokens
    lengths     numbers of tokens that an object may have: `n_tokens` only, unless the kind varies in length
    decoder_parts  how the names of the weights begin that only `decode` needs
    read_rest   reads the weights that were left in the file, if any were: called when they are first needed
    """

    row: Modality
    n_tokens: int
    vocab_size: int
    grid: tuple[int, int]
    decoder_parts: ClassVar[tuple[str, ...]] = ()
    read_rest: Callable[[], None] = staticmethod(lambda: None)

    @property
    def lengths(self) -> range:
        return range(self.n_tokens, self.n_tokens + 1)

    @abstractmethod
    def check(self, payload: P) -> tuple[str, ...]:
        """QA flags of a payload; raises BadInput if it would give a meaningless token."""

    @torch.inference_mode()
    def encode(self, payloads: Sequence[P]) -> Tensor:
        """Tokens (B, n) int64 of B payloads of equal length n. Raises BadInput for the first that fails its check."""
        for payload in payloads:
            self.check(payload)
        if not payloads:
            return torch.zeros(0, self.n_tokens, dtype=torch.int64)
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
        tensor: Tensor = next(iter(self.state_dict().values()))
        return tensor.device
