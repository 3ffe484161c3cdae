"""What a JPEG file does to an image, without the file.

The checkpoints saw images that TensorFlow had written to JPEG and read back: quality 95, chroma
halved both ways, and decoded with the *fast* integer transform, TensorFlow's choice. That transform
truncates where it should round, which makes images darker by half a grey level and leaves a pattern
in each 8x8 block; Pillow and OpenCV decode with the accurate one and cannot be told otherwise. As
only the losses matter, the entropy coding is left out, and what remains is integer arithmetic on
tensors: batched, on any device, and equal to libjpeg-turbo's bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, pi, sqrt

import torch
from torch import Tensor

QUALITY = 95
BLOCK = 16  # Images are whole numbers of these: 8x8 blocks of chroma halved both ways.

# Annex K of the standard (ITU-T T.81): quantization at quality 50.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# The accurate forward transform of 8 samples, in units of 2**-13, as Loeffler, Ligtenberg and
# Moschytz's scheme composes it of 13-bit constants (hence 10703 beside 10704). The left half: even
# rows are symmetric, odd ones antisymmetric.
_FORWARD = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


def round_trip(images: Tensor) -> Tensor:
    """Encodes and decodes images.

    Args:
        images: (N, 3, H, W) uint8 RGB; H and W are multiples of 16.

    Returns:
        The same shape and type.

    Raises:
        ValueError: If H or W is not a multiple of 16.
    """
    height, width = images.shape[-2:]
    if height % BLOCK or width % BLOCK:
        raise ValueError(
            f"images of {height}x{width} pixels cannot go through JPEG here: choose a height and "
            f"width that are multiples of {BLOCK}, as 256 is"
        )
    luma, blue, red = _to_ycc(images.int())
    luma = _transform(luma, _quantization(_LUMA))
    chroma = _transform(_halve(torch.cat([blue, red])), _quantization(_CHROMA))
    blue, red = _double(chroma).chunk(2)
    return _to_rgb(luma, blue, red)


# -- colour ----------------------------------------------------------------------------------------


def _mix(planes: Sequence[Tensor], factors: Sequence[float], offset: int) -> Tensor:
    """A weighted sum with factors of 16 fractional bits; `offset` is in those units as well."""
    (first, *others), (factor, *factors) = planes, factors
    total = first * round(65536 * factor)
    for plane, factor in zip(others, factors, strict=True):
        total.add_(plane, alpha=round(65536 * factor))
    return total.add_(offset).bitwise_right_shift_(16)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, H, W) int32 to luma, blue and red difference, each (N, H, W) in 0 to 255."""
    planes = rgb.unbind(1)
    middle = 128 << 16
    luma = _mix(planes, (0.299, 0.587, 0.114), 32768)
    # Half is rounded down here, or pure blue would be 256.
    blue = _mix(planes, (-0.168735892, -0.331264108, 0.5), middle + 32767)
    red = _mix(planes, (0.5, -0.418687589, -0.081312411), middle + 32767)
    return luma, blue, red


def _to_rgb(luma: Tensor, blue: Tensor, red: Tensor) -> Tensor:
    """Back to (N, 3, H, W) uint8."""
    blue, red = blue - 128, red - 128
    r = _mix([red], [1.402], 32768).add_(luma)
    g = _mix([blue, red], [-0.34414, -0.71414], 32768).add_(luma)
    b = _mix([blue], [1.772], 32768).add_(luma)
    return torch.stack([plane.clamp_(0, 255).to(torch.uint8) for plane in (r, g, b)], 1)


def _halve(planes: Tensor) -> Tensor:
    """Means of 2x2 pixels, (N, H, W) to (N, H / 2, W / 2), rounded down and up by turns."""
    sums = planes[:, ::2, ::2] + planes[:, ::2, 1::2] + planes[:, 1::2, ::2] + planes[:, 1::2, 1::2]
    bias = 1 + torch.arange(sums.shape[-1], dtype=sums.dtype, device=sums.device) % 2
    return (sums + bias) >> 2


def _double(planes: Tensor) -> Tensor:
    """(N, h, w) to (N, 2 h, 2 w): three parts of the nearer neighbour and one of the other."""
    nearer = 3 * planes
    above = torch.cat([planes[:, :1], planes[:, :-1]], 1)
    below = torch.cat([planes[:, 1:], planes[:, -1:]], 1)
    rows = torch.stack([nearer + above, nearer + below], 2).flatten(1, 2)
    nearer = 3 * rows
    left = torch.cat([rows[..., :1], rows[..., :-1]], -1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], -1)
    return torch.stack([(nearer + left + 8) >> 4, (nearer + right + 7) >> 4], -1).flatten(-2)


# -- transform -------------------------------------------------------------------------------------


@cache
def _quantization(table: tuple[tuple[int, ...], ...]) -> Tensor:
    """Step size of each coefficient at `QUALITY`, (8, 8) int32."""
    percent = 200 - 2 * QUALITY
    return ((torch.tensor(table, dtype=torch.int32) * percent + 50) // 100).clamp(1, 255)


@cache
def _forward_matrix() -> Tensor:
    left = torch.tensor(_FORWARD, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)[:, None]
    return torch.cat([left, sign * left.flip(1)], 1)


@cache
def _fast_scales() -> Tensor:
    """What the fast inverse expects its inputs to be scaled by, (8, 8) int32 in 2**-14.

    After Arai, Agui and Nakajima, who move most multiplications of the transform into these.
    """
    each = [1.0, *(sqrt(2) * cos(k * pi / 16) for k in range(1, 8))]
    return torch.tensor([[round(16384 * a * b) for b in each] for a in each], dtype=torch.int32)


def _transform(planes: Tensor, steps: Tensor) -> Tensor:
    """Transforms, quantizes and transforms back; (N, H, W) int32 in 0 to 255, as is the result."""
    n, height, width = planes.shape
    shape = (n, height // 8, 8, width // 8, 8)
    # The place in a block comes first: every operation below runs over all blocks at once.
    blocks = (planes - 128).view(shape).permute(2, 4, 0, 1, 3).reshape(8, 8, -1)
    coefficients = _quantize(_forward(blocks), steps.to(planes.device))
    scales = (steps * _fast_scales() + 2048 >> 12).to(planes.device)
    samples = _inverse(coefficients * scales[..., None]).clamp_(-128, 127) + 128
    return samples.view(8, 8, n, height // 8, width // 8).permute(2, 3, 0, 4, 1).reshape_as(planes)


def _forward(blocks: Tensor) -> Tensor:
    """Eight times the cosine transform of blocks (8, 8, M), rounded to int32."""
    matrix = _forward_matrix().to(blocks.device)

    def along_first(values: Tensor, shift: int) -> Tensor:
        # Whole numbers below 2**53 in double precision: exact, whatever the order of the sum.
        sums = (matrix @ values.reshape(8, -1)).view(values.shape)
        return sums.mul_(0.5**shift).add_(0.5).floor_()

    rows = along_first(blocks.double().transpose(0, 1), 11).transpose(0, 1)
    return along_first(rows, 15).int()


def _quantize(coefficients: Tensor, steps: Tensor) -> Tensor:
    """Nearest multiple of each step, ties away from zero."""
    divisor = 8 * steps[..., None]
    magnitude = torch.div(coefficients.abs() + divisor // 2, divisor, rounding_mode="floor")
    return magnitude * coefficients.sign()


def _inverse(coefficients: Tensor) -> Tensor:
    """The fast inverse transform of scaled coefficients (8, 8, M): columns, then rows."""
    columns = torch.stack(_fast_inverse(coefficients))
    return torch.stack(_fast_inverse(columns.transpose(0, 1)), 1) >> 5


def _times(values: Tensor, factor: float) -> Tensor:
    """Multiplies by a constant of 8 fractional bits and truncates, which is fast and inexact."""
    return values * round(256 * factor) >> 8


def _fast_inverse(x: Tensor) -> list[Tensor]:
    """Eight-point inverse along the first dimension with five multiplications."""
    outer, inner = x[0] + x[4], x[0] - x[4]
    both = x[2] + x[6]
    rest = _times(x[2] - x[6], sqrt(2)) - both
    even = [outer + both, inner + rest, inner - rest, outer - both]

    plus35, minus35 = x[5] + x[3], x[5] - x[3]
    plus17, minus17 = x[1] + x[7], x[1] - x[7]
    turn = _times(minus35 + minus17, 2 * cos(pi / 8))
    odd0 = plus17 + plus35
    odd1 = _times(minus35, -2 * (cos(pi / 8) + cos(3 * pi / 8))) + turn - odd0
    odd2 = _times(plus17 - plus35, sqrt(2)) - odd1
    odd3 = turn - _times(minus17, 2 * (cos(pi / 8) - cos(3 * pi / 8))) - odd2
    odd = [odd0, odd1, odd2, odd3]

    return [e + o for e, o in zip(even, odd, strict=True)] + [
        e - o for e, o in zip(reversed(even), reversed(odd), strict=True)
    ]
