"""Images as grids of codes: a small discrete VAE with Gumbel-softmax (Ramesh et al., arXiv 2102.12092, section 2.1).

What BEiT (arXiv 2106.08254) predicts are such codes. Deviations: a few convolutions instead of DALL-E's network, mean
squared error instead of its logit-Laplace likelihood, logits that fall with the squared distance to each code (as in
VQ-VAE, arXiv 1711.00937), and a divergence of the codes' shares of a batch from uniform ones instead of each token's
distribution (as in wav2vec 2.0, arXiv 2006.11477). With the last two, short trainings use more of the codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CodebookUse:
    """How much of a codebook some images use.

    Attributes:
        vocabulary: Codes there are.
        tokens: Tokens looked at.
        used: Codes among them.
        perplexity: exp of the entropy of their frequencies: so many equally frequent codes would tell as much.
    """

    vocabulary: int
    tokens: int
    used: int
    perplexity: float

    @property
    def collapsed(self) -> bool:
        """Next to nothing is told apart: fewer than four codes' worth, or a hundredth of what could be."""
        return self.perplexity < max(4.0, 0.01 * min(self.vocabulary, self.tokens))

    def advice(self) -> str:
        """What to change after a collapse."""
        return (
            f"the tokenizer has collapsed: {self.used} of {self.vocabulary} codes are used, perplexity "
            f"{self.perplexity:.1f}; a model that predicts them learns nothing. Lower ssl.tokenizer.lr, raise "
            "ssl.tokenizer.kl_weight tenfold, let the temperature fall more slowly (more ssl.tokenizer.iterations), or "
            "lower ssl.tokenizer.vocabulary"
        )


class DiscreteVAE(nn.Module):
    """Encoder to codes, codebook, decoder.

    Attributes:
        vocabulary: Number of codes V.
        reduction: Pixels of a side per token, a power of two.
        arguments: Keywords with which it was built.
    """

    def __init__(self, *, vocabulary: int, reduction: int, width: int = 128) -> None:
        """Build with random weights.

        Raises:
            ValueError: fewer than two codes, or a reduction that is no power of two.
        """
        super().__init__()
        if vocabulary < 2 or reduction < 2 or reduction & (reduction - 1):
            raise ValueError(
                f"vocabulary is {vocabulary} and reduction {reduction}; expected two codes or more, and a power of "
                "two such as 8"
            )
        self.vocabulary, self.reduction = vocabulary, reduction
        self.arguments = {"vocabulary": vocabulary, "reduction": reduction, "width": width}
        steps = int(math.log2(reduction))
        down: list[nn.Module] = []
        for step in range(steps):
            down += [
                nn.Conv2d(width if step else 3, width, 4, stride=2, padding=1),
                nn.ReLU(),
                _Residual(width),
            ]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, width, 1))
        self.codebook = nn.Embedding(vocabulary, width)
        up: list[nn.Module] = [_Residual(width)]
        for _ in range(steps):
            up += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU(), _Residual(width)]
        self.decoder = nn.Sequential(*up, nn.Conv2d(width, 3, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 -> logits of the codes (N, V, h, w)."""
        sides = images.shape[2:]
        if any(side % self.reduction for side in sides):
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels are no whole number of tokens of {self.reduction}; set the "
                "crop to multiples of it"
            )
        codes = self.codebook.weight
        likeness = torch.einsum("ndhw,vd->nvhw", self.encoder(2 * images - 1), codes)
        # Minus the squared distance; its part that all codes share changes no softmax.
        return (2 * likeness - codes.square().sum(dim=1)[:, None, None]) / math.sqrt(codes.shape[1])

    def tokens(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 -> the likeliest codes (N, h, w) int64."""
        return self.logits(images).argmax(dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Codes (N, h, w) -> images (N, 3, H, W), about 0..1."""
        return self._image(self.codebook(tokens).permute(0, 3, 1, 2))

    def forward(
        self, images: Tensor, *, temperature: float, kl_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw codes, decode, compare.

        Args:
            images: (N, 3, H, W) in 0..1.
            temperature: Of the Gumbel-softmax; towards 0 the draws become single codes.
            kl_weight: Weight of the KL divergence of the batch's mean distribution over codes from the uniform one,
                in nats.

        Returns:
            loss: Reconstruction error + weighted divergence.
            error: Mean squared error over all pixels and channels.
            tokens: The likeliest codes (N, h, w).
        """
        logits = self.logits(images)
        draws = F.gumbel_softmax(logits.float(), tau=temperature, dim=1)
        mixed = torch.einsum("nvhw,vd->ndhw", draws, self.codebook.weight)
        error = F.mse_loss(self._image(mixed).float(), images.float())
        shares = logits.float().softmax(dim=1).mean(dim=(0, 2, 3))
        divergence = torch.special.xlogy(shares, shares * self.vocabulary).sum()
        return error + kl_weight * divergence, error, logits.argmax(dim=1)

    def _image(self, features: Tensor) -> Tensor:
        image: Tensor = (self.decoder(features) + 1) / 2
        return image


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def codebook_use(counts: Tensor) -> CodebookUse:
    """How much of a codebook is used, from the number of times (V,) each code was seen.

    Example:
        >>> codebook_use(torch.tensor([5, 5, 0, 0]))
        CodebookUse(vocabulary=4, tokens=10, used=2, perplexity=2.0)
    """
    shares = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return CodebookUse(
        len(counts), int(counts.sum()), int((counts > 0).sum()), round(float(entropy.exp()), 6)
    )
