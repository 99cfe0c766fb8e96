"""Draw random numbers by key. Nothing in the suite reads global RNG state.

A draw is a pure function of its key, for instance `(seed, iteration, prompt, sibling, "sde", step)`. So every rank knows
every plan without communication, rollouts do not depend on ranks or micro-batches, and a resumed run redraws what it drew.

NumPy's Philox takes the 128-bit hash of the key whole; torch's CPU generator keeps 32 bits of a seed, few enough for two
of a long run's millions of keys to collide.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch


def generator(*key: int | str) -> np.random.Generator:
    """Return the generator that belongs to the key."""
    return np.random.Generator(np.random.Philox(key=_words(key)))


def uniform(*key: int | str) -> float:
    """Draw a float in [0, 1)."""
    return float(generator(*key).random())


def integer(low: int, high: int, *key: int | str) -> int:
    """Draw an integer in low..high, both included."""
    return int(generator(*key).integers(low, high + 1))


def permutation(n: int, *key: int | str) -> list[int]:
    """Draw an order of 0..n-1."""
    return generator(*key).permutation(n).tolist()


def normal(shape: tuple[int, ...], *key: int | str) -> torch.Tensor:
    """Draw standard normal float32, made on the CPU so that every device sees the same noise."""
    return normals(shape, [key])[0]


def normals(shape: tuple[int, ...], key_N: Sequence[tuple[int | str, ...]]) -> torch.Tensor:
    """Draw as `normal` does, for each key [N, ...].

    One Philox is set to each key in turn: to make one takes about as long as to draw a small latent.
    """
    philox = np.random.Philox(key=0)
    fresh, draw = philox.state, np.random.Generator(philox)
    drawn = np.empty((len(key_N), math.prod(shape)), dtype=np.float32)
    for key, row in zip(key_N, drawn, strict=True):
        fresh["state"]["key"] = _words(key)
        philox.state = fresh
        draw.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(drawn).reshape(len(key_N), *shape)


def _words(key: tuple[int | str, ...]) -> np.ndarray:
    """Return the hash of a key as Philox takes it, two words of 64 bits."""
    return np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), dtype="<u8")
