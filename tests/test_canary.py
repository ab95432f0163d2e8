"""Whether shapes are checked at all.

Shapes and types in annotations are checked because pytest's settings ask jaxtyping to; without that option, or for a
package that it misses, every other test would pass just the same.
"""

import pytest
import torch
from jaxtyping import TypeCheckError

from adapters.merger import Merger
from backends.toy_unet import PoolingCodec
from streaming.guidance import Unguided

CALLS = {
    "streaming": lambda wrong: Unguided().combine(wrong),
    "adapters": lambda wrong: Merger(16, 4)(wrong, wrong),
    "backends": lambda wrong: PoolingCodec().encode(wrong),
}


@pytest.mark.parametrize("package", CALLS)
def test_a_wrong_shape_is_noticed(package: str) -> None:
    with pytest.raises(TypeCheckError):
        CALLS[package](torch.zeros(1))
