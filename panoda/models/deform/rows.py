"""Triton kernels for many channels on each set of positions; conventions in ``corners``."""

from __future__ import annotations

import triton
import triton.language as tl

from panoda.models.deform.corners import SIZES, add_corners, locate, position, product, surface, valid


@triton.jit
def _read_rows(x, first, step_y, step_x, c, inside_c, row, column, height, width, ACC: tl.constexpr):
    """Values (BLOCK_P, BLOCK_C) at the four corners; zero outside."""
    v00, v01, v10, v11 = valid(row, column, height, width)
    at = x + first[:, None] + c[None, :]
    a = tl.load(at, mask=v00[:, None] & inside_c[None, :], other=0.0).to(ACC)
    b = tl.load(at + step_x, mask=v01[:, None] & inside_c[None, :], other=0.0).to(ACC)
    d = tl.load(at + step_y, mask=v10[:, None] & inside_c[None, :], other=0.0).to(ACC)
    e = tl.load(at + step_y + step_x, mask=v11[:, None] & inside_c[None, :], other=0.0).to(ACC)
    return a, b, d, e


@triton.jit
def _sample_rows(
    x, offset, mask, slot, c, inside_c, p, inside_p, pixels, out_width, height, width, groups, each,
    MASKED: tl.constexpr, ACC: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Modulated samples (BLOCK_P, BLOCK_C) of one image and one slot."""
    y, x_ = position(offset, slot, p, inside_p, pixels, out_width, ACC, GEOMETRY)
    row, column, ly, lx = locate(y, x_, height, width)
    channels = groups * each
    first = (row * width + column) * channels + (slot // GEOMETRY[0]) * each
    corners = _read_rows(x, first, width * channels, channels, c, inside_c, row, column, height, width, ACC)
    upper, lower = 1 - ly, ly
    if MASKED:
        factor = tl.load(mask + slot * pixels + p, mask=inside_p, other=0.0).to(ACC)
        upper, lower = upper * factor, lower * factor
    sample = corners[0] * (upper * (1 - lx))[:, None] + corners[1] * (upper * lx)[:, None]
    return sample + corners[2] * (lower * (1 - lx))[:, None] + corners[3] * (lower * lx)[:, None]


@triton.jit(do_not_specialize=SIZES)
def rows_forward(
    x, offset, mask, weight, bias, out,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, BIASED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Output (N, D, P); x (N, H, W, C), weight (G * K, C/G, D). Programs: pixels, outputs, images."""
    image, pixels = tl.program_id(2).to(tl.int64), out_height * out_width
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_p, inside_d = p < pixels, d < outputs
    slots, blocks = groups * GEOMETRY[0], tl.cdiv(each, BLOCK_C)
    x += image * groups * each * height * width
    offset += image * 2 * slots * pixels
    mask += image * slots * pixels
    total = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    for step in range(slots * blocks):
        slot, c = step // blocks, (step % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside_c = c < each
        sample = _sample_rows(
            x, offset, mask, slot, c, inside_c, p, inside_p, pixels, out_width, height, width, groups, each,
            MASKED, ACC, GEOMETRY,
        )  # fmt: skip
        at = weight + (slot * each + c)[:, None] * outputs + d[None, :]
        factors = tl.load(at, mask=inside_c[:, None] & inside_d[None, :], other=0.0)
        total = product(sample.to(factors.dtype), factors, total, PRECISION, ACC)
    if BIASED:
        total += tl.load(bias + d, mask=inside_d, other=0.0).to(ACC)[None, :]
    at = out + image * outputs * pixels + d[None, :] * pixels + p[:, None]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside_p[:, None] & inside_d[None, :])


@triton.jit(do_not_specialize=SIZES)
def rows_backward(
    grad, x, offset, mask, weight, grad_x, grad_offset, grad_mask,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, WITH_X: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of x (N, H, W, C; added), offsets and mask. Programs: pixels, slots, images."""
    image, pixels = tl.program_id(2).to(tl.int64), out_height * out_width
    slot, channels = tl.program_id(1), groups * each
    slots = groups * GEOMETRY[0]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < pixels
    x += image * channels * height * width
    grad_x += image * channels * height * width
    grad += image * outputs * pixels
    y, x_ = position(offset + image * 2 * slots * pixels, slot, p, inside_p, pixels, out_width, ACC, GEOMETRY)
    row, column, ly, lx = locate(y, x_, height, width)
    first = (row * width + column) * channels + (slot // GEOMETRY[0]) * each
    factor = tl.full((BLOCK_P,), 1.0, ACC)
    if MASKED:
        factor = tl.load(mask + (image * slots + slot) * pixels + p, mask=inside_p, other=0.0).to(ACC)
    upper, lower = (1 - ly) * factor, ly * factor
    s00, s01 = tl.zeros((BLOCK_P,), ACC), tl.zeros((BLOCK_P,), ACC)
    s10, s11 = tl.zeros((BLOCK_P,), ACC), tl.zeros((BLOCK_P,), ACC)
    for block in range(tl.cdiv(each, BLOCK_C)):
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        inside_c = c < each
        sampled = tl.zeros((BLOCK_P, BLOCK_C), ACC)  # gradient of the modulated samples
        for start in range(0, outputs, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside_d = d < outputs
            at = grad + d[None, :] * pixels + p[:, None]
            own = tl.load(at, mask=inside_p[:, None] & inside_d[None, :], other=0.0)
            at = weight + (slot * each + c)[None, :] * outputs + d[:, None]
            factors = tl.load(at, mask=inside_d[:, None] & inside_c[None, :], other=0.0)
            sampled = product(own, factors, sampled, PRECISION, ACC)
        a, b, e, f = _read_rows(
            x, first, width * channels, channels, c, inside_c, row, column, height, width, ACC
        )
        s00 += tl.sum(sampled * a, axis=1)
        s01 += tl.sum(sampled * b, axis=1)
        s10 += tl.sum(sampled * e, axis=1)
        s11 += tl.sum(sampled * f, axis=1)
        if WITH_X:
            add_corners(
                grad_x, first[:, None] + c[None, :], width * channels, channels, inside_c[None, :],
                row[:, None], column[:, None], height, width, sampled, (upper * (1 - lx))[:, None],
                (upper * lx)[:, None], (lower * (1 - lx))[:, None], (lower * lx)[:, None],
            )  # fmt: skip
    value, along_y, along_x = surface(s00, s01, s10, s11, ly, lx)
    at = grad_offset + (image * slots + slot) * 2 * pixels + p
    tl.store(at, along_y * factor, mask=inside_p)
    tl.store(at + pixels, along_x * factor, mask=inside_p)
    if MASKED:
        tl.store(grad_mask + (image * slots + slot) * pixels + p, value, mask=inside_p)


@triton.jit(do_not_specialize=SIZES)
def rows_weight(
    grad, x, offset, mask, grad_weight,
    groups, each, outputs, height, width, out_height, out_width, images, tuning,
    MASKED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GEOMETRY: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of the weight (G * K, C/G, D; added). Programs: slots x channels, outputs, pixels."""
    pixels, channels, slots = out_height * out_width, groups * each, groups * GEOMETRY[0]
    blocks = tl.cdiv(each, BLOCK_C)
    slot = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_c, inside_d = c < each, d < outputs
    tiles = tl.cdiv(pixels, BLOCK_P)
    total = tl.zeros((BLOCK_D, BLOCK_C), ACC)
    for step in range(tl.program_id(2), images * tiles, tl.num_programs(2)):
        image = (step // tiles).to(tl.int64)
        p = (step % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside_p = p < pixels
        sample = _sample_rows(
            x + image * channels * height * width, offset + image * 2 * slots * pixels,
            mask + image * slots * pixels, slot, c, inside_c, p, inside_p, pixels, out_width, height, width,
            groups, each, MASKED, ACC, GEOMETRY,
        )  # fmt: skip
        at = grad + image * outputs * pixels + d[:, None] * pixels + p[None, :]
        own = tl.load(at, mask=inside_d[:, None] & inside_p[None, :], other=0.0)
        total = product(own, sample.to(own.dtype), total, PRECISION, ACC)
    at = grad_weight + (slot * each + c)[None, :] * outputs + d[:, None]
    tl.atomic_add(at, total, mask=inside_d[:, None] & inside_c[None, :], sem="relaxed")
