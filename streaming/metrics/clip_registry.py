"""CLIP models by name: plugins of the group `streaming.clip_encoders`.

An entry point refers to a function that takes what follows its name in a SPEC, NAME[:REST], and gives a `ClipEncoder`.
"""

from streaming.errors import UserError
from streaming.metrics.clip import ClipEncoder
from streaming.registry import discover, load

CLIP_ENCODERS = "streaming.clip_encoders"


def make_clip(spec: str) -> ClipEncoder:
    """The encoder that a SPEC names, NAME[:REST]. Raises UserError for an unknown or broken one, and as plugins do."""
    name, _, rest = spec.partition(":")
    if name not in (known := discover(CLIP_ENCODERS)):
        names = ", ".join(known) or "none that is installed"
        raise UserError(f"no CLIP model '{spec}': name one as NAME or NAME:WHICH, the name one of {names}")
    try:
        return load(CLIP_ENCODERS, name)(rest)
    except UserError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the plugin '{name}' ({known[name].value}) does not work: {reason}") from error
