"""Trans4PASS T: four stages of attention blocks behind a deformable embedding, DMLP decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

CHANNELS, HEADS, REDUCTIONS = (64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1)
BLOCKS_PER_STAGE, WIDTH = 2, 128


class Attention(nn.Module):
    """Attention onto a spatially reduced copy of the map."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        """Build for tokens of ``dim`` channels."""
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, H * W, C) -> the same."""
        n, tokens, dim = x.shape
        q = self.q(x).reshape(n, tokens, self.heads, dim // self.heads).permute(0, 2, 1, 3)
        if self.reduction > 1:
            x = self.sr(x.permute(0, 2, 1).reshape(n, dim, height, width))
            x = self.norm(x.flatten(2).permute(0, 2, 1))
        kv = self.kv(x).reshape(n, -1, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attention = (q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    """Linear, depthwise 3x3, GELU, linear."""

    def __init__(self, dim: int) -> None:
        """Build with a ratio of 4."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dwconv = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, H * W, C) -> the same."""
        x = self.fc1(x).transpose(1, 2)
        x = self.dwconv(x.reshape(*x.shape[:2], height, width)).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the identity."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        """Build for tokens of ``dim`` channels."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, reduction), Mlp(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, H * W, C) -> the same."""
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x), height, width)


class DeformableConv(nn.Module):
    """Convolution at predicted offsets, torchvision's operator."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        """Build with padding that keeps the size at stride 1."""
        super().__init__()
        geometry = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
        self.proj = nn.Conv2d(before, after, **geometry)
        self.offset_conv = nn.Conv2d(before, 2 * kernel**2, **geometry)
        self.modulator_conv = nn.Conv2d(before, kernel**2, **geometry)

    def sampled(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, Ho, Wo)."""
        reach = min(x.shape[2], x.shape[3]) // 4
        offset = self.offset_conv(x).clamp(-reach, reach)
        modulator = 2 * torch.sigmoid(self.modulator_conv(x))
        conv = self.proj
        stride, padding = (conv.stride[0], conv.stride[1]), (int(conv.padding[0]), int(conv.padding[1]))
        return deform_conv2d(
            x, offset, conv.weight, conv.bias, stride=stride, padding=padding, mask=modulator
        )


class Embedding(DeformableConv):
    """Deformable 7x7 stride-4 embedding of the image."""

    def __init__(self) -> None:
        """Build for RGB."""
        super().__init__(3, CHANNELS[0], 7, 4)
        self.norm = nn.LayerNorm(CHANNELS[0])

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H/4, W/4, C)."""
        return self.norm(self.sampled(x).permute(0, 2, 3, 1))


class PlainEmbedding(nn.Module):
    """3x3 stride-2 embedding of the later stages."""

    def __init__(self, before: int, after: int) -> None:
        """Build for maps of ``before`` channels."""
        super().__init__()
        self.proj = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H/2, W/2, D)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Embedding (but for the first stage), blocks, norm."""

    def __init__(self, number: int) -> None:
        """Build stage 0 to 3."""
        super().__init__()
        dim = CHANNELS[number]
        self.downsample = PlainEmbedding(CHANNELS[number - 1], dim) if number else None
        self.blocks = nn.ModuleList(
            Block(dim, HEADS[number], REDUCTIONS[number]) for _ in range(BLOCKS_PER_STAGE)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The map before -> (N, C, H, W)."""
        x = x if self.downsample is None else self.downsample(x)
        n, height, width, dim = x.shape
        x = x.reshape(n, -1, dim)
        for block in self.blocks:
            x = block(x, height, width)
        return self.norm(x).reshape(n, height, width, dim).permute(0, 3, 1, 2).contiguous()


class Encoder(nn.Module):
    """Four stages."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.patch_embed = Embedding()
        self.stages = nn.ModuleList(Stage(number) for number in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps."""
        x, maps = self.patch_embed(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Projection(DeformableConv):
    """Deformable 3x3 convolution, BatchNorm, GELU."""

    def __init__(self, before: int) -> None:
        """Build for maps of ``before`` channels."""
        super().__init__(before, WIDTH, 3, 1)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, WIDTH, H, W)."""
        return F.gelu(self.norm(self.sampled(x)))


class DeformableMlp(nn.Module):
    """A linear layer whose channels are read at positions of their own; BatchNorm, GELU."""

    def __init__(self) -> None:
        """Build for WIDTH channels."""
        super().__init__()
        self.linear = nn.Conv2d(WIDTH, WIDTH, 1)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.pointwise = nn.Conv2d(WIDTH, 3 * WIDTH, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(N, WIDTH, H, W) -> the same."""
        reach = max(x.shape[2], x.shape[3]) // 4
        first, second, modulator = self.pointwise(self.depthwise(x)).chunk(3, dim=1)
        offset = torch.cat([first, second], dim=1).clamp(-reach, reach)
        modulator = 2 * torch.sigmoid(modulator)
        x = deform_conv2d(x, offset, self.linear.weight, self.linear.bias, mask=modulator)
        return F.gelu(self.norm(x))


class DecoderBlock(nn.Module):
    """Projection of a stage and two deformable MLPs."""

    def __init__(self, before: int) -> None:
        """Build for maps of ``before`` channels."""
        super().__init__()
        self.project, self.mlp1, self.mlp2 = Projection(before), DeformableMlp(), DeformableMlp()
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, WIDTH, H, W)."""
        x = self.project(x)
        x = (x + self.mlp1(x) + self.mlp2(x)).permute(0, 2, 3, 1)
        return self.out(x + self.mix(x)).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Blocks, summed at stride 4; a 1x1 prediction."""

    def __init__(self, num_classes: int) -> None:
        """Build with random weights."""
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(channels) for channels in CHANNELS)
        self.predict = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Four maps -> logits and features at stride 4."""
        features = torch.zeros(())
        for block, x in zip(self.blocks, maps, strict=True):
            size = maps[0].shape[2:]
            up = F.interpolate(block(x), size=size, mode="bilinear", align_corners=True)
            features = up if features.ndim == 0 else features + up
        return self.predict(features), features


class ReferenceModel(nn.Module):
    """Encoder and decoder; logits are enlarged to the image."""

    def __init__(self, num_classes: int) -> None:
        """Build with random weights; ``load_state_dict`` takes those of ``trans4pass_t``."""
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder(num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> logits (N, K, H, W) and features (N, WIDTH, H/4, W/4)."""
        logits, features = self.decoder(self.encoder(x))
        size = (x.shape[2], x.shape[3])
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=True), features
