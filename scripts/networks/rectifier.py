"""The network that rectifies pseudo-labels by latent diffusion; DiffRect trains it jointly with the deployed one."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks.unet import WIDTHS, UNet

__all__ = ["LabelRectifier", "class_colors"]


def class_colors(num_classes: int) -> Tensor:
    """``[C, 3]`` RGB in [0, 1]: black background, then evenly spaced hues starting at red; white for a single class."""
    foreground = num_classes - 1
    if foreground == 1:
        return torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    hues = [colorsys.hsv_to_rgb(k / foreground, 1.0, 1.0) for k in range(foreground)]
    return torch.tensor([(0.0, 0.0, 0.0), *hues])


class LabelRectifier(nn.Module):
    """Map a pseudo-label and its image to the logits of a better label, by diffusion at the bottleneck of a U-Net.

    One encoder takes the image together with the label, whose classes are coloured (:func:`class_colors`); a second one
    takes the image only, and its features are added level by level. The expected error of the pseudo-label, its Dice
    loss in [0, 1], is embedded like a time step and added to every level ("calibration guidance"). A denoiser, MONAI's
    ``DiffusionModelUNet``, predicts the bottleneck of the better label from noise and the bottleneck of the
    pseudo-label; the decoder takes it with the skip connections of the pseudo-label.

    Args:
        in_channels: channels of the image.
        num_classes: classes, background included.
        channels: width of each level of encoders and decoder.
        denoiser: widths of the denoiser's levels, multiples of its ``groups``.
        groups: groups of the denoiser's group norms.
        time_steps: time steps of the diffusion in training.
        sampling_steps: steps of the DDIM sampler.
    """

    embedding = 128
    colors: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = WIDTHS,
        denoiser: Sequence[int] = (192, 256),
        groups: int = 32,
        time_steps: int = 10,
        sampling_steps: int = 2,
    ) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.sampling_steps = sampling_steps
        self.autoencoder = UNet(in_channels + 3, num_classes, channels)
        self.image_encoder = UNet(in_channels, num_classes, channels).encoder
        self.guidance = nn.Sequential(nn.Linear(self.embedding, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.calibrate = nn.ModuleList(nn.Linear(256, width) for width in channels)
        self.denoiser = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=2 * channels[-1],
            out_channels=channels[-1],
            channels=tuple(denoiser),
            attention_levels=(False,) * len(denoiser),
            num_res_blocks=1,
            norm_num_groups=groups,
            num_head_channels=groups,
        )
        self.schedule = DDIMScheduler(
            num_train_timesteps=time_steps, schedule="cosine", clip_sample=False, prediction_type="sample"
        )
        self.schedule.set_timesteps(sampling_steps)
        alphas = self.schedule.alphas_cumprod
        del self.schedule.alphas_cumprod
        # A buffer moves with the module; MONAI would copy it to the device in every step and wait.
        self.schedule.register_buffer("alphas_cumprod", alphas, persistent=False)
        self.register_buffer("colors", class_colors(num_classes), persistent=False)

    def forward(self, image: Tensor, label: Tensor, guidance: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
        """One denoising step towards a better label.

        Args:
            image: ``[B, C, H, W]``.
            label: pseudo-label ``[B, H, W]``.
            guidance: scalar in [0, 1], the Dice loss of the pseudo-label.
            better: the target label, ``[B, H, W]``.

        Returns:
            Logits ``[B, num_classes, H, W]``, float32, and the mean squared error of the denoised bottleneck.
        """
        with torch.no_grad():
            clean = self.encode(image, better, guidance)[-1].float()
        features = self.encode(image, label, guidance)
        time = torch.randint(self.time_steps, (len(image),)).to(image.device, non_blocking=True)
        noisy = self.schedule.add_noise(clean, torch.randn_like(clean), time)
        found = self.denoise(noisy, features[-1], time)
        return self.autoencoder.decode([*features[:-1], found]).float(), F.mse_loss(found.float(), clean)

    @torch.no_grad()
    def sample(self, image: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        """Logits of the label that DDIM samples from pure noise; arguments as in :meth:`forward`."""
        features = self.encode(image, label, guidance)
        latent = torch.randn_like(features[-1], dtype=torch.float32)
        found = latent
        for step in self.schedule.timesteps.tolist():
            time = torch.full((len(image),), step, device=image.device)
            latent, found = self.schedule.step(self.denoise(latent, features[-1], time).float(), step, latent)
        return self.autoencoder.decode([*features[:-1], found.to(features[0].dtype)]).float()

    def encode(self, image: Tensor, label: Tensor, guidance: Tensor) -> list[Tensor]:
        """Features of all levels, finest first, of image and coloured label."""
        colored = self.colors[label.long()].movedim(-1, 1)
        x, y = torch.cat([image, colored], dim=1), image
        wrong = self.guidance(get_timestep_embedding(999 * guidance[None], self.embedding))
        features = []
        for level, (block, other) in enumerate(zip(self.autoencoder.encoder, self.image_encoder, strict=True)):
            x, y = (F.max_pool2d(z, 2) if level else z for z in (x, y))
            y = other(y)
            x = block(x) + y + self.calibrate[level](wrong)[..., None, None]
            features.append(x)
        return features

    def denoise(self, noisy: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """The denoised bottleneck ``[B, channels[-1], h, w]``; the denoiser halves it, so odd sides are padded."""
        height, width = noisy.shape[-2:]
        both = F.pad(torch.cat([noisy, condition.to(noisy.dtype)], dim=1), (0, width % 2, 0, height % 2))
        found: Tensor = self.denoiser(both, time)
        return found[..., :height, :width]
