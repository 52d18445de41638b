"""Triton kernels for few channels, or one, on each set of positions; conventions in ``corners``."""

from __future__ import annotations

import triton
import triton.language as tl

from panoda.models.deform.corners import SIZES, add_corners, locate, position, product, surface, valid


@triton.jit
def _read_grid(x, first, row, column, inside, height, width, ACC: tl.constexpr):
    """Values (BLOCK_R, BLOCK_P) at the four corners; zero outside."""
    v00, v01, v10, v11 = valid(row, column, height, width)
    at = x + first
    a = tl.load(at, mask=v00 & inside, other=0.0).to(ACC)
    b = tl.load(at + 1, mask=v01 & inside, other=0.0).to(ACC)
    d = tl.load(at + width, mask=v10 & inside, other=0.0).to(ACC)
    e = tl.load(at + width + 1, mask=v11 & inside, other=0.0).to(ACC)
    return a, b, d, e


@triton.jit
def _factor(mask, slot, p, inside, pixels, MASKED: tl.constexpr, ACC: tl.constexpr):
    """Modulators (BLOCK_R, BLOCK_P); 1 without a mask."""
    factor = tl.full(inside.shape, 1.0, ACC)
    if MASKED:
        factor = tl.load(mask + slot[:, None] * pixels + p[None, :], mask=inside, other=0.0).to(ACC)
    return factor


@triton.jit
def _blend_grid(corners, ly, lx, factor):
    """Modulated samples."""
    upper = corners[0] * (1 - lx) + corners[1] * lx
    lower = corners[2] * (1 - lx) + corners[3] * lx
    return (upper * (1 - ly) + lower * ly) * factor


@triton.jit(do_not_specialize=SIZES)
def grid_forward(
    x, offset, mask, weight, bias, out,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, BIASED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Output (N, D, P); x (N, C, H, W), weight (D, C, K). Programs: pixels, outputs, images."""
    image, pixels = tl.program_id(2).to(tl.int64), out_height * out_width
    channels, slots = groups * each, groups * GEOMETRY[0]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_p, inside_d = p < pixels, d < outputs
    x += image * channels * height * width
    offset += image * 2 * slots * pixels
    mask += image * slots * pixels
    total = tl.zeros((BLOCK_D, BLOCK_P), ACC)
    for start in range(0, slots, BLOCK_R):
        slot = start + tl.arange(0, BLOCK_R)
        inside_r = slot < slots
        inside = inside_r[:, None] & inside_p[None, :]
        y, x_ = position(offset, slot[:, None], p[None, :], inside, pixels, out_width, ACC, GEOMETRY)
        row, column, ly, lx = locate(y, x_, height, width)
        factor = _factor(mask, slot, p, inside, pixels, MASKED, ACC)
        for member in range(each):
            channel = (slot // GEOMETRY[0]) * each + member
            first = channel[:, None] * height * width + row * width + column
            corners = _read_grid(x, first, row, column, inside, height, width, ACC)
            sample = _blend_grid(corners, ly, lx, factor)
            at = weight + d[:, None] * channels * GEOMETRY[0]
            at += (channel * GEOMETRY[0] + slot % GEOMETRY[0])[None, :]
            factors = tl.load(at, mask=inside_d[:, None] & inside_r[None, :], other=0.0)
            total = product(factors, sample.to(factors.dtype), total, PRECISION, ACC)
    if BIASED:
        total += tl.load(bias + d, mask=inside_d, other=0.0).to(ACC)[:, None]
    at = out + image * outputs * pixels + d[:, None] * pixels + p[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside_d[:, None] & inside_p[None, :])


@triton.jit(do_not_specialize=SIZES)
def grid_backward(
    grad, x, offset, mask, weight, grad_x, grad_offset, grad_mask,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, WITH_X: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradients of x (N, C, H, W; added), offsets and mask. Programs: pixels, slots, images."""
    image, pixels = tl.program_id(2).to(tl.int64), out_height * out_width
    channels, slots = groups * each, groups * GEOMETRY[0]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    slot = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_p, inside_r = p < pixels, slot < slots
    inside = inside_r[:, None] & inside_p[None, :]
    x += image * channels * height * width
    grad_x += image * channels * height * width
    grad += image * outputs * pixels
    offset += image * 2 * slots * pixels
    y, x_ = position(offset, slot[:, None], p[None, :], inside, pixels, out_width, ACC, GEOMETRY)
    row, column, ly, lx = locate(y, x_, height, width)
    factor = _factor(mask + image * slots * pixels, slot, p, inside, pixels, MASKED, ACC)
    s00, s01 = tl.zeros((BLOCK_R, BLOCK_P), ACC), tl.zeros((BLOCK_R, BLOCK_P), ACC)
    s10, s11 = tl.zeros((BLOCK_R, BLOCK_P), ACC), tl.zeros((BLOCK_R, BLOCK_P), ACC)
    for member in range(each):
        channel = (slot // GEOMETRY[0]) * each + member
        first = channel[:, None] * height * width + row * width + column
        sampled = tl.zeros((BLOCK_R, BLOCK_P), ACC)  # gradient of the modulated samples
        for start in range(0, outputs, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside_d = d < outputs
            at = weight + d[None, :] * channels * GEOMETRY[0]
            at += (channel * GEOMETRY[0] + slot % GEOMETRY[0])[:, None]
            factors = tl.load(at, mask=inside_r[:, None] & inside_d[None, :], other=0.0)
            at = grad + d[:, None] * pixels + p[None, :]
            own = tl.load(at, mask=inside_d[:, None] & inside_p[None, :], other=0.0)
            sampled = product(factors, own, sampled, PRECISION, ACC)
        a, b, e, f = _read_grid(x, first, row, column, inside, height, width, ACC)
        s00 += sampled * a
        s01 += sampled * b
        s10 += sampled * e
        s11 += sampled * f
        if WITH_X:
            moved = sampled * factor
            add_corners(
                grad_x, first, width, 1, inside, row, column, height, width, moved,
                (1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx,
            )  # fmt: skip
    value, along_y, along_x = surface(s00, s01, s10, s11, ly, lx)
    at = grad_offset + image * 2 * slots * pixels + 2 * slot[:, None] * pixels + p[None, :]
    tl.store(at, along_y * factor, mask=inside)
    tl.store(at + pixels, along_x * factor, mask=inside)
    if MASKED:
        tl.store(grad_mask + image * slots * pixels + slot[:, None] * pixels + p[None, :], value, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def grid_weight(
    grad, x, offset, mask, grad_weight,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradient of the weight (D, C, K; added). Programs: slots x members, outputs, pixels."""
    pixels, channels, slots = out_height * out_width, groups * each, groups * GEOMETRY[0]
    member = tl.program_id(0) % each
    slot = (tl.program_id(0) // each) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_r, inside_d = slot < slots, d < outputs
    channel = (slot // GEOMETRY[0]) * each + member
    tiles = tl.cdiv(pixels, BLOCK_P)
    total = tl.zeros((BLOCK_R, BLOCK_D), ACC)
    for step in range(tl.program_id(2), images * tiles, tl.num_programs(2)):
        image = (step // tiles).to(tl.int64)
        p = (step % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside_p = p < pixels
        inside = inside_r[:, None] & inside_p[None, :]
        start = offset + image * 2 * slots * pixels
        y, x_ = position(start, slot[:, None], p[None, :], inside, pixels, out_width, ACC, GEOMETRY)
        row, column, ly, lx = locate(y, x_, height, width)
        factor = _factor(mask + image * slots * pixels, slot, p, inside, pixels, MASKED, ACC)
        first = channel[:, None] * height * width + row * width + column
        own_x = x + image * channels * height * width
        corners = _read_grid(own_x, first, row, column, inside, height, width, ACC)
        sample = _blend_grid(corners, ly, lx, factor)
        at = grad + image * outputs * pixels + d[None, :] * pixels + p[:, None]
        own = tl.load(at, mask=inside_p[:, None] & inside_d[None, :], other=0.0)
        total = product(sample.to(own.dtype), own, total, PRECISION, ACC)
    at = grad_weight + d[None, :] * channels * GEOMETRY[0]
    at += (channel * GEOMETRY[0] + slot % GEOMETRY[0])[:, None]
    tl.atomic_add(at, total, mask=inside_r[:, None] & inside_d[None, :], sem="relaxed")
