import pytest
import torch

from flash_grpo.tiny_world.clips import captions, render
from flash_grpo.tiny_world.codec import LinearVideoCodec


def clips(seed: int, copies: int = 8) -> torch.Tensor:
    return render(captions() * copies, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def codec() -> LinearVideoCodec:
    return LinearVideoCodec.fit(clips(0))


def test_unseen_clips_come_back_at_29_decibels_or_more(codec):
    video = clips(1)
    assert -10 * (codec.decode(codec.encode(video)) - video).square().mean().log10() > 29


def test_the_latent_is_float32_16x3x4x4_of_unit_variance(codec):
    latent = codec.encode(clips(0))
    assert latent.dtype == torch.float32
    assert latent.shape[1:] == codec.latent_shape(9, 16, 16) == (16, 3, 4, 4)
    assert 0.9 < latent.std() < 1.1


@pytest.mark.parametrize("size", [(10, 16, 16), (9, 18, 16), (9, 16, 18)])
def test_a_video_that_does_not_divide_into_patches_is_refused(codec, size):
    with pytest.raises(ValueError, match="multiple"):
        codec.latent_shape(*size)


def test_encoding_what_was_decoded_gives_the_latent_back(codec):
    latent = torch.randn(4, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(latent)), latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("frame", "latent_frame"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_pixel_reaches_one_latent_only_as_in_wans_layout(codec, frame, latent_frame):
    video = clips(1, copies=1)[:1]
    changed = video.clone()
    changed[0, frame, 9, 6] += 1  # row 2, column 1 of the 4x4 patches
    difference_FHW = (codec.encode(changed) - codec.encode(video)).abs().sum((0, 1))
    assert (difference_FHW > 1e-4).nonzero().tolist() == [[latent_frame, 2, 1]]


def test_gradients_pass_where_the_video_leaves_the_unit_range(codec):
    latent = (10 * torch.ones(1, 16, 3, 4, 4)).requires_grad_()
    video = codec.decode(latent)
    assert video.min() < 0 or video.max() > 1
    video.sum().backward()
    assert (latent.grad != 0).all()


def test_a_saved_codec_decodes_as_before(codec, tmp_path):
    codec.save_pretrained(tmp_path / "vae")
    loaded = LinearVideoCodec.from_pretrained(tmp_path, subfolder="vae")
    latent = codec.encode(clips(1, copies=1))
    assert (tmp_path / "vae" / "config.json").is_file()
    assert loaded.decode(latent).equal(codec.decode(latent))
    assert loaded.encode(clips(1, copies=1)).equal(latent)
