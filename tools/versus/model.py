"""VITA-1.5 in PyTorch, written for speed: fused qkv and gate/up weights, a static KV cache, grouped-query
attention by SDPA, and no shape, address or position that a CUDA graph could not keep.

Weights are held once, in the checkpoint's type. Every function computes in the type of its input and casts
weights to it as it goes: rows in f32 give the f32 reference, rows in bf16 what PyTorch makes of the model.
Layers are functions over named tuples of weights, so one compiled layer serves all layers of its kind."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import synth

IMAGE, SOUND = -200, -500


class TextLayer(NamedTuple):
    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


class VisionLayer(NamedTuple):
    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    ls1: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor
    ls2: Tensor


class WhaleLayer(NamedTuple):
    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    pos_bias_u: Tensor
    out: Tensor
    out_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    w_1: Tensor
    w_1_bias: Tensor
    w_2: Tensor
    w_2_bias: Tensor


class TextSizes(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    eps: float


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.linear(x, w.to(x.dtype), None if b is None else b.to(x.dtype))


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w.to(x.dtype), eps)


def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w.to(x.dtype), b.to(x.dtype), eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + d/2) of `[B, T, heads, d]`; `sin` carries the sign of either half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def text_layer(x, h, w, next_norm, k_cache, v_cache, cos, sin, at, kv_len, sizes, packed):
    """`x` `[B, T, C]` is the residual stream, `h` the same after this layer's first norm; returns both for
    the next. One row attends to `kv_len` rows of the cache, several to themselves. `packed` hands the query
    heads of a kv head to SDPA as rows, which is the same for one row and spares the kernel the grouping."""
    (n, t, _), (heads, kv_heads, d, eps) = x.shape, sizes
    qkv = linear(h, w.qkv, w.qkv_bias).view(n, t, heads + 2 * kv_heads, d)
    qk = rotated(qkv[:, :, : heads + kv_heads], cos, sin)
    q, k = qk[:, :, :heads].transpose(1, 2), qk[:, :, heads:].transpose(1, 2)
    v = qkv[:, :, heads + kv_heads :].transpose(1, 2)
    k_cache.index_copy_(2, at, k)
    v_cache.index_copy_(2, at, v)
    grouped = heads != kv_heads
    if t > 1:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        y = y.transpose(1, 2)
    else:
        k, v = k_cache[:, :, :kv_len], v_cache[:, :, :kv_len]
        if packed:
            y = F.scaled_dot_product_attention(q.reshape(n, kv_heads, heads // kv_heads, d), k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    x = x + linear(y.reshape(n, t, heads * d), w.o)
    gate, up = linear(rms_norm(x, w.norm2, eps), w.gate_up).chunk(2, -1)
    x = x + linear(F.silu(gate) * up, w.down)
    return x, rms_norm(x, next_norm, eps)


def vision_layer(x, w, heads, eps):
    n, t, c = x.shape
    qkv = linear(layer_norm(x, w.norm1, w.norm1_bias, eps), w.qkv, w.qkv_bias)
    q, k, v = (y.transpose(1, 2) for y in qkv.view(n, t, 3, heads, c // heads).unbind(2))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
    x = torch.addcmul(x, linear(y, w.proj, w.proj_bias), w.ls1.to(x.dtype))
    y = F.gelu(linear(layer_norm(x, w.norm2, w.norm2_bias, eps), w.fc1, w.fc1_bias))
    return torch.addcmul(x, linear(y, w.fc2, w.fc2_bias), w.ls2.to(x.dtype))


def whale_layer(x, w, p, p_bias, hidden, heads):
    """Scores (q + u)·k + (q + v)·p = q·(k + p) + (u·k + v·p): plain attention over k + p with a bias per
    key. `p` `[T, C]` and `p_bias` = v·p `[heads, T]` depend on the weights alone; `hidden` is 0 or -inf, if
    anything."""
    n, t, c = x.shape
    d = c // heads
    qkv = linear(layer_norm(x, w.norm1, w.norm1_bias, 1e-5), w.qkv, w.qkv_bias)
    q, k, v = (y.transpose(1, 2) for y in qkv.view(n, t, 3, heads, d).unbind(2))
    bias = ((k * w.pos_bias_u.to(x.dtype)[:, None]).sum(-1) + p_bias) * d**-0.5
    bias = bias[:, :, None].expand(n, heads, t, t)
    if hidden is not None:
        bias = bias + hidden
    y = F.scaled_dot_product_attention(q, k + p.view(t, heads, d).transpose(0, 1), v, attn_mask=bias)
    x = x + linear(y.transpose(1, 2).reshape(n, t, c), w.out, w.out_bias)
    y = F.relu(linear(layer_norm(x, w.norm2, w.norm2_bias, 1e-5), w.w_1, w.w_1_bias))
    return x + linear(y, w.w_2, w.w_2_bias)


def greedy(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    logits = linear(h, w)
    return logits, logits.argmax(-1)


@dataclass
class Layers:
    """What runs a layer: the functions above, or the same compiled."""

    text: Callable = text_layer
    vision: Callable = vision_layer
    whale: Callable = whale_layer
    greedy: Callable = greedy

    def compiled(self, **options) -> "Layers":
        one = {"dynamic": False, "fullgraph": True, "options": options or None}
        return Layers(*(torch.compile(f, **one) for f in (self.text, self.vision, self.whale, self.greedy)))


@contextmanager
def attention_by(name: str):
    """SDPA with the one backend `name` (cudnn, flash, efficient, math); `auto` leaves the choice to
    PyTorch."""
    if name == "auto":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    with sdpa_kernel([getattr(SDPBackend, names.get(name, "MATH"))]):
        yield


class Cache:
    """Keys and values of every layer, `[B, kv heads, rows, head dim]` each."""

    def __init__(self, model: "Vita", batch: int, rows: int, dtype: torch.dtype):
        s = model.sizes
        shape = (model.depth, batch, s.kv_heads, rows, s.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=model.device)
        self.v = torch.zeros(shape, dtype=dtype, device=model.device)

    def fill(self, seed: int) -> None:
        """Noise of the size that keys and values of a prompt have, the same in every type."""
        for i, layer in enumerate((*self.k, *self.v)):
            g = torch.Generator(layer.device).manual_seed(seed + i)
            layer.copy_(torch.randn(layer.shape, generator=g, device=layer.device, dtype=torch.bfloat16))


def frames_after_convs(frames: int) -> int:
    for _ in range(2):
        frames = (frames - 3) // 2 + 1
    return frames


def rows_of_sound(frames: int) -> int:
    """The length of ones(frames)[2::2][2::2][0::2]."""
    for _ in range(2):
        frames = (frames - 1) // 2
    return (frames + 1) // 2


class Vita:
    def __init__(self, cfg: dict, device="cpu", weight: Callable[[str, tuple], Tensor] | None = None):
        """`weight` gives a tensor by its name in the checkpoint and its shape; by default it is
        synthesised."""
        self.cfg, self.device = cfg, torch.device(device)
        self.dtype = getattr(torch, cfg["dtype"])
        if weight is None:

            def weight(name, shape):
                return synth.weight(cfg.get("seed", 0), name, shape, self.dtype, self.device)

        self.weight = weight
        self.load_text()
        self.vision_layers: list[VisionLayer] = []
        self.whale_layers: list[WhaleLayer] = []
        if "vision_config" in cfg:
            self.load_vision(cfg["vision_config"])
        if "audio_config" in cfg:
            self.load_audio(cfg["audio_config"])
        self.position_tables: dict = {}

    # Weights.

    def get(self, name: str, *shape: int) -> Tensor:
        return self.weight(name, shape).to(self.device)

    def stack(self, names: list[str], rows: list[int], *rest: int) -> Tensor:
        """Several tensors in one, the rows of one after those of the other."""
        out = torch.empty(sum(rows), *rest, dtype=self.dtype, device=self.device)
        for name, part in zip(names, out.split(rows)):
            part.copy_(self.get(name, *part.shape))
        return out

    def load_text(self) -> None:
        cfg, c = self.cfg, self.cfg["hidden_size"]
        h, g = cfg["num_attention_heads"], cfg["num_key_value_heads"]
        d, f, self.depth = cfg.get("head_dim", c // h), cfg["intermediate_size"], cfg["num_hidden_layers"]
        self.vocab, self.width = cfg["vocab_size"], c
        self.sizes = TextSizes(h, g, d, cfg.get("rms_norm_eps", 1e-6))
        self.embed = self.get("model.embed_tokens.weight", self.vocab, c)
        self.text_layers = []
        for i in range(self.depth):
            at = f"model.layers.{i}."
            qkv = [f"{at}self_attn.{x}_proj" for x in "qkv"]
            rows = [h * d, g * d, g * d]
            layer = TextLayer(
                norm1=self.get(f"{at}input_layernorm.weight", c),
                qkv=self.stack([f"{x}.weight" for x in qkv], rows, c),
                qkv_bias=self.stack([f"{x}.bias" for x in qkv], rows),
                o=self.get(f"{at}self_attn.o_proj.weight", c, h * d),
                norm2=self.get(f"{at}post_attention_layernorm.weight", c),
                gate_up=self.stack([f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight"], [f, f], c),
                down=self.get(f"{at}mlp.down_proj.weight", c, f),
            )
            self.text_layers.append(layer)
        self.norm = self.get("model.norm.weight", c)
        tied = cfg.get("tie_word_embeddings")
        self.lm_head = self.embed if tied else self.get("lm_head.weight", self.vocab, c)

    def load_vision(self, cfg: dict) -> None:
        c, f, p = cfg["hidden_size"], cfg["intermediate_size"], cfg["patch_size"]
        self.patch, self.tile = p, cfg["image_size"]
        self.vision_heads, self.vision_eps = cfg["num_attention_heads"], cfg.get("layer_norm_eps", 1e-6)
        at = "model.vision_tower.vision_tower."
        self.class_token = self.get(f"{at}embeddings.class_embedding", 1, 1, c)
        tokens = (self.tile // p) ** 2 + 1
        self.positions = self.get(f"{at}embeddings.position_embedding", 1, tokens, c)
        patch = self.get(f"{at}embeddings.patch_embedding.weight", c, 3, p, p).flatten(1)
        # Rows of whole 16 bytes, without which cuBLAS takes a slow kernel.
        self.patch_weight = F.pad(patch, (0, -patch.shape[1] % 8))
        self.patch_bias = self.get(f"{at}embeddings.patch_embedding.bias", c)
        for i in range(cfg["num_hidden_layers"]):

            def get(name, *shape, of=f"{at}encoder.layers.{i}."):
                return self.get(of + name, *shape)

            layer = VisionLayer(
                *(get("norm1.weight", c), get("norm1.bias", c)),
                *(get("attn.qkv.weight", 3 * c, c), get("attn.qkv.bias", 3 * c)),
                *(get("attn.proj.weight", c, c), get("attn.proj.bias", c), get("ls1", c)),
                *(get("norm2.weight", c), get("norm2.bias", c)),
                *(get("mlp.fc1.weight", f, c), get("mlp.fc1.bias", f)),
                *(get("mlp.fc2.weight", c, f), get("mlp.fc2.bias", c), get("ls2", c)),
            )
            self.vision_layers.append(layer)
        w = self.width
        at = "model.mm_projector."
        self.projector = (
            *(self.get(f"{at}0.weight", w, 4 * c), self.get(f"{at}0.bias", w)),
            *(self.get(f"{at}2.weight", w, w), self.get(f"{at}2.bias", w)),
        )

    def load_audio(self, cfg: dict) -> None:
        c, f, bins = cfg["hidden_size"], cfg["intermediate_size"], cfg["input_dim"]
        h, taps = cfg["num_attention_heads"], cfg.get("adapter_kernel_size", 5)
        self.whale_heads, self.taps, self.bins = h, taps, bins
        at = "model.audio_encoder.encoder."
        self.cmvn = (self.get(f"{at}global_cmvn.mean", bins), self.get(f"{at}global_cmvn.istd", bins))

        def channels_last(w):
            return w.contiguous(memory_format=torch.channels_last)

        conv = f"{at}enc.0.core.conv."
        self.convs = [
            (channels_last(self.get(f"{conv}{i}.weight", c, k, 3, 3)), self.get(f"{conv}{i}.bias", c))
            for i, k in ((0, 1), (2, c))
        ]
        # The checkpoint's columns are channel by channel; a channels-last convolution gives bin by bin.
        left = frames_after_convs(bins)
        out = self.get(f"{at}enc.0.core.out.0.weight", c, c * left).view(c, c, left)
        self.sub = (out.transpose(1, 2).reshape(c, left * c), self.get(f"{at}enc.0.core.out.0.bias", c))
        at = f"{at}enc.1."
        self.whale_in = (
            *(self.get(f"{at}embed.0.weight", c, c), self.get(f"{at}embed.0.bias", c)),
            *(self.get(f"{at}embed.1.weight", c), self.get(f"{at}embed.1.bias", c)),
        )
        self.whale_pos = []
        for i in range(cfg["num_hidden_layers"]):

            def get(name, *shape, of=f"{at}encoders.{i}."):
                return self.get(of + name, *shape)

            qkv = [f"{at}encoders.{i}.self_attn.linear_{x}" for x in "qkv"]
            layer = WhaleLayer(
                *(get("norm1.weight", c), get("norm1.bias", c)),
                self.stack([f"{x}.weight" for x in qkv], [c, c, c], c),
                self.stack([f"{x}.bias" for x in qkv], [c, c, c]),
                get("self_attn.pos_bias_u", h, c // h),
                *(get("self_attn.linear_out.weight", c, c), get("self_attn.linear_out.bias", c)),
                *(get("norm2.weight", c), get("norm2.bias", c)),
                *(get("feed_forward.w_1.weight", f, c), get("feed_forward.w_1.bias", f)),
                *(get("feed_forward.w_2.weight", c, f), get("feed_forward.w_2.bias", c)),
            )
            self.whale_layers.append(layer)
            self.whale_pos.append(
                (get("self_attn.linear_pos.weight", c, c), get("self_attn.pos_bias_v", h, c // h))
            )
        self.after_norm = (self.get(f"{at}after_norm.weight", c), self.get(f"{at}after_norm.bias", c))
        at = "model.audio_encoder.adpter."
        taps_weight = self.get(f"{at}conv1d2.weight", 2 * c, c, taps)
        self.adapter = (
            *(channels_last(taps_weight.unsqueeze(2)), self.get(f"{at}conv1d2.bias", 2 * c)),
            *(self.get(f"{at}bn2.weight", 2 * c), self.get(f"{at}bn2.bias", 2 * c)),
            *(self.get(f"{at}project.weight", self.width, 2 * c), self.get(f"{at}project.bias", self.width)),
        )

    # Tables that follow from the weights or the config alone.

    def rope(self, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`[rows, 1, d]`: cosines and signed sines of both halves."""
        key = ("rope", rows, dtype)
        if key not in self.position_tables:
            d = self.sizes.head_dim
            i = torch.arange(0, d, 2, dtype=torch.float32, device=self.device)
            rate = 1 / self.cfg.get("rope_theta", 1e6) ** (i / d)
            angle = torch.arange(rows, dtype=torch.float32, device=self.device)[:, None] * rate
            cos, sin = angle.cos(), angle.sin()
            tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
            self.position_tables[key] = tuple(t[:, None].to(dtype) for t in tables)
        return self.position_tables[key]

    def whale_tables(self, t: int, dtype: torch.dtype) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """For each layer linear_pos(pe) `[t, C]` and v·linear_pos(pe) `[heads, t]`; and the mask, 0 or
        -inf."""
        key = ("whale", t, dtype)
        if key not in self.position_tables:
            c, cfg = self.whale_in[0].shape[0], self.cfg["audio_config"]
            rate = 10000 ** (-torch.arange(0, c, 2, dtype=torch.float64, device=self.device) / c)
            angle = torch.arange(t, dtype=torch.float64, device=self.device)[:, None] * rate
            pe = torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()
            tables = []
            for w, v in self.whale_pos:
                p = linear(pe, w)
                bias = (p.view(t, self.whale_heads, -1).transpose(0, 1) * v.float()[:, None]).sum(-1)
                tables.append((p.to(dtype), bias.to(dtype)))
            hidden, size, left = None, cfg.get("chunk_size", -1), cfg.get("left_chunks", -1)
            if size > 0:
                chunk = torch.arange(t, device=self.device) // size
                seen = chunk[None] <= chunk[:, None]
                if left >= 0:
                    seen &= chunk[None] >= chunk[:, None] - left
                hidden = torch.zeros(t, t, dtype=dtype, device=self.device).masked_fill(~seen, -math.inf)
            self.position_tables[key] = (tables, hidden)
        return self.position_tables[key]

    # Steps.

    def see(self, pixels: Tensor, layers: Layers = Layers()) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles `[n, 3, S, S]` to the last layer's output, its pixel shuffle, and rows of the language
        model."""
        n, p, grid = len(pixels), self.patch, self.tile // self.patch
        x = pixels.view(n, 3, grid, p, grid, p).permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, 3 * p * p)
        x = linear(F.pad(x, (0, -x.shape[-1] % 8)), self.patch_weight, self.patch_bias)
        x = torch.cat([self.class_token.to(x.dtype).expand(n, -1, -1), x], 1) + self.positions.to(x.dtype)
        for w in self.vision_layers:
            x = layers.vision(x, w, self.vision_heads, self.vision_eps)
        y = (0.5 * x[:, 1:]).view(n, grid // 2, 2, grid // 2, 2, -1)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, grid * grid // 4, -1)
        w0, b0, w2, b2 = self.projector
        return x, y, linear(F.gelu(linear(y, w0, b0)), w2, b2)

    def hear(
        self, fbank: Tensor, dtype: torch.dtype, layers: Layers = Layers()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel frames `[1, T, bins]` in f32 to the subsampled frames, the encoder's output and the
        adapter's."""
        mean, istd = self.cmvn
        x = ((fbank - mean.float()) * istd.float()).to(dtype)[:, None]
        for w, b in self.convs:
            x = F.relu(F.conv2d(x, w.to(dtype), b.to(dtype), stride=2))
            x = x.contiguous(memory_format=torch.channels_last)
        sub = linear(x.permute(0, 2, 3, 1).flatten(2), *self.sub)
        t, c = sub.shape[1:]
        w, b, norm, norm_bias = self.whale_in
        x = F.relu(layer_norm(linear(sub, w, b), norm, norm_bias, 1e-5)) * math.sqrt(c)
        tables, hidden = self.whale_tables(t, dtype)
        for w, (p, p_bias) in zip(self.whale_layers, tables):
            x = layers.whale(x, w, p, p_bias, hidden, self.whale_heads)
        enc = layer_norm(x, *self.after_norm, 1e-5)
        w, b, norm, norm_bias, project, project_bias = self.adapter
        x = F.pad(enc, (0, 0, 0, self.taps - 1)).transpose(1, 2).unsqueeze(2)
        x = F.conv2d(x, w.to(dtype), b.to(dtype), stride=(1, 2)).squeeze(2).transpose(1, 2)
        return sub, enc, linear(F.gelu(layer_norm(x, norm, norm_bias, 1e-3)), project, project_bias)

    def merge(self, ids: Tensor, media: Tensor) -> Tensor:
        """Rows of the embedding table; the id -1 - i stands for row i of `media`."""
        x = self.embed[ids.clamp(min=0)].to(media.dtype)
        return torch.where((ids < 0)[..., None], media[(-1 - ids).clamp(min=0)], x)

    def think(
        self,
        x: Tensor,
        cache: Cache,
        at: Tensor,
        kv_len: int,
        layers: Layers = Layers(),
        packed: bool = False,
        rope_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows `[B, T, C]` at the positions `at` `[T]` to hidden states after the final norm. One row attends
        to the first `kv_len` rows of the cache, its own included; several are a prompt from position 0."""
        cos, sin = (t[at] for t in self.rope(cache.k.shape[3], rope_dtype or x.dtype))
        norms = [w.norm1 for w in self.text_layers] + [self.norm]
        h = rms_norm(x, norms[0], self.sizes.eps)
        for i, w in enumerate(self.text_layers):
            x, h = layers.text(
                x, h, w, norms[i + 1], cache.k[i], cache.v[i], cos, sin, at, kv_len, self.sizes, packed
            )
        return h
