"""The discriminator of adversarial training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Discriminator"]


class Discriminator(nn.Module):
    """Classifies an image and its segmentation as labelled or unlabelled.

    SSL4MIS's ``FCDiscriminator``: four convolutions that halve the size (the first one of either input, then summed;
    LeakyReLU(.2) and channel dropout .5 between the others), an average pool to 2x2 and a linear layer. 2,762,754
    parameters for 1 input channel and 4 classes. The pool is adaptive, so any size from 16 pixels is accepted; at 224
    it is the reference's pool of 7.

    Args:
        in_channels: channels of the image.
        num_classes: classes of the segmentation.
        width: channels of the first layer.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 4, width: int = 64) -> None:
        super().__init__()

        def halve(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)

        self.from_segmentation = halve(num_classes, width)
        self.from_image = halve(in_channels, width)
        self.body = nn.Sequential(
            halve(width, 2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(0.5),
            halve(2 * width, 4 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(0.5),
            halve(4 * width, 8 * width),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.classifier = nn.Linear(4 * 8 * width, 2)

    def forward(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Logits ``[B, 2]`` (unlabelled, labelled) of class probabilities ``[B, classes, H, W]`` and their images."""
        x = self.body(self.from_segmentation(probabilities) + self.from_image(image))
        return self.classifier(F.adaptive_avg_pool2d(x, 2).flatten(1))
