"""Count what decoding takes: FLOPs and memory of Wan's VAE, and of the tiny world's linear codec, from sizes alone."""

from dataclasses import dataclass
from math import prod

FLOAT = 4  # bytes: decoders compute in float32
RESNETS = 3  # of a stage


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder. parameters: all that is loaded, encoder included. temporal, spatial: what it enlarges by.

    widths: channels of its four stages; none of the tiny world's linear codec. residual: a stage's enlargement keeps its
    channels (Wan2.2-TI2V-5B), which are halved otherwise. patch: pixels of a side that its last channels hold. maps: what
    it holds at its peak, see `memory.decoding`.
    """

    parameters: int
    temporal: int
    spatial: int
    widths: tuple[int, ...] = ()
    residual: bool = False
    patch: int = 1
    maps: float = 0.0

    def latent_shape(self, channels: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Return (C, F, H, W) of the latent of a video; ValueError if the sizes do not divide."""
        multiple = 2 * self.spatial if self.widths else self.spatial
        if (frames - 1) % self.temporal or height % multiple or width % multiple:
            raise ValueError(
                f"model.frames={frames}, height={height}, width={width}: frames must be 1 + a multiple of {self.temporal}, "
                f"height and width multiples of {multiple}"
            )
        return channels, 1 + (frames - 1) // self.temporal, height // self.spatial, width // self.spatial

    def video_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (F, H, W, 3) of the video of a latent."""
        _, frames, height, width = latent_shape
        return 1 + self.temporal * (frames - 1), self.spatial * height, self.spatial * width, 3

    def flops(self, latent_shape: tuple[int, ...]) -> float:
        """Return the FLOPs of decoding one video."""
        if self.widths:
            return _wan_flops(self, latent_shape)
        return 2.0 * latent_shape[0] * prod(self.video_shape(latent_shape))


# PARAMETERS of diffusers' AutoencoderKLWan, as configured for Wan2.1 and the A14B, and for Wan2.2-TI2V-5B; a test counts them.
WAN = Decoder(parameters=126_892_531, temporal=4, spatial=8, widths=(384, 384, 192, 96), maps=12.8)
WAN_5B = Decoder(
    parameters=704_688_668, temporal=4, spatial=16, widths=(1024, 1024, 512, 256), residual=True, patch=2, maps=21.4
)


def _wan_flops(decoder: Decoder, latent_shape: tuple[int, ...]) -> float:
    """Return the FLOPs of a Wan decoder: its convolutions and the attention within a frame in its middle.

    A stage has three residual blocks of two convolutions; the first two stages double frames but for the first one, the
    first three double height and width, by a convolution in the plane. 2 x inputs x outputs x kernel at each place.
    """
    channels, frames, height, width = latent_shape
    place, widths = height * width, decoder.widths
    first, *_, last = widths
    total = _conv(channels, channels, 1, frames * place) + _conv(channels, first, 27, frames * place)
    total += 4 * _conv(first, first, 27, frames * place)  # two blocks in the middle
    total += _conv(first, 4 * first, 1, frames * place) + 4.0 * frames * place**2 * first  # attention
    inputs = first
    for stage, outputs in enumerate(widths):
        here = frames * place
        total += _conv(inputs, outputs, 27, here) + (2 * RESNETS - 1) * _conv(outputs, outputs, 27, here)
        total += _conv(inputs, outputs, 1, here) if inputs != outputs else 0.0
        if stage < 2:
            total += _conv(outputs, 2 * outputs, 3, (frames - 1) * place)
            frames = 2 * frames - 1
        if stage < 3:
            place *= 4
            inputs = outputs if decoder.residual else outputs // 2
            total += _conv(outputs, inputs, 9, frames * place)
    return total + _conv(last, 3 * decoder.patch**2, 27, frames * place)


def _conv(inputs: int, outputs: int, kernel: int, places: int) -> float:
    return 2.0 * inputs * outputs * kernel * places
