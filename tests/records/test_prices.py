"""The unit prices: each has a source, and those that are measured or estimated follow from docs/measured and counted FLOPs."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPConfig

from flash_grpo.policies.flops import unit_flops
from flash_grpo.policies.vae import WanVideoDecoder
from flash_grpo.records.prices import WORK, load_prices
from flash_grpo.rewards.flops import clip_flops

MEASURED = Path(__file__).resolve().parents[2] / "docs/measured"
PRICES = load_prices()


@pytest.fixture(scope="module")
def flops(config):
    """FLOPs of both models as their recipes train them: LoRA and gradient checkpointing."""
    return {name: _flops(config(f"model={name}", "optim=lora")) for name in PRICES.models}


def _flops(cfg):
    with torch.device("meta"):
        transformer, vae = WanTransformer3DModel(**cfg.model.architecture), WanVideoDecoder(AutoencoderKLWan())
    return unit_flops(transformer, vae, (16, 21, 60, 104), cfg.model.max_text_tokens, cfg.optim.lora, True)


def _seconds(name="h100_bench_1p3b"):
    measured = json.loads((MEASURED / f"{name}.json").read_text())
    return {phase: numbers["seconds"] for phase, numbers in measured["phases"].items()}, measured


def test_every_price_says_how_it_is_known():
    every = [getattr(model, work) for model in PRICES.models.values() for work in WORK] + [*PRICES.rewards.values()]
    assert len(every) == 2 * 4 + 2
    for price in every:
        assert price.seconds > 0
        assert price.known in ("measured", "estimated", "reported")
        if price.known == "measured":
            assert "by bench on NVIDIA H100" in price.source
            assert (MEASURED.parents[1] / price.source.split("docs/")[1].split(":")[0].join(["docs/", ""])).is_file()
        if price.known == "estimated":
            assert "TFLOP counted" in price.source and "TFLOP/s" in price.source


def test_the_1_3b_s_prices_are_the_bench_s_seconds():
    seconds, measured = _seconds()
    model = PRICES.model("wan21_1p3b")
    assert model.device == measured["device"]
    assert model.velocity == pytest.approx(seconds["rollout"] / measured["steps"], rel=1e-3)
    assert model.update == pytest.approx(seconds["update"] / measured["transitions"], rel=1e-3)
    assert model.decode.seconds == seconds["decode"]


def test_the_14b_s_prices_are_counted_flops_at_the_1_3b_s_measured_rates(flops):
    small, large = PRICES.model("wan21_1p3b"), PRICES.model("wan21_14b")
    for work in ("forward", "recompute", "backward"):
        rate = getattr(flops["wan21_1p3b"], work) / getattr(small, work).seconds
        assert getattr(large, work).seconds == pytest.approx(getattr(flops["wan21_14b"], work) / rate, rel=1e-3)
        assert f"{getattr(flops['wan21_14b'], work) / 1e12:.1f} TFLOP counted" in getattr(large, work).source
    assert flops["wan21_14b"].decode == flops["wan21_1p3b"].decode
    assert large.decode.seconds == small.decode.seconds


def test_the_rewards_prices_are_what_their_sources_say():
    assert PRICES.reward("hpsv3").seconds == pytest.approx(0.103 * 81)
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    of_an_image = clip_flops(
        CLIPConfig(vision_config={**vision, "patch_size": 14}, text_config=text, projection_dim=1024)
    )
    frames = len(range(0, 81, 4))  # conf/reward/pickscore.yaml
    assert PRICES.reward("pickscore").seconds == pytest.approx(frames * of_an_image / 67e12, rel=1e-3)


@pytest.mark.parametrize("file", sorted(MEASURED.glob("h100_bench_*.json")), ids=lambda file: file.stem)
def test_the_measured_rates_are_of_what_is_computed(file, flops):
    seconds, measured = _seconds(file.stem)
    unit = flops["wan21_1p3b"]
    update = 2 * measured["transitions"] * (unit.forward + unit.backward + unit.recompute)
    assert measured["phases"]["update"]["tflop_per_second"] == pytest.approx(
        update / 1e12 / seconds["update"], rel=1e-3
    )
    assert measured["phases"]["decode"]["tflop_per_second"] == pytest.approx(
        unit.decode / 1e12 / seconds["decode"], rel=1e-3
    )
    assert measured["tflop_per_backward"] == pytest.approx((unit.backward + unit.recompute) / 1e12, rel=1e-3)


@pytest.mark.parametrize(("kind", "known"), [("model", "wan21_1p3b, wan21_14b"), ("reward", "hpsv3, pickscore")])
def test_an_unknown_name_is_refused_with_the_known_ones(kind, known):
    with pytest.raises(ValueError, match=known) as caught:
        getattr(PRICES, kind)("gpt2")
    assert "gpt2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_price_without_a_source_is_not_read(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text("[models]\n[rewards.guess]\nseconds = 1.0\n")
    with pytest.raises(TypeError, match="source"):
        load_prices(file)
