"""Segment Anything's prompt-free branch as a segmentation network, its image encoder adapted by LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.utils.errors import one_line
from scripts.utils.tensors import load_state

__all__ = ["SAM", "LowRankAdapted"]

PATCH = 16  # side of an encoder's patch in pixels
HEADS = ("mask_tokens.", "output_hypernetworks_mlps.", "iou_prediction_head.")  # one for each of SAM's masks


class LowRankAdapted(nn.Module):
    """A frozen projection to queries, keys and values; queries and values get a trained low-rank term.

    LoRA (Hu et al., 2022). The low-rank term starts at 0.

    Args:
        linear: maps ``[..., D]`` to ``[..., 3 D]``.
        rank: rank of the added maps.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        width = linear.in_features
        self.linear = linear
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in range(2))
        for weight in self.up.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values ``[..., 3 D]`` of ``[..., D]``."""
        query, key, value = self.linear(x).chunk(3, dim=-1)
        change = [up(down(x)) for down, up in zip(self.down, self.up, strict=True)]
        return torch.cat([query + change[0], key, value + change[1]], dim=-1)


class SAM(nn.Module):
    """Segment Anything (Kirillov et al., 2023), ViT-B, with one mask per class and without prompts.

    The parts are those of ``SamModel`` in ``transformers``, an optional package. The image encoder is frozen except for
    LoRA in its attention; the mask decoder is trained. Images of any size are resized to ``input_size`` and the masks
    back. The decoder's first mask token, which SAM uses for a single mask, has no class and its head stays frozen.
    SAM's prediction of a mask's quality is not used.

    The network has 91,493,632 parameters with the defaults and 4 classes, for grey and for RGB images; SAM's own input
    size of 1024 adds 2.4 M to the position tables.

    Args:
        in_channels: channels of the input image (1 grey, 3 RGB).
        num_classes: classes of the output, background included.
        input_size: side of the encoder's input in pixels, a multiple of 16.
        rank: rank of LoRA.
        width: width of the image encoder.
        depth: blocks of the image encoder; every third one attends to the whole image.
        heads: attention heads of the image encoder.
        window: window side of the other blocks in patches.
        decoder_width: channels of the image embedding and of the mask decoder, a multiple of 16.
        pretrained: file of SAM's weights in the naming of ``transformers``, see :meth:`load_pretrained`. None: random
            weights, for tests only.

    Raises:
        ModuleNotFoundError: if ``transformers`` is not installed.
        ValueError: if ``input_size`` is not a multiple of 16.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        input_size: int = 512,
        rank: int = 4,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        window: int = 14,
        decoder_width: int = 256,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        try:
            from transformers import SamConfig, SamModel
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"SAM needs a package that is not installed (no module '{error.name}'): pip install transformers"
            ) from None
        if input_size % PATCH:
            raise ValueError(f"input_size: expected a multiple of {PATCH}, found {input_size}.")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.input_size, self.rank, self.window = input_size, rank, window
        self.width, self.depth, self.heads, self.decoder_width = width, depth, heads, decoder_width
        model: Any = SamModel(
            SamConfig(
                vision_config={
                    "hidden_size": width,
                    "mlp_dim": 4 * width,
                    "num_hidden_layers": depth,
                    "num_attention_heads": heads,
                    "global_attn_indexes": list(range(2, depth, 3)),
                    "window_size": window,
                    "image_size": input_size,
                    "output_channels": decoder_width,
                    "num_pos_feats": decoder_width // 2,
                    "initializer_range": 0.02,
                },
                prompt_encoder_config={"hidden_size": decoder_width, "image_size": input_size},
                mask_decoder_config={
                    "hidden_size": decoder_width,
                    "mlp_dim": 8 * decoder_width,
                    "num_multimask_outputs": num_classes,
                },
            )
        )
        self.encoder = model.vision_encoder.requires_grad_(False)
        self.positions = model.shared_image_embedding.requires_grad_(False)
        self.no_mask = model.prompt_encoder.no_mask_embed
        self.decoder = model.mask_decoder
        self.class_points = nn.Embedding(num_classes, decoder_width)  # the class of a point prompt
        if pretrained is not None:
            self.load_pretrained(pretrained)
        self.decoder.iou_prediction_head = nn.Identity()
        self.decoder.output_hypernetworks_mlps[0].requires_grad_(False)
        for layer in self.encoder.layers:
            layer.attn.qkv = LowRankAdapted(layer.attn.qkv, rank)
        self.begins_with = "random weights" if pretrained is None else "pretrained weights"

    def forward(self, image: Tensor) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` of an image ``[B, C, H, W]`` in [0, 1], grey (C = 1) or RGB."""
        return self.decode(self.encode(image), image.shape[-2:])

    def encode(self, image: Tensor) -> Tensor:
        """Image embedding ``[B, decoder_width, input_size / 16, input_size / 16]`` of an image ``[B, C, H, W]``."""
        size = (self.input_size, self.input_size)
        x = F.interpolate(image, size=size, mode="bilinear").expand(-1, 3, -1, -1)
        embedding: Tensor = self.encoder(pixel_values=x).last_hidden_state
        return embedding

    def decode(
        self, embedding: Tensor, size: torch.Size, prompts: Tensor | None = None, decoder: nn.Module | None = None
    ) -> Tensor:
        """Class logits ``[B, num_classes, H, W]`` of an image embedding.

        Args:
            embedding: output of :meth:`encode`.
            size: H and W.
            prompts: output of :meth:`prompt`; None: no prompts.
            decoder: mask decoder to use instead of the network's own.
        """
        batch, width, rows, columns = embedding.shape
        device = embedding.device
        y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (rows, columns))
        grid = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1)
        masks, _ = (decoder or self.decoder)(
            image_embeddings=embedding,
            image_positional_embeddings=self._encode_positions(grid).movedim(-1, 0).expand(batch, -1, -1, -1),
            sparse_prompt_embeddings=None if prompts is None else prompts[:, None],
            dense_prompt_embeddings=self.no_mask.weight.view(1, width, 1, 1),
            multimask_output=True,
        )
        return F.interpolate(masks[:, 0], size=size, mode="bilinear")

    def prompt(self, points: Tensor, classes: Tensor) -> Tensor:
        """Embeddings ``[B, N, decoder_width]`` of points ``[B, N, 2]`` (x and y in [0, 1]) with classes ``[B, N]``."""
        return self._encode_positions(points) + self.class_points(classes)

    def _encode_positions(self, points: Tensor) -> Tensor:
        # Sines of high frequency encode the positions: bf16 is too coarse for them.
        with torch.autocast(points.device.type, enabled=False):
            encoded: Tensor = self.positions(points)
        return encoded

    def load_pretrained(self, path: str) -> None:
        """Load SAM's weights, except the heads of its masks, which are classes here.

        Position tables of another input size are interpolated. The background's point embedding starts as SAM's
        negative point, those of the other classes start as its positive point.

        Args:
            path: ``model.safetensors``, or a file of tensors such as ``pytorch_model.bin``, of
                ``facebook/sam-vit-base`` at Hugging Face.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file cannot be read or has no SAM of this size.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"pretrained: expected a file of SAM's weights, found none at '{path}'.")
        weights = _load(path)

        def fitted(name: str, own: Tensor) -> Tensor:
            value = _fitted(weights.get(name), own)
            if value is None:
                found = list(weights[name].shape) if name in weights else "none"
                raise ValueError(f"{path}: expected weights of SAM with {name} as {list(own.shape)}, found {found}.")
            return value

        parts = {
            "encoder": "vision_encoder",
            "positions": "shared_image_embedding",
            "no_mask": "prompt_encoder.no_mask_embed",
            "decoder": "mask_decoder",
        }
        state = {
            f"{part}.{name}": fitted(f"{theirs}.{name}", own)
            for part, theirs in parts.items()
            for name, own in getattr(self, part).state_dict().items()
            if part != "decoder" or not name.startswith(HEADS)
        }
        point = self.class_points.weight[:1]
        negative, positive = (fitted(f"prompt_encoder.point_embed.{kind}.weight", point) for kind in (0, 1))
        state["class_points.weight"] = torch.cat([negative, positive.expand(self.num_classes - 1, -1)])
        self.load_state_dict(state, strict=False)


def _load(path: str) -> dict[str, Tensor]:
    """Named tensors of a file in either format."""
    if not path.endswith(".safetensors"):
        return load_state(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read as tensors: {one_line(error)}") from None


def _fitted(value: Tensor | None, own: Tensor) -> Tensor | None:
    """The pretrained tensor, interpolated to the shape of ``own`` if a position table; None if it does not fit."""
    if value is None or value.shape == own.shape:
        return value
    if value.ndim == own.ndim == 4 and value.shape[-1] == own.shape[-1]:  # [1, rows, columns, D]
        return F.interpolate(value.movedim(-1, 1), size=own.shape[1:3], mode="bilinear").movedim(1, -1)
    if value.ndim == own.ndim == 2 and value.shape[1] == own.shape[1] and len(own) % 2 == len(value) % 2 == 1:
        return F.interpolate(value.T[None], size=len(own), mode="linear")[0].T  # [2 n - 1, D]
    return None
