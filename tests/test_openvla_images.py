"""What OpenVLA-OFT sees: against TensorFlow's results, and JPEG against worked facts."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ript.policies.openvla_oft.images import (
    CAMERAS,
    crop_centre,
    crops,
    mirror,
    observation_crops,
    pixel_values,
    resize,
)
from lightning_ript.policies.openvla_oft.jpeg import round_trip

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens"))
GOLDEN_FILE = GOLDENS / "openvla_oft/preprocess.safetensors"
NAMES = {"agent": CAMERAS[0], "wrist": CAMERAS[1]}


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    """The stages of one image, channels first, and its frame as the simulator gave it."""
    safetensors = pytest.importorskip("safetensors.torch")
    if not GOLDEN_FILE.is_file():
        pytest.skip("no golden tensors here")
    tensors = safetensors.load_file(GOLDEN_FILE)
    stages = {
        name: tensors[f"{request.param}.{name}"]
        for name in ("raw", "resized", "cropped", "pixel_values")
    }
    for name in ("resized", "cropped"):
        stages[name] = stages[name].permute(2, 0, 1)[None]
    return stages


@pytest.fixture
def frames():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8))


def assert_same_image(ours, theirs, different):
    """Equal up to so many of the 150,528 values, which are one grey level apart: rounded ties."""
    error = (ours.int() - theirs.int()).abs()
    assert error.max() <= 1
    assert error.sum() <= different


def upright(golden):
    """The simulator's frame, which begins with the bottom row, as environments give it."""
    return golden["raw"][None].flip(1)


def test_resized_from_the_raw_frame(golden):
    assert_same_image(resize(round_trip(mirror(upright(golden)))), golden["resized"], 8)


def test_cropped_from_resized(golden):
    assert_same_image(crop_centre(golden["resized"]), golden["cropped"], 8)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Images: turn, JPEG, Lanczos, crop",
    reference="TensorFlow's",
    ours="without TensorFlow: of 150,528 values few differ, by one grey level",
)
def test_cropped_from_the_raw_frame(golden):
    assert_same_image(crops(upright(golden)), golden["cropped"], 16)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Images: normalization of both encoders",
    reference="golden tensors",
)
def test_pixel_values_from_cropped(golden):
    ours = pixel_values(golden["cropped"][None])
    torch.testing.assert_close(ours, golden["pixel_values"][None], atol=1e-6, rtol=0)


def test_pixel_values_from_the_raw_frame(golden):
    ours = pixel_values(crops(upright(golden))[None])[0]
    error = (ours - golden["pixel_values"]).abs()
    assert error.max() <= 0.018  # a grey level is 1 / 255 / 0.2236
    assert error.mean() < 2e-6


def test_pixel_values_of_two_images_lie_side_by_side(frames):
    images = crops(frames)
    both = pixel_values(images[None], torch.bfloat16)
    assert both.shape == (1, 12, 224, 224)
    assert both.dtype == torch.bfloat16
    one = pixel_values(images[1][None, None]).bfloat16()
    assert torch.equal(both[:, 6:], one)


def test_observations_are_prepared_alone_as_in_a_batch(frames):
    agent, wrist = frames.numpy()
    observations = [
        {CAMERAS[0]: agent, CAMERAS[1]: wrist},
        {CAMERAS[0]: wrist, CAMERAS[1]: agent},
    ]
    images = observation_crops(observations)
    assert images.shape == (2, 2, 3, 224, 224)
    assert images.dtype == torch.uint8
    assert torch.equal(images[1].flip(0), images[0])
    assert torch.equal(images[:1], observation_crops(observations[:1]))
    assert torch.equal(images[0], crops(frames))


def test_left_and_right_are_exchanged():
    frame = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    frame[0, 0, -1] = torch.tensor([1, 2, 3])
    assert mirror(frame)[0, :, 0, 0].tolist() == [1, 2, 3]


def test_even_colours_pass_through():
    """JPEG keeps 128 exactly; black stays black, which the fast transform's truncation allows."""
    for level in (0, 128):
        frames = torch.full((1, 256, 256, 3), level, dtype=torch.uint8)
        assert torch.equal(crops(frames), torch.full((1, 3, 224, 224), level, dtype=torch.uint8))


def pillows(images):
    """Written by Pillow, which reads JPEG with the accurate transform."""
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    return torch.from_numpy(np.array(pillow.open(file))).permute(2, 0, 1)[None]


def test_jpeg_of_flat_blocks_is_pillows(frames):
    """No rounding differs there; colours, steps and the doubling of the chroma are the same."""
    flat = frames[:1, :16, :16].repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = flat.permute(0, 3, 1, 2)
    assert torch.equal(round_trip(images), pillows(images))


def test_jpeg_darkens_the_rest(frames):
    """The fast transform truncates what the accurate one rounds."""
    small = frames[:1, :16, :16].permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(small, (256, 256), mode="bilinear").byte()
    difference = round_trip(images).int() - pillows(images).int()
    assert -1.5 < difference.float().mean() < -0.5
    assert difference.abs().max() < 16


def test_jpeg_keeps_every_grey():
    """A flat block of grey g is 8 (g - 128), a whole number of steps of 2."""
    greys = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    assert torch.equal(round_trip(greys), greys)


def test_jpeg_mixes_the_hues_of_neighbours():
    """Columns of red and of green, which share their chroma: brightness is what is left of them."""
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[:, 0, :, ::2], image[:, 1, :, 1::2] = 255, 255
    after = round_trip(image)[0].float()
    red, green = after[:, :, ::2].mean((1, 2)), after[:, :, 1::2].mean((1, 2))
    assert (red[0] - red[1]).abs() < 10
    assert green[1] - red[1] > 60


@pytest.mark.parametrize("size", [100, 250])
def test_sizes_that_jpeg_would_have_to_pad_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size}x{size} .* multiples of 16"):
        crops(torch.zeros(1, size, size, 3, dtype=torch.uint8))


def test_oblong_frames_are_refused():
    with pytest.raises(ValueError, match="square images, but the environment's are 128x256"):
        crops(torch.zeros(1, 128, 256, 3, dtype=torch.uint8))


def test_a_missing_camera_is_refused(frames):
    with pytest.raises(ValueError, match=r"OpenVLA-OFT needs \['eye_in_hand_rgb'\]"):
        observation_crops([{"agentview_rgb": frames[0].numpy()}])
