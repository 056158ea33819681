from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.networks import SAM
from scripts.networks.sam import LowRankAdapted
from tests.methods.common import needs_sam, thin_sam

TINY: dict[str, Any] = {"input_size": 64, "width": 24, "depth": 3, "heads": 2, "window": 3, "decoder_width": 32}


def test_low_rank_adaptation() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 18)
    adapted, x = LowRankAdapted(linear, 2), torch.randn(5, 6)
    torch.testing.assert_close(adapted(x), linear(x))
    for up in adapted.up:
        torch.nn.init.normal_(up.weight)
    weight = linear.weight.detach().clone()
    for part, (up, down) in zip((0, 2), zip(adapted.up, adapted.down, strict=True), strict=True):
        weight[6 * part : 6 * part + 6] += up.weight @ down.weight
    torch.testing.assert_close(adapted(x), x @ weight.T + linear.bias)


@needs_sam
def test_what_is_trained() -> None:
    for name, p in thin_sam().named_parameters():
        lora = ".down." in name or ".up." in name
        frozen = name.startswith(("encoder.", "positions.")) or "output_hypernetworks_mlps.0." in name
        assert p.requires_grad is (lora or not frozen), name


@needs_sam
@torch.no_grad()
def test_it_is_the_librarys_model_with_one_mask_per_class() -> None:
    from transformers import SamConfig, SamModel

    network = thin_sam().eval()
    for layer in network.encoder.layers:
        for up in layer.attn.qkv.up:
            up.weight.zero_()
    config = {"hidden_size": 32, "image_size": 64}
    vision = {"hidden_size": 24, "mlp_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64}
    vision |= {"global_attn_indexes": [2], "window_size": 3, "output_channels": 32, "num_pos_feats": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 256, "num_multimask_outputs": 4}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=config, mask_decoder_config=decoder)).eval()
    encoder = {k.replace("qkv.linear.", "qkv."): v for k, v in network.encoder.state_dict().items()}
    model.vision_encoder.load_state_dict({k: v for k, v in encoder.items() if ".down." not in k and ".up." not in k})
    model.mask_decoder.load_state_dict(network.decoder.state_dict(), strict=False)
    model.shared_image_embedding.load_state_dict(network.positions.state_dict())
    model.prompt_encoder.shared_embedding.load_state_dict(network.positions.state_dict())
    model.prompt_encoder.no_mask_embed.load_state_dict(network.no_mask.state_dict())
    model.prompt_encoder.not_a_point_embed.weight.zero_()
    image = torch.rand(2, 3, 64, 64)
    expected = torch.nn.functional.interpolate(
        model(pixel_values=image).pred_masks[:, 0], size=(64, 64), mode="bilinear"
    )
    torch.testing.assert_close(network(image), expected)

    for kind in (0, 1):
        model.prompt_encoder.point_embed[kind].weight.copy_(network.class_points.weight[kind : kind + 1])
    pixels = torch.tensor([[[3, 5], [40, 60]], [[0, 0], [63, 1]]])
    points = model.prompt_encoder._embed_points(pixels[:, None].float(), torch.tensor([[[0, 1]]] * 2), pad=False)
    torch.testing.assert_close(network.prompt((pixels + 0.5) / 64, torch.tensor([[0, 1]] * 2)), points[:, 0])


@needs_sam
@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (40, 90, 1)])
@torch.no_grad()
def test_any_size_goes_in(height: int, width: int, channels: int) -> None:
    network = thin_sam(in_channels=channels).eval()
    assert network(torch.rand(2, channels, height, width)).shape == (2, 4, height, width)


@needs_sam
def test_starting_from_sams_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import SamConfig, SamModel

    torch.manual_seed(5)
    vision = {"hidden_size": 24, "mlp_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96}
    vision |= {"global_attn_indexes": [2], "window_size": 3, "output_channels": 32, "num_pos_feats": 16}
    config = {"hidden_size": 32, "image_size": 96}
    model = SamModel(
        SamConfig(
            vision_config=vision,
            prompt_encoder_config=config,
            mask_decoder_config={"hidden_size": 32, "mlp_dim": 256},
        )
    )
    torch.nn.init.normal_(model.vision_encoder.pos_embed)
    state = {name: value.detach().contiguous().clone() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "sam.bin")
    save_file(state, tmp_path / "sam.safetensors")
    torch.manual_seed(0)
    first, second = (SAM(**TINY, pretrained=str(tmp_path / f"sam.{end}")) for end in ("bin", "safetensors"))
    for network in (first, second):
        assert network.begins_with == "pretrained weights"
        assert torch.equal(
            network.encoder.layers[1].attn.qkv.linear.weight, state["vision_encoder.layers.1.attn.qkv.weight"]
        )
        assert torch.equal(network.decoder.upscale_conv1.weight, state["mask_decoder.upscale_conv1.weight"])
        points = [state[f"prompt_encoder.point_embed.{kind}.weight"][0] for kind in (0, 1, 1, 1)]
        assert torch.equal(network.class_points.weight, torch.stack(points))
        table = torch.nn.functional.interpolate(
            state["vision_encoder.pos_embed"].movedim(-1, 1), size=(4, 4), mode="bilinear"
        )
        torch.testing.assert_close(network.encoder.pos_embed.movedim(-1, 1), table)
    assert not torch.equal(first.decoder.mask_tokens.weight[:4], state["mask_decoder.mask_tokens.weight"])

    state.pop("vision_encoder.layers.0.attn.qkv.weight")
    torch.save(state, tmp_path / "partial.bin")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08" + bytes(20))
    for file, found in (("partial.bin", "attn.qkv.weight"), ("broken.safetensors", "cannot be read")):
        with pytest.raises(ValueError, match=found):
            SAM(**TINY, pretrained=str(tmp_path / file))
    with pytest.raises(FileNotFoundError, match="found none at"):
        SAM(**TINY, pretrained=str(tmp_path / "none.bin"))


@needs_sam
def test_input_size_is_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        SAM(**{**TINY, "input_size": 60})


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        SAM()
