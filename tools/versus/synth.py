"""Synthetic weights: every value a pure function of (seed, tensor name, element index), made on the device.

The same bits as `vivace synth`. torch has no unsigned 64-bit arithmetic, so signed words stand in for it:
sums and products wrap alike, and shifts to the right clear what the sign filled in."""

import math

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Elements filled at once: bounds what the 64-bit words need beside the weights.
CHUNK = 1 << 26


def signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    z = (z ^ shifted(z, 30)).mul_(signed(FIRST))
    z = (z ^ shifted(z, 27)).mul_(signed(SECOND))
    return z ^ shifted(z, 31)


def mix_word(z: int) -> int:
    mask = (1 << 64) - 1
    z = (z ^ z >> 30) * FIRST & mask
    z = (z ^ z >> 27) * SECOND & mask
    return z ^ z >> 31


def state_of(seed: int, name: str) -> int:
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return mix_word(seed ^ h)


def f32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


def noise(
    seed: int, name: str, shape, centre: float, scale: float, dtype=torch.float32, device="cpu"
) -> Tensor:
    """Uniform in `centre ± scale`. Two roundings in f32, then one to `dtype`."""
    out = torch.empty(math.prod(shape), dtype=dtype, device=device)
    state, centre, scale = state_of(seed, name), f32(centre), f32(scale)
    for at in range(0, out.numel(), CHUNK):
        part = out[at : at + CHUNK]
        z = torch.arange(at + 1, at + 1 + part.numel(), dtype=torch.int64, device=device)
        z = mix(z.mul_(signed(GOLDEN)).add_(signed(state)))
        # 24 bits, exact in f32, and exact again after scaling by a power of two and the subtraction.
        u = shifted(z, 40).to(torch.float32).mul_(1 / 8388608).sub_(1)
        part.copy_(u.mul_(scale).add_(centre))
    return out.view(*shape)


def centre_and_scale(name: str, shape) -> tuple[float, float]:
    last = name.rsplit(".", 1)[-1]
    if name.endswith("global_cmvn.mean"):
        return 16.0, 1.0
    if name.endswith("global_cmvn.istd"):
        return 0.3, 0.02
    if last in ("ls1", "ls2"):
        return 0.3, 0.1
    if last in ("pos_bias_u", "pos_bias_v"):
        return 0.0, 0.1
    if (
        last in ("class_embedding", "position_embedding")
        or "embed_tokens" in name
        or "prompt_embeddings" in name
    ):
        return 0.0, 1.0
    if last == "bias":
        return 0.0, 0.05
    if len(shape) == 1:
        return 1.0, 0.1
    return 0.0, math.sqrt(3 / math.prod(shape[1:]))


def weight(seed: int, name: str, shape, dtype=torch.bfloat16, device="cpu") -> Tensor:
    centre, scale = centre_and_scale(name, shape)
    return noise(seed, name, shape, centre, scale, dtype, device)
