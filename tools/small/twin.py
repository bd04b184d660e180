"""A batched twin of transformers' Qwen3-VL for training: all pictures of a batch have one size.

Same mathematics and parameter names as Qwen3VLForConditionalGeneration (check_twin.py proves it), with two
differences of layout only: the patch embedding keeps the sum of its two temporal taps (a still picture is one
frame shown twice), and the attention mask is given explicitly, so that several conversations can share the
pictures as a prefix.
"""
import torch
import torch.nn.functional as F
from torch import nn


def patchify(pics):
    """u8 [N, H, W, 3] -> float [N, P, 768], patches in 2 x 2 block order, values (channel, y, x)."""
    n, h, w, _ = pics.shape
    x = (pics.float() - 127.5) / 127.5
    x = x.view(n, h // 32, 2, 16, w // 32, 2, 16, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.reshape(n, h * w // 256, 768)


def block_order(t):
    """[h, w, ...] grid values -> [h * w, ...] in 2 x 2 block order."""
    h, w = t.shape[:2]
    return t.reshape(h // 2, 2, w // 2, 2, *t.shape[2:]).transpose(1, 2).reshape(h * w, *t.shape[2:])


def rotate_half(x):
    k = x.shape[-1] // 2
    return torch.cat([-x[..., k:], x[..., :k]], -1)


def grid_positions(side, dim):
    """A smooth start for the position table [side * side, dim]: coordinates, and sines of 1/4 to 6 turns of each axis.
    (From random rows the encoder hardly learns where things are.)"""
    u = torch.linspace(0, 1, side)
    n = dim // 4 - 1
    turns = 0.25 * 24 ** (torch.arange(n) / (n - 1))
    a = 2 * torch.pi * u[:, None] * turns
    axis = torch.cat([(2 * u - 1)[:, None].expand(-1, 2) * 2, a.sin(), a.cos()], 1)                # [side, dim / 2]
    y, x = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([y, x], -1).reshape(side * side, dim)


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class PatchEmbed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Linear(768, c["hidden_size"])


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.heads, self.hd = c["num_heads"], d // c["num_heads"]
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, cos, sin):
        n, p, d = x.shape
        q, k, v = self.qkv(x).view(n, p, 3, self.heads, self.hd).permute(2, 0, 3, 1, 4)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, p, d))


class VisionMLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.linear_fc1 = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.linear_fc2 = nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c["hidden_size"], eps=1e-6), nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.attn, self.mlp = VisionAttention(c), VisionMLP(c)

    def forward(self, x, cos, sin):
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    def __init__(self, c, after):
        super().__init__()
        self.h4, self.after = 4 * c["hidden_size"], after
        self.norm = nn.LayerNorm(self.h4 if after else c["hidden_size"], eps=1e-6)
        self.linear_fc1, self.linear_fc2 = nn.Linear(self.h4, self.h4), nn.Linear(self.h4, c["out_hidden_size"])

    def forward(self, x):
        n, p, d = x.shape
        x = self.norm(x.view(n, p // 4, self.h4)) if self.after else self.norm(x).view(n, p // 4, self.h4)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.patch_embed = PatchEmbed(c)
        self.pos_embed = nn.Embedding(c["num_position_embeddings"], c["hidden_size"])
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))
        self.merger = Merger(c, False)
        self.deepstack_merger_list = nn.ModuleList(Merger(c, True) for _ in c["deepstack_visual_indexes"])
        self.side = int(c["num_position_embeddings"] ** 0.5)
        self.tables = {}

    def grid_tables(self, h, w):
        """(indices [4, P], weights [4, P], cos [P, hd], sin [P, hd]) of an h x w patch grid."""
        if (h, w) not in self.tables:
            s = self.side
            y, x = torch.linspace(0, s - 1, h), torch.linspace(0, s - 1, w)
            y0, x0 = y.long(), x.long()
            y1, x1 = (y0 + 1).clamp(max=s - 1), (x0 + 1).clamp(max=s - 1)
            dy, dx = (y - y0)[:, None], (x - x0)[None]
            idx = torch.stack([y0[:, None] * s + x0, y0[:, None] * s + x1, y1[:, None] * s + x0, y1[:, None] * s + x1], -1)
            wt = torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], -1)
            d = self.c["hidden_size"] // self.c["num_heads"] // 2
            inv = 1.0 / 10000 ** (torch.arange(0, d, 2).float() / d)
            r = torch.arange(h).float()[:, None, None] * inv
            c = torch.arange(w).float()[None, :, None] * inv
            a = torch.cat([r.expand(h, w, -1), c.expand(h, w, -1)], -1)
            a = block_order(torch.cat([a, a], -1))
            self.tables[h, w] = block_order(idx).T.contiguous(), block_order(wt).T.contiguous(), a.cos(), a.sin()
        return self.tables[h, w]

    def forward(self, pics):
        """u8 [N, H, W, 3] -> (merged [N, M, O], [deepstack [N, M, O]], last block [N, P, D])."""
        h, w = pics.shape[1] // 16, pics.shape[2] // 16
        idx, wt, cos, sin = self.grid_tables(h, w)
        x = self.patch_embed.proj(patchify(pics))
        x = x + (self.pos_embed(idx) * wt[..., None]).sum(0)
        deep = []
        for i, b in enumerate(self.blocks):
            x = b(x, cos, sin)
            if i in self.c["deepstack_visual_indexes"]:
                deep.append(self.deepstack_merger_list[len(deep)](x))
        return self.merger(x), deep, x


class TextAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.hd = c["hidden_size"], c["head_dim"]
        self.nq, self.nk = c["num_attention_heads"], c["num_key_value_heads"]
        self.q_proj = nn.Linear(d, self.nq * self.hd, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(d, self.nk * self.hd, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(self.nq * self.hd, d, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.hd, c["rms_norm_eps"]), RMSNorm(self.hd, c["rms_norm_eps"])

    def forward(self, x, cos, sin, mask):
        b, n, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, n, self.nq, self.hd)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, n, self.nk, self.hd)).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.nk, self.hd).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        g = self.nq // self.nk
        k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, n, -1))


class TextMLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, i = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(d, i, bias=False), nn.Linear(d, i, bias=False)
        self.down_proj = nn.Linear(i, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn, self.mlp = TextAttention(c), TextMLP(c)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Text(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(TextLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        sec, hd = c["rope_scaling"]["mrope_section"], c["head_dim"]
        axis = torch.zeros(hd // 2, dtype=torch.long)
        axis[1:3 * sec[1]:3] = 1
        axis[2:3 * sec[2]:3] = 2
        self.register_buffer("axis", axis, persistent=False)
        self.register_buffer("inv", 1.0 / c["rope_theta"] ** (torch.arange(0, hd, 2).float() / hd), persistent=False)

    def rotary(self, pos):
        """pos [B, S, 3] -> cos, sin [B, 1, S, head_dim]."""
        a = pos.float()[..., self.axis] * self.inv
        a = torch.cat([a, a], -1)[:, None]
        return a.cos(), a.sin()

    def forward(self, x, pos, mask, vis, deep):
        cos, sin = self.rotary(pos)
        mask = mask[:, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask)
            if i < len(deep):
                x = x.index_put(vis, deep[i], accumulate=True)
        return self.norm(x)


class Model(nn.Module):
    def __init__(self, visual, language_model):
        super().__init__()
        self.visual, self.language_model = visual, language_model


class Twin(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Model(Vision(config["vision_config"]), Text(config["text_config"]))

    @staticmethod
    def branch_mask(seg):
        """Causal; a token sees the shared prefix (segment 0) and its own branch. Padding is segment -1."""
        n = seg.shape[1]
        same = (seg[:, :, None] == seg[:, None, :]) | (seg[:, None, :] == 0)
        return same & torch.ones(n, n, dtype=torch.bool).tril()

    def forward(self, ids, pos, mask, pics=None):
        """ids [B, S], pos [B, S, 3], mask bool [B, S, S], pics u8 [B, n, H, W, 3] or None.
        -> (hidden [B, S, D], last vision block [B * n, P, Dv], merged tokens [B * n, M, D]; the last two may be None)."""
        t = self.model.language_model
        x = t.embed_tokens(ids)
        deep, vis, last, merged = [], None, None, None
        if pics is not None and pics.numel():
            merged, deep, last = self.model.visual(pics.flatten(0, 1))
            b, s = (ids == self.config["image_token_id"]).nonzero(as_tuple=True)
            vis = b, s
            x = x.index_put(vis, merged.reshape(-1, merged.shape[-1]))
            deep = [d.reshape(-1, d.shape[-1]) for d in deep]
        return t(x, pos, mask, vis, deep), last, merged

    def logits(self, hidden):
        return F.linear(hidden, self.model.language_model.embed_tokens.weight)

    def init(self, seed):
        """Normal weights of 1/sqrt(fan in); matrices that write to a residual stream start at zero."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim < 2:
                nn.init.ones_(p) if "norm" in name and name.endswith("weight") else nn.init.zeros_(p)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")) or \
                    ("deepstack" in name and "fc2" in name):
                nn.init.zeros_(p)
            else:
                std = 0.05 if "embed_tokens" in name or "pos_embed" in name else p.shape[1] ** -0.5 * (0.3 if "merger.linear_fc2" in name else 1)
                with torch.no_grad():
                    p.normal_(0, std, generator=g)
                    if "pos_embed" in name:
                        p.add_(0.5 * grid_positions(int(p.shape[0] ** 0.5), p.shape[1]))
        return self

    def hf_state(self):
        """The published tensor names and shapes (each temporal tap of the patch embedding is half the sum)."""
        out = {}
        for k, v in self.state_dict().items():
            if k == "model.visual.patch_embed.proj.weight":
                v = (v / 2).view(-1, 3, 1, 16, 16).repeat(1, 1, 2, 1, 1)
            out[k] = v.contiguous()
        return out
