"""What the Triton kernels of the deformable convolution share: positions, corners, bilinear surfaces.

Source: Deformable ConvNets v2 (Zhu et al. 2019); the mathematics and its one-sided derivatives are those
of ``panoda.models.deform.sampling``, position for position. Three kernels each (forward; gradients of input,
offsets and mask; gradient of the weight) in two layouts:

- ``panoda.models.deform.rows``: many channels share positions. A sample is a row of channels, so x is
  channels-last, and a program works on (pixels, channels).
- ``panoda.models.deform.grid``: few channels on each set of positions, or one. x is NCHW, neighbouring
  pixels read neighbouring values, and a program works on (slots, pixels); a slot is one tap of one group.

Sample, modulator and projection meet in registers: there is no im2col buffer. Values are blended in ``ACC``
(float32; float64 under Triton's interpreter), cast to the weight's type for ``tl.dot`` and summed in
``ACC``; positions are ``ACC`` always. The backward kernels sample again instead of reading saved samples.
Gradients of x and of the weight are summed by atomic additions, whose order the hardware chooses: their last
bits differ from run to run.

``GEOMETRY`` is (taps, kernel width, stride y, x, padding y, x, dilation y, x). One image lies within 2**31
elements (``launch`` sees to it).
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes of maps: not worth a compilation for every resolution.
SIZES = ["height", "width", "out_height", "out_width", "images", "tuning"]


@triton.jit
def locate(y, x, height, width):
    """Row and column of the upper left corner, and the way to the sample; outside is row or column -2."""
    top, left = tl.floor(y), tl.floor(x)
    # NaN fails both comparisons, and stays in the fraction.
    row = tl.where((top >= -1) & (top < height), top, -2.0).to(tl.int32)
    column = tl.where((left >= -1) & (left < width), left, -2.0).to(tl.int32)
    return row, column, y - top, x - left


@triton.jit
def position(offset, slot, p, inside, pixels, out_width, ACC: tl.constexpr, GEOMETRY: tl.constexpr):
    """Positions of tap ``slot`` at output pixel ``p``: base plus offset, in pixels of the input."""
    tap = slot % GEOMETRY[0]
    at = offset + 2 * slot * pixels + p
    y = (p // out_width) * GEOMETRY[2] - GEOMETRY[4] + (tap // GEOMETRY[1]) * GEOMETRY[6]
    x = (p % out_width) * GEOMETRY[3] - GEOMETRY[5] + (tap % GEOMETRY[1]) * GEOMETRY[7]
    # Far away where there is no pixel, so that nothing is read or added there.
    moved_y = tl.load(at, mask=inside, other=-1e9).to(ACC) + y
    moved_x = tl.load(at + pixels, mask=inside, other=-1e9).to(ACC) + x
    return moved_y, moved_x


@triton.jit
def valid(row, column, height, width):
    """Which of the four corners lie in the image."""
    up, down = row >= 0, (row >= -1) & (row + 1 < height)
    left, right = column >= 0, (column >= -1) & (column + 1 < width)
    return up & left, up & right, down & left, down & right


@triton.jit
def surface(s00, s01, s10, s11, ly, lx):
    """Bilinear value and its derivatives along y and x, of values at the corners."""
    upper = s00 + lx * (s01 - s00)
    along_y = s10 + lx * (s11 - s10) - upper
    along_x = (s01 - s00) + ly * ((s11 - s10) - (s01 - s00))
    return upper + ly * along_y, along_y, along_x


@triton.jit
def add_corners(grad_x, first, step_y, step_x, inside, row, column, height, width, grad, s00, s01, s10, s11):
    """Add grad times the shares at the four corners; every shape is that of ``grad`` or spreads to it."""
    v00, v01, v10, v11 = valid(row, column, height, width)
    at = grad_x + first
    tl.atomic_add(at, grad * s00, mask=v00 & inside, sem="relaxed")
    tl.atomic_add(at + step_x, grad * s01, mask=v01 & inside, sem="relaxed")
    tl.atomic_add(at + step_y, grad * s10, mask=v10 & inside, sem="relaxed")
    tl.atomic_add(at + step_y + step_x, grad * s11, mask=v11 & inside, sem="relaxed")


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Total + left @ right; ``widened`` is for the interpreter, which takes bfloat16 for integers."""
    if PRECISION == "widened":
        total = tl.dot(left.to(ACC), right.to(ACC), total, out_dtype=ACC)
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACC)
    return total
