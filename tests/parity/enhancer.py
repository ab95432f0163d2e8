"""Parts of an enhancer that a fixture describes: a toy network by its formula, given cuts, no codec."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final
from unittest.mock import patch

import torch
from torch import Tensor

from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.blend import ChunkBlender, RandomizedBlending
from streaming.codec import Codec, EncodedText, TextEncoder
from streaming.keys import Key
from streaming.sites import ContextSite, Deltas, FeatureSite
from tests.parity.fixture import Fixture
from tests.parity.toy import evaluate


def evaluate_of(fixture: Fixture, formula: ast.expr, names: Mapping[str, Any]) -> Any:
    """The formula's value. Raises AssertionError for what is not understood."""
    try:
        return evaluate(formula, names)
    except (KeyError, ValueError) as error:
        return fixture.give_up(f"the toy network {ast.unparse(formula)} is not understood: {error}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GivenCuts(ChunkBlender):
    """The library's own randomized blending in the published convention, with given draws: [steps, boundaries]."""

    offsets: Tensor

    @property
    def coupled(self) -> bool:
        """Yes."""
        return True

    @property
    def shares_noise(self) -> bool:
        """Yes."""
        return True

    def share(self, overlap: int, key: Key) -> Tensor:
        """What the library makes of the key's draw, for which it must ask as the published code does."""
        step, right = (int(key.path[key.path.index(name) + 1]) for name in ("blend", "boundary"))

        def draw(_: Key, low: int, high: int, *shape: int) -> Tensor:
            assert (low, high) == (0, overlap), (
                f"the published code draws from 0 to {overlap - 1}, not {low} to {high - 1}"
            )
            return self.offsets[step, right - 1].expand(shape)

        with patch.object(Key, "integers", draw):
            return self._own.share(overlap, key)

    def probability(self) -> Tensor:
        """As the library's."""
        return self._own.probability()

    @property
    def _own(self) -> RandomizedBlending:
        return RandomizedBlending(chunk=self.chunk, overlap=self.overlap, convention="official")


@final
class ToyNetwork(Backbone):
    """A formula of x, t, y (with or without text) and the chunk's index, which the prompt tells."""

    def __init__(
        self, fixture: Fixture, formula: ast.expr, y: Sequence[float], names: Mapping[str, Any], window: Window
    ) -> None:
        super().__init__()
        self.fixture, self.formula, self.y, self.names, self._window = fixture, formula, y, names, window

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """None."""
        return ()

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """None."""
        return ()

    @property
    def window(self) -> Window:
        """The file's."""
        return self._window

    def forward(self, call: Call, deltas: Deltas) -> Tensor:
        """Row by row."""
        chunk = int(call.context[-1, 0, 0])
        level = call.level
        rows = []
        for x, time, guided in zip(call.latents, call.time.tolist(), call.guided, strict=True):
            names = {
                "x": x,
                "t": time,
                "y": self.y[guided.text],
                **dict.fromkeys(("chunk_index", "chunk", "k", "i", "c"), chunk),
                **self.names,
            }
            if level is not None:
                names |= {"alpha": level.signal, "sigma": level.noise}
            rows.append(evaluate_of(self.fixture, self.formula, names) + torch.zeros_like(x))
        return torch.stack(rows)

    def feature_encoder(self) -> FeatureEncoder:
        """Has none."""
        raise NotImplementedError


@final
class NoCodec(Codec):
    """Latents are the video."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels

    @property
    def channels(self) -> int:
        """The file's."""
        return self._channels

    @property
    def factor(self) -> int:
        """1."""
        return 1

    def latent_frames(self, pixel_frames: int) -> int:
        """As many."""
        return pixel_frames

    def pixel_frames(self, latent_frames: int) -> int:
        """As many."""
        return latent_frames

    def encode(self, frames: Tensor) -> Tensor:
        """Never."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Never."""
        raise NotImplementedError


@final
class ChunkNumbers(TextEncoder):
    """`chunk 3` becomes the number 3, any other text 0."""

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """[prompts, 1, 1]."""
        numbers = [float(prompt.split()[-1]) if prompt.startswith("chunk ") else 0.0 for prompt in prompts]
        return EncodedText(torch.tensor(numbers).view(-1, 1, 1))
