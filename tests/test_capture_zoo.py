"""Whole zoos: a quick sample in every run, everything under the marker ``slow``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.capture import Captured, capture
from fxcompress.capture.check import compare

torchvision = pytest.importorskip("torchvision")
models = torchvision.models

SAMPLE = [
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "googlenet",
    "efficientnet_b0",
    "regnet_y_400mf",
    "mnasnet0_5",
]
SEGMENTATION = models.list_models(module=models.segmentation)
DETECTION_SAMPLE = "fasterrcnn_mobilenet_v3_large_fpn"
DETECTION = models.list_models(module=models.detection)
TIMM_SAMPLE = ["resnet10t", "mobilenetv4_conv_small_035", "convnext_atto", "efficientnet_lite0"]
TIMM = [
    "resnet26d", "seresnet18", "efficientnet_b0", "efficientnetv2_rw_t", "mobilenetv3_small_100", "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium", "mobileone_s0", "convnextv2_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "regnety_002", "coatnet_nano_rw_224", "maxvit_pico_rw_256",
    "levit_128s", "xcit_nano_12_p16_224", "mixer_s32_224", "poolformer_s12", "repvgg_a0", "nfnet_l0", "dm_nfnet_f0", "davit_tiny",
    "densenet121", "dla34", "dpn48b", "ghostnet_100", "hrnet_w18_small", "inception_v4", "resmlp_12_224", "gmlp_ti16_224",
    "crossvit_9_240", "cait_xxs24_224", "pit_ti_224", "twins_pcpvt_small", "visformer_tiny", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "focalnet_tiny_srf", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "nest_tiny", "pvt_v2_b0", "rexnet_100", "res2net50_26w_4s", "resnest14d", "selecsls42",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "volo_d1_224", "xception41", "repvit_m0_9", "hgnetv2_b0", "inception_next_atto",
    "caformer_s18", "beit_base_patch16_224", "eva02_tiny_patch14_224", "hiera_tiny_224", "vovnet39a", "cspdarknet53", "gcresnet33ts",
    "haloregnetz_b", "lambda_resnet26t", "botnet26t_256", "bat_resnext26ts", "skresnet18", "lcnet_050", "tinynet_e",
]  # fmt: skip
FIXED_SIZE = (
    "vit", "maxvit", "swin", "deit", "mixer", "mlp", "cait", "coat", "volo", "tnt", "nest", "halo", "lambda", "bot", "beit", "eva",
    "hiera", "formerv2", "focal", "xcit", "levit", "bat_",
)  # fmt: skip
HEAVY = {"vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf"}  # minutes and gigabytes each


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def captured_whole(model: nn.Module, size: int) -> Captured:
    captured = capture(model.eval(), torch.randn(2, 3, size, size))
    assert captured.step in ("fx", "export")
    assert set(captured.module.state_dict()) <= set(model.state_dict())
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert compare(model(x), captured.module(x)) is None
    return captured


def classifier(name: str) -> tuple[nn.Module, int]:
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    size = 299 if name == "inception_v3" else 224 if name.startswith(("vit", "maxvit")) else 96
    return models.get_model(name, weights=None, **options), size


@pytest.mark.parametrize("name", SAMPLE)
def test_classification_sample(name: str) -> None:
    captured = captured_whole(*classifier(name))
    assert captured.step == "fx"
    assert not any("fixed" in note for note in captured.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in models.list_models(module=models) if n not in SAMPLE and n not in HEAVY])
def test_classification(name: str) -> None:
    captured_whole(*classifier(name))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "lraspp_mobilenet_v3_large" else pytest.mark.slow) for n in SEGMENTATION]
)
def test_segmentation(name: str) -> None:
    captured_whole(models.get_model(name, weights=None, weights_backbone=None), 96)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == DETECTION_SAMPLE else pytest.mark.slow) for n in DETECTION])
def test_detection_by_parts(name: str) -> None:
    small = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 160}
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **small).eval()
    captured = capture(model, ([torch.rand(3, 96, 128)],))
    assert captured.step == "parts"
    assert any("backbone" in part.path for part in captured.parts)
    other = [torch.rand(3, 80, 100), torch.rand(3, 100, 70)]
    with torch.no_grad():
        assert compare(model(other), captured.module(other)) is None


@pytest.mark.parametrize("name", [*TIMM_SAMPLE, *(pytest.param(n, marks=pytest.mark.slow) for n in TIMM)])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    size = model.default_cfg["input_size"][-1] if any(k in name for k in FIXED_SIZE) else 96
    captured_whole(model, size)


def transformer(name: str) -> nn.Module:
    t = pytest.importorskip("transformers")
    small: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
    vit: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 8,
    }
    heads: dict[str, Any] = {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}
    made: dict[str, Any] = {
        "resnet": lambda: t.ResNetForImageClassification(t.ResNetConfig(embedding_size=8, **small)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**vit, num_labels=5)),
        "vit-eager": lambda: t.ViTModel(t.ViTConfig(**vit, attn_implementation="eager")),
        "convnext": lambda: t.ConvNextForImageClassification(t.ConvNextConfig(**small)),
        "segformer": lambda: t.SegformerForSemanticSegmentation(t.SegformerConfig(**small, **heads)),
    }
    return made[name]()


@pytest.mark.parametrize("name", ["resnet", "vit", "vit-eager", "convnext", "segformer"])
def test_transformers(name: str) -> None:
    model = transformer(name).eval()
    captured = capture(model, {"pixel_values": torch.randn(1, 3, 64, 64)})
    assert captured.step == "fx"
    assert set(captured.module.state_dict()) == set(model.state_dict())
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected, actual = model(pixel_values=x), captured.module(pixel_values=x)
    assert type(actual) is type(expected)
    assert compare(expected, actual) is None
