"""Observation encoders of QueST: a short ResNet-18 per camera, a projection per low-dim input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, figure 5 left)."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
            if stride != 1 or channels_in != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels_in, H, W) to (B, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class SpatialSoftmax(nn.Module):
    """Expected image position of each of several feature maps (Finn et al. 2016).

    Args:
        channels: Channels of the input.
        size: Height and width of the input.
        keypoints: Number of feature maps.
    """

    def __init__(self, channels: int, size: int, keypoints: int) -> None:
        super().__init__()
        self._spatial_conv = nn.Conv2d(channels, keypoints, 1)
        # The reference has the convolution but skips it where it would not change the number of
        # maps, as in the full-size model. Kept as buffers, its weights are saved and never trained.
        self.convolve = channels != keypoints
        if not self.convolve:
            for name, parameter in list(self._spatial_conv.named_parameters()):
                delattr(self._spatial_conv, name)
                self._spatial_conv.register_buffer(name, parameter.detach())
        grid = torch.linspace(-1, 1, size)
        self.pos_x: Tensor
        self.pos_y: Tensor
        # As in the reference, x runs along the image's rows.
        self.register_buffer("pos_x", grid.repeat_interleave(size)[None])
        self.register_buffer("pos_y", grid.repeat(size)[None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, size, size) to positions in [-1, 1], (B, 2 * keypoints)."""
        maps = self._spatial_conv(x) if self.convolve else x
        attention = maps.flatten(2).softmax(-1)
        return torch.cat([(attention * self.pos_x).sum(-1), (attention * self.pos_y).sum(-1)], -1)


class SpatialProjection(nn.Module):
    """Spatial softmax and a linear layer."""

    def __init__(self, channels: int, size: int, out_dim: int) -> None:
        super().__init__()
        self.spatial_softmax = SpatialSoftmax(channels, size, out_dim // 2)
        self.projection = nn.Linear(2 * (out_dim // 2), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, size, size) to (B, out_dim)."""
        return self.projection(self.spatial_softmax(x))


class ImageEncoder(nn.Module):
    """ResNet-18 without its last two stages, a spatial softmax and a projection.

    Args:
        image_size: Height and width of the images.
        width: Channels of the first stage (ResNet-18: 64); the second has twice as many.
        out_dim: Width of the embedding.
    """

    def __init__(self, image_size: int, width: int, out_dim: int) -> None:
        super().__init__()
        self.resnet18_base = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.block_1 = BasicBlock(width, width)
        self.block_2 = BasicBlock(width, width)
        self.block_3 = BasicBlock(width, 2 * width, stride=2)
        self.block_4 = BasicBlock(2 * width, 2 * width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.projection_layer = SpatialProjection(2 * width, -(-image_size // 8), out_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) in [0, 1] to embeddings (B, out_dim)."""
        x = self.resnet18_base(images)
        x = self.block_4(self.block_3(self.block_2(self.block_1(x))))
        return self.projection_layer(x)


class LowDimEncoder(nn.Module):
    """A linear projection; the reference's MLP has a single layer."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(in_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim) to (B, out_dim)."""
        return self.projection(x)
