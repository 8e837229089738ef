"""The network: a small U-Net that computes at half the working resolution and answers at the whole.

Every operation looks at a bounded neighbourhood: no instance norm, no pooling over the image, no attention. What the
network says about a pixel therefore does not depend on where a crop was cut, as long as the crop reaches far enough.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FACTOR = 16
"""Side of the coarsest cell in pixels of the working resolution; images must be multiples of it."""

WIDTHS = (32, 64, 128, 224)
"""Channels at a half, a quarter, an eighth and a sixteenth of the working resolution."""

DEPTHS = (0, 1, 2, 1)
"""Residual steps at each; with none, a plain convolution. More at a sixteenth would see farther than is wanted."""


class Convolution(nn.Sequential):
    """3 x 3 convolution, batch norm (folded into it at export), ReLU."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions and what went into them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = Convolution(n, n)
        self.second = nn.Sequential(nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n))

    def forward(self, x: Tensor) -> Tensor:
        """Return what went in, corrected."""
        return torch.relu(x + self.second(self.first(x)))


def _level(n_in: int, n_out: int, depth: int) -> nn.Sequential:
    rest = [Residual(n_out) for _ in range(depth)] or [Convolution(n_out, n_out)]
    return nn.Sequential(Convolution(n_in, n_out, 2), *rest)


class NucleusNet(nn.Module):
    """Image (n, 1, y, x), background 0, nuclei about 1 -> logits (n, 2, y, x) of nucleus and of height.

    Height is 1 in the middle of a nucleus and 0 at its outline, also where two touch.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), Convolution(4, a), Convolution(a, a))
        self.down = nn.ModuleList([_level(a, b, depths[1]), _level(b, c, depths[2]), _level(c, d, depths[3])])
        self.narrow = nn.ModuleList([nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.up = nn.ModuleList([Convolution(c, c), Convolution(b, b), Convolution(a, a)])
        self.leave = nn.Sequential(nn.Conv2d(a, 8, 3, 1, 1), nn.PixelShuffle(2))
        self.widen = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of nucleus and height."""
        # As a square root above 1: a dim nucleus beside a brilliant one stays visible, and one in bright haze keeps
        # its contrast.
        steps = [self.enter(image / torch.sqrt(1 + image.abs()))]
        for down in self.down:
            steps.append(down(steps[-1]))
        x = steps.pop()
        for narrow, up in zip(self.narrow, self.up, strict=True):
            x = up(self.widen(narrow(x)) + steps.pop())
        return self.leave(x)
