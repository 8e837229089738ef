"""The network of `histoquant.analysis.spine_network`: a small U-Net that halves its grid along s and u, not along w."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(n_in: int, n_out: int) -> nn.Sequential:
    """Return a convolution, its norm and its bend."""
    return nn.Sequential(nn.Conv3d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm3d(n_out), nn.ReLU(inplace=True))


def twice(volume: Tensor) -> Tensor:
    """Return a volume at twice the size along s and u."""
    return F.interpolate(volume, scale_factor=(1, 2, 2), mode="nearest")


class SpineNet(nn.Module):
    """From the planes of a dendrite, (n, planes, w, s, u), to log odds of the middle of a head, (n, 1, w, s, u)."""

    def __init__(self, planes: int, width: int = 16) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.fine = nn.Sequential(block(planes, fine), block(fine, fine))
        self.middle = nn.Sequential(block(fine, middle), block(middle, middle))
        self.coarse = nn.Sequential(block(middle, coarse), block(coarse, coarse))
        self.up_middle = block(middle + coarse, middle)
        self.up_fine = block(fine + middle, fine)
        self.answer = nn.Conv3d(fine, 1, 1)
        nn.init.constant_(self.answer.bias, -5.0)  # hardly any place is one

    def forward(self, planes: Tensor) -> Tensor:
        """Return log odds."""
        fine = self.fine(planes)
        middle = self.middle(F.max_pool3d(fine, (1, 2, 2)))
        coarse = self.coarse(F.max_pool3d(middle, (1, 2, 2)))
        middle = self.up_middle(torch.cat([middle, twice(coarse)], 1))
        return self.answer(self.up_fine(torch.cat([fine, twice(middle)], 1)))
