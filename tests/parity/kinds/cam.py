"""The whole CAM: E_cond and the encoder half over the remembered frames."""

from torch import Tensor

from adapters.cam import first_frames, tile
from streaming.backbone import Window
from streaming.memory import Tail
from tests.parity.fixture import Fixture
from tests.parity.network import TEXT, bare_backbone, build_cam, call_of, maps_like, recognise
from tests.parity.registry import handles

HOME = "unet."
"""The checkpoint's name for CAM."""


def cam_features(fixture: Fixture) -> dict[str, Tensor]:
    """Features by site from the inputs of a CAM's fixture, whose tensors count as read."""
    sample, image = fixture.read(r"in\.sample"), fixture.read(r"in\.image")
    batch = sample.shape[0]
    frames = image.unflatten(0, (batch, -1)) if image.ndim == 4 else image
    window = Window(sample.shape[2], frames.shape[1])
    backbone = bare_backbone(fixture.config, window=window)
    cam = build_cam(fixture, backbone, fixture.config, home=HOME, only=("condition.", "encoder."))
    recognise(fixture, HOME)
    call = call_of(fixture, sample, fixture.read(r"in\.context")[:, :TEXT])
    tail = Tail(frames / 2 + 0.5, sample[:, :, : frames.shape[1]])
    condition = cam.remember(tail).condition
    return dict(cam.encoder(first_frames(call, condition.shape[1]), tile(condition, call)))


@handles("st2v_cam_*")
def cam(fixture: Fixture) -> None:
    """out.down.N [(B F), C, h, w] in the order of the down path, and out.mid."""
    *skips, middle = cam_features(fixture).values()
    for name, value in [(f"out.down.{i}", skip) for i, skip in enumerate(skips)] + [("out.mid", middle)]:
        shape = fixture.shape(name)
        if shape is not None:
            fixture.check(name, maps_like(value, shape))
