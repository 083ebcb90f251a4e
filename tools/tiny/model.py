"""VITA in PyTorch: InternViT, Whale and Qwen2 joined as in VITA-1.5.

The modules are named as the checkpoint's tensors are, so `state_dict` is the checkpoint. Sounds of a batch
are padded on the right and masked; without padding the result is that of one sound alone."""

import json
import math
from pathlib import Path

from needs import need_modules

need_modules("torch", "safetensors")

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frames_after_convs(frames):
    """Frames that the two strided convolutions leave, T2."""
    for _ in range(2):
        frames = (frames - 3) // 2 + 1
    return frames


def rows_of_sound(frames):
    """Rows of the language model for `frames` log-mel frames: the length of
    ones(frames)[2::2][2::2][0::2]."""
    for _ in range(2):
        frames = (frames - 1) // 2
    return (frames + 1) // 2


class VisionEmbeddings(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c, p, grid = cfg["hidden_size"], cfg["patch_size"], cfg["image_size"] // cfg["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, c))
        self.position_embedding = nn.Parameter(torch.zeros(1, grid * grid + 1, c))
        self.patch_embedding = nn.Conv2d(3, c, p, stride=p)

    def forward(self, pixels: Tensor) -> Tensor:
        # A strided convolution without overlap is a matrix product over the patches.
        w = self.patch_embedding.weight
        x = F.linear(patches(pixels, w.shape[-1]), w.flatten(1), self.patch_embedding.bias)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), -1, -1), x], 1)
        return x + self.position_embedding


def patches(pixels: Tensor, p: int) -> Tensor:
    """`[n, 3, S, S]` to `[n, (S/p)², 3·p·p]`, row by row."""
    n, c, s, _ = pixels.shape
    x = pixels.view(n, c, s // p, p, s // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (s // p) ** 2, c * p * p)


class VisionAttention(nn.Module):
    def __init__(self, c: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))


class VisionMlp(nn.Module):
    def __init__(self, c: int, f: int):
        super().__init__()
        self.fc1 = nn.Linear(c, f)
        self.fc2 = nn.Linear(f, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c, eps = cfg["hidden_size"], cfg.get("layer_norm_eps", 1e-6)
        self.attn = VisionAttention(c, cfg["num_attention_heads"])
        self.mlp = VisionMlp(c, cfg["intermediate_size"])
        self.norm1 = nn.LayerNorm(c, eps)
        self.norm2 = nn.LayerNorm(c, eps)
        self.ls1 = nn.Parameter(torch.ones(c))
        self.ls2 = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(cfg) for _ in range(cfg["num_hidden_layers"]))


class InternViT(nn.Module):
    """Tiles `[n, 3, S, S]` to the output of the last layer, class token included; there is no final norm."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.embeddings = VisionEmbeddings(cfg)
        self.encoder = VisionEncoder(cfg)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    """The checkpoint nests the tower in a holder of the same name."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.vision_tower = InternViT(cfg)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_tower(pixels)


def pixel_shuffle(hidden: Tensor) -> Tensor:
    """Patches of one tile, class token first, to a quarter as many rows of four patches; halved before, as
    upstream."""
    n, t, c = hidden.shape
    grid = math.isqrt(t - 1)
    x = (0.5 * hidden[:, 1:]).view(n, grid // 2, 2, grid // 2, 2, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, grid * grid // 4, 4 * c)


class GlobalCmvn(nn.Module):
    def __init__(self, bins: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("istd", torch.ones(bins))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.istd


class ConvSubsampling(nn.Module):
    def __init__(self, bins: int, c: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, c, 3, 2), nn.ReLU(), nn.Conv2d(c, c, 3, 2), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(c * frames_after_convs(bins), c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.unsqueeze(1))
        return self.out(x.transpose(1, 2).flatten(2))


class Subsampling(nn.Module):
    def __init__(self, bins: int, c: int):
        super().__init__()
        self.core = ConvSubsampling(bins, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)


class WhaleAttention(nn.Module):
    """Transformer-XL's scores without the relative shift: positions are absolute, and only keys have them."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            setattr(self, name, nn.Linear(c, c))
        self.linear_pos = nn.Linear(c, c, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, c // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, c // heads))

    def forward(self, x: Tensor, pe: Tensor, mask: Tensor) -> Tensor:
        n, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(-1, t, self.heads, c // self.heads).transpose(1, 2)

        q, k, v = split(self.linear_q(x)), split(self.linear_k(x)), split(self.linear_v(x))
        p = split(self.linear_pos(pe))
        # (q + u)·k + (q + v)·p = q·(k + p) + (u·k + v·p), and the second part belongs to the key alone.
        per_key = (k * self.pos_bias_u[:, None]).sum(-1) + (p * self.pos_bias_v[:, None]).sum(-1)
        scores = (q @ (k + p).transpose(-1, -2) + per_key[:, :, None]) * (c // self.heads) ** -0.5
        weights = scores.float().masked_fill(~mask, -1e30).softmax(-1).to(v.dtype)
        return self.linear_out((weights @ v).transpose(1, 2).reshape(n, t, c))


class WhaleFeedForward(nn.Module):
    def __init__(self, c: int, f: int):
        super().__init__()
        self.w_1 = nn.Linear(c, f)
        self.w_2 = nn.Linear(f, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))


class WhaleLayer(nn.Module):
    def __init__(self, c: int, f: int, heads: int):
        super().__init__()
        self.self_attn = WhaleAttention(c, heads)
        self.feed_forward = WhaleFeedForward(c, f)
        self.norm1 = nn.LayerNorm(c, 1e-5)
        self.norm2 = nn.LayerNorm(c, 1e-5)

    def forward(self, x: Tensor, pe: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x), pe, mask)
        return x + self.feed_forward(self.norm2(x))


def sinusoids(t: int, c: int, device=None) -> Tensor:
    rate = 10000 ** (-torch.arange(0, c, 2, device=device, dtype=torch.float64) / c)
    angle = torch.arange(t, device=device, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()


class WhaleTransformer(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c, f, heads = cfg["hidden_size"], cfg["intermediate_size"], cfg["num_attention_heads"]
        self.chunk = cfg.get("chunk_size", -1)
        self.left = cfg.get("left_chunks", -1)
        self.embed = nn.Sequential(nn.Linear(c, c), nn.LayerNorm(c, 1e-5))
        self.encoders = nn.ModuleList(WhaleLayer(c, f, heads) for _ in range(cfg["num_hidden_layers"]))
        self.after_norm = nn.LayerNorm(c, 1e-5)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`valid`: `[n, T2]`, false for padding."""
        t, c = x.shape[1:]
        x = F.relu(self.embed(x)) * math.sqrt(c)
        pe = sinusoids(t, c, x.device)
        mask = (valid[:, None] & self.visible(t, x.device))[:, None]
        for layer in self.encoders:
            x = layer(x, pe, mask)
        return self.after_norm(x)

    def visible(self, t: int, device) -> Tensor:
        """`[T2, T2]`: which keys a frame sees."""
        if self.chunk <= 0:
            return torch.ones(t, t, dtype=torch.bool, device=device)
        chunk = torch.arange(t, device=device) // self.chunk
        seen = chunk[None] <= chunk[:, None]
        if self.left >= 0:
            seen &= chunk[None] >= chunk[:, None] - self.left
        return seen


class WhaleEncoder(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        bins = cfg["input_dim"]
        self.global_cmvn = GlobalCmvn(bins)
        self.enc = nn.ModuleList([Subsampling(bins, cfg["hidden_size"]), WhaleTransformer(cfg)])


class Adapter(nn.Module):
    def __init__(self, c: int, taps: int, out: int):
        super().__init__()
        self.taps = taps
        self.conv1d2 = nn.Conv1d(c, 2 * c, taps, 2)
        self.bn2 = nn.LayerNorm(2 * c, 1e-3)
        self.project = nn.Linear(2 * c, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1d2(F.pad(x.transpose(1, 2), (0, self.taps - 1))).transpose(1, 2)
        return self.project(F.gelu(self.bn2(x)))


class Whale(nn.Module):
    def __init__(self, cfg: dict, out: int):
        super().__init__()
        self.encoder = WhaleEncoder(cfg)
        self.adpter = Adapter(cfg["hidden_size"], cfg.get("adapter_kernel_size", 5), out)

    def forward(self, fbank: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel frames `[n, T, 80]`, of which the first `frames[i]` are valid. Returns the convolutions'
        output, the encoder's and the rows for the language model (the first `rows_of_sound(frames[i])`
        count)."""
        sub = self.encoder.enc[0](self.encoder.global_cmvn(fbank))
        t = torch.arange(sub.shape[1], device=sub.device)
        valid = t < frames_after_convs(frames)[:, None]
        enc = self.encoder.enc[1](sub, valid)
        return sub, enc, self.adpter(enc * valid[..., None])


class RmsNorm(nn.Module):
    def __init__(self, c: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + d/2) of `[n, heads, T, d]`."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class TextAttention(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c, self.h, self.g = cfg["hidden_size"], cfg["num_attention_heads"], cfg["num_key_value_heads"]
        self.d = cfg.get("head_dim", c // self.h)
        self.q_proj = nn.Linear(c, self.h * self.d)
        self.k_proj = nn.Linear(c, self.g * self.d)
        self.v_proj = nn.Linear(c, self.g * self.d)
        self.o_proj = nn.Linear(self.h * self.d, c, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = rope(self.q_proj(x).view(n, t, self.h, self.d).transpose(1, 2), cos, sin)
        k = rope(self.k_proj(x).view(n, t, self.g, self.d).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(n, t, self.g, self.d).transpose(1, 2)
        k, v = (y.repeat_interleave(self.h // self.g, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(n, t, self.h * self.d))


class TextMlp(nn.Module):
    def __init__(self, c: int, f: int):
        super().__init__()
        self.gate_proj = nn.Linear(c, f, bias=False)
        self.up_proj = nn.Linear(c, f, bias=False)
        self.down_proj = nn.Linear(f, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextLayer(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c, eps = cfg["hidden_size"], cfg.get("rms_norm_eps", 1e-6)
        self.self_attn = TextAttention(cfg)
        self.mlp = TextMlp(c, cfg["intermediate_size"])
        self.input_layernorm = RmsNorm(c, eps)
        self.post_attention_layernorm = RmsNorm(c, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class VitaModel(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        c = cfg["hidden_size"]
        self.embed_tokens = nn.Embedding(cfg["vocab_size"], c)
        self.layers = nn.ModuleList(TextLayer(cfg) for _ in range(cfg["num_hidden_layers"]))
        self.norm = RmsNorm(c, cfg.get("rms_norm_eps", 1e-6))
        self.vision_tower = VisionTower(cfg["vision_config"])
        width = 4 * cfg["vision_config"]["hidden_size"]
        self.mm_projector = nn.Sequential(nn.Linear(width, c), nn.GELU(), nn.Linear(c, c))
        self.audio_encoder = Whale(cfg["audio_config"], c)


class Vita(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.model = VitaModel(cfg)
        if not cfg.get("tie_word_embeddings"):
            self.lm_head = nn.Linear(cfg["hidden_size"], cfg["vocab_size"], bias=False)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tiles `[n, 3, S, S]` to the tower's output and rows of the language model `[n, rows,
        C]`."""
        hidden = self.model.vision_tower(pixels)
        return hidden, self.model.mm_projector(pixel_shuffle(hidden))

    def hear(self, fbank: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.audio_encoder(fbank, frames)

    def merge(self, ids: Tensor, media: Tensor) -> Tensor:
        """Embedding rows of `ids`; the id -1 - i stands for row i of `media`. One table for both: two lookups,
        each with a stand-in where it has nothing to say, would pile those gradients up on one row."""
        words = self.model.embed_tokens.weight
        table = torch.cat([words, media.to(words.dtype)])
        return F.embedding(torch.where(ids < 0, len(words) - 1 - ids, ids), table)

    def rotation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for the positions of `x`."""
        d = self.model.layers[0].self_attn.d
        rate = self.cfg.get("rope_theta", 1e6) ** (-torch.arange(0, d, 2, device=x.device).float() / d)
        angle = torch.arange(x.shape[1], device=x.device).float()[:, None] * rate
        cos, sin = angle.cos(), angle.sin()
        if torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            cos, sin = cos.to(low), sin.to(low)
        return cos, sin

    def think(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Merged rows `[n, T, C]` to hidden states after the final norm. Padding goes on the right, where
        causality keeps it out of what stands before."""
        return self.think_aloud(x, rotation or self.rotation(x), 0)[0]

    def think_aloud(self, x: Tensor, rotation: tuple[Tensor, Tensor], after: int) -> tuple[Tensor, Tensor]:
        """The same, and what the rows hold after that many layers."""
        held = x
        for n, layer in enumerate(self.model.layers, 1):
            x = layer(x, *rotation)
            held = x if n == after else held
        return self.model.norm(x), held

    def logits(self, hidden: Tensor) -> Tensor:
        tied = self.cfg.get("tie_word_embeddings")
        return F.linear(hidden, self.model.embed_tokens.weight if tied else self.lm_head.weight).float()


def init_weights(model: Vita, seed: int) -> None:
    """Small random weights; what ends a residual branch starts smaller the deeper the stack is."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() < 2:
            if name.endswith("bias"):
                nn.init.zeros_(p)
            continue
        if "position_embedding" in name or "class_embedding" in name or "pos_bias" in name:
            nn.init.normal_(p, std=0.02)
        elif "embed_tokens" in name:
            nn.init.normal_(p, std=0.04)
        else:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
            depth = len(model.model.layers)
            if name.endswith(
                (
                    "o_proj.weight",
                    "down_proj.weight",
                    "attn.proj.weight",
                    "fc2.weight",
                    "linear_out.weight",
                    "w_2.weight",
                )
            ):
                p.data /= math.sqrt(2 * depth)
            elif name.endswith(("mm_projector.2.weight", "adpter.project.weight")):
                p.data *= 0.1  # rows of media start as large as those of tokens


def save(model: Vita, folder: str | Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors in bf16."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.cfg, indent=2) + "\n")
    eos = {"eos_token_id": model.cfg["eos_token_id"]} if "eos_token_id" in model.cfg else {}
    (folder / "generation_config.json").write_text(json.dumps(eos, indent=2) + "\n")


def load(folder: str | Path) -> Vita:
    """Opens a checkpoint folder, weights widened to f32."""
    from safetensors.torch import load_file

    folder = Path(folder)
    model = Vita(json.loads((folder / "config.json").read_text()))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_state_dict({name: t.float() for name, t in tensors.items()})
    return model.eval()
