"""A small qwen35moe in PyTorch, with the conventions of the GGUF files.

Parameters carry the names and shapes of the GGUF tensors (a matrix is [rows, row length], an expert
stack [expert, rows, row length]), norm weights are the whole factor, value head h reads key head
h mod Hk, and attn_q holds query and gate of one head after the other. export.py therefore renames
and never rearranges.

The recurrence of the delta net runs in chunks (all products are batched matrix products); see
delta_rule_chunked, and delta_rule_stepwise for the definition it is tested against.
"""

from dataclasses import dataclass, asdict

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    n_vocab: int = 8192
    n_embd: int = 256
    n_layer: int = 4  # the MTP block comes on top
    full_attention_interval: int = 4
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_rot: int = 32
    rope_sections: tuple = (6, 5, 5, 0)  # together they cover all n_rot / 2 pairs
    rope_freq_base: float = 10000.0
    n_expert: int = 40
    n_expert_used: int = 4
    n_ff_exp: int = 256
    n_ff_shexp: int = 256
    ssm_conv: int = 4
    ssm_state: int = 64  # width of a key head and of a value head
    ssm_n_key_head: int = 2
    ssm_n_value_head: int = 4
    eps: float = 1e-6
    n_ctx: int = 1024

    def is_recurrent(self, il):
        return il < self.n_layer and (il + 1) % self.full_attention_interval != 0

    def as_dict(self):
        return asdict(self)


def rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def l2_norm(x, eps):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def matrix(n_row, n_col, std=None):
    return nn.Parameter(torch.randn(n_row, n_col) * (std or n_col**-0.5))


def delta_rule_stepwise(q, k, v, g, beta):
    """The definition. q, k: [B, H, T, dk], v: [B, H, T, dv], g, beta: [B, H, T]; returns o: [B, H, T, dv]."""
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        state = state * g[:, :, t, None, None].exp()
        u = beta[:, :, t, None] * (v[:, :, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t]))
        state = state + k[:, :, t, :, None] * u[:, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(out, 2) * q.shape[-1] ** -0.5


def delta_rule_chunked(q, k, v, g, beta, chunk=64):
    """The same sums, a chunk at a time; T must be a multiple of the chunk. All arguments f32."""
    B, H, T, dk = q.shape
    n = T // chunk
    q, k, v = (x.reshape(B, H, n, chunk, -1) for x in (q * dk**-0.5, k, v))
    g, beta = g.reshape(B, H, n, chunk), beta.reshape(B, H, n, chunk, 1)
    cum = g.cumsum(-1)
    mask = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    decay = (cum[..., :, None] - cum[..., None, :]).masked_fill(~mask, float("-inf")).exp()
    kt = k.transpose(-1, -2)
    lower = (beta * (k @ kt) * decay).tril(-1)  # unit diagonal implied below
    rhs = torch.cat([beta * v, beta * cum[..., None].exp() * k], -1)
    solved = torch.linalg.solve_triangular(lower, rhs, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], dk], -1)
    scores = (q @ kt) * decay
    q_in = cum[..., None].exp() * q
    k_out = ((cum[..., -1:] - cum)[..., None].exp() * k).transpose(-1, -2)
    carry = cum[..., -1].exp()[..., None, None]
    state = q.new_zeros(B, H, dk, v.shape[-1])
    out = []
    for i in range(n):
        new = u[:, :, i] - w[:, :, i] @ state
        out.append(q_in[:, :, i] @ state + scores[:, :, i] @ new)
        state = carry[:, :, i] * state + k_out[:, :, i] @ new
    return torch.stack(out, 2).reshape(B, H, T, -1)


class DeltaNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        key, val = c.ssm_n_key_head * c.ssm_state, c.ssm_n_value_head * c.ssm_state
        self.attn_qkv = matrix(2 * key + val, c.n_embd)
        self.attn_gate = matrix(val, c.n_embd)
        self.ssm_conv1d = matrix(2 * key + val, c.ssm_conv)
        self.ssm_alpha = matrix(c.ssm_n_value_head, c.n_embd)
        self.ssm_beta = matrix(c.ssm_n_value_head, c.n_embd)
        dt = torch.exp(torch.empty(c.ssm_n_value_head).uniform_(-6.9, -2.3))  # 0.001 to 0.1
        self.ssm_dt = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.ssm_a_log = nn.Parameter(torch.empty(c.ssm_n_value_head).uniform_(1, 16).log())
        self.ssm_norm = nn.Parameter(torch.ones(c.ssm_state))
        self.ssm_out = matrix(c.n_embd, val, 0.5 * val**-0.5)

    def forward(self, x):
        c = self.c
        B, T, _ = x.shape
        key, val = c.ssm_n_key_head * c.ssm_state, c.ssm_n_value_head * c.ssm_state
        m = F.linear(x, self.attn_qkv).float()
        padded = F.pad(m, (0, 0, c.ssm_conv - 1, 0))
        m = sum(padded[:, j : j + T] * self.ssm_conv1d[:, j] for j in range(c.ssm_conv))
        q, k, v = F.silu(m).split([key, key, val], -1)
        tile = c.ssm_n_value_head // c.ssm_n_key_head  # value head h reads key head h mod Hk

        def heads(y, repeat):
            return y.view(B, T, -1, c.ssm_state).repeat(1, 1, repeat, 1).transpose(1, 2)

        q, k, v = heads(l2_heads(q, c), tile), heads(l2_heads(k, c), tile), heads(v, 1)
        beta = F.linear(x, self.ssm_beta).float().sigmoid().transpose(1, 2)
        g = -self.ssm_a_log.exp() * F.softplus(F.linear(x, self.ssm_alpha).float() + self.ssm_dt)
        o = self.run(q, k, v, g.transpose(1, 2), beta).transpose(1, 2)
        z = F.linear(x, self.attn_gate).view(B, T, -1, c.ssm_state)
        o = rms_norm(o, self.ssm_norm, c.eps) * F.silu(z.float())
        return F.linear(o.reshape(B, T, val).to(x.dtype), self.ssm_out)

    @staticmethod
    def run(q, k, v, g, beta, chunk=64):
        pad = -q.shape[2] % chunk
        q, k, v = (F.pad(y, (0, 0, 0, pad)) for y in (q, k, v))
        g, beta = F.pad(g, (0, pad)), F.pad(beta, (0, pad))
        with torch.autocast(q.device.type, enabled=False):
            o = delta_rule_chunked(q, k, v, g, beta, chunk)
        return o[:, :, : o.shape[2] - pad]


def l2_heads(y, c):
    return l2_norm(y.unflatten(-1, (-1, c.ssm_state)), c.eps).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.attn_q = matrix(2 * c.n_head * c.head_dim, c.n_embd)  # per head: query, then gate
        self.attn_k = matrix(c.n_head_kv * c.head_dim, c.n_embd)
        self.attn_v = matrix(c.n_head_kv * c.head_dim, c.n_embd)
        self.attn_output = matrix(c.n_embd, c.n_head * c.head_dim, 0.5 * (c.n_head * c.head_dim) ** -0.5)
        self.attn_q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.attn_k_norm = nn.Parameter(torch.ones(c.head_dim))
        inv = c.rope_freq_base ** (-torch.arange(0, c.n_rot, 2).float() / c.n_rot)
        self.register_buffer("inv_freq", inv, persistent=False)

    def rope(self, x):
        half = self.c.n_rot // 2
        angle = torch.arange(x.shape[2], device=x.device).float()[:, None] * self.inv_freq
        cos, sin = angle.cos(), angle.sin()
        a, b, rest = x.float().split([half, half, x.shape[-1] - 2 * half], -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)

    def forward(self, x):
        c = self.c
        B, T, _ = x.shape
        q, gate = F.linear(x, self.attn_q).view(B, T, c.n_head, 2, c.head_dim).unbind(3)
        k = F.linear(x, self.attn_k).view(B, T, c.n_head_kv, c.head_dim)
        v = F.linear(x, self.attn_v).view(B, T, c.n_head_kv, c.head_dim)
        q = self.rope(rms_norm(q, self.attn_q_norm, c.eps).transpose(1, 2))
        k = self.rope(rms_norm(k, self.attn_k_norm, c.eps).transpose(1, 2))
        k, v = (y.repeat_interleave(c.n_head // c.n_head_kv, 1) for y in (k, v.transpose(1, 2)))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return F.linear((o * gate.sigmoid()).reshape(B, T, -1), self.attn_output)


class RoutedExperts(torch.autograd.Function):
    """sum over a token's experts of weight * down(silu(gate x) * up x).

    x: [n, d], weight: [n, k] f32, index: [n, k], stacks gate, up: [E, ff, d], down: [E, d, ff]; no token
    is dropped. Rows are sorted by expert, and each expert's rows padded with zeros to a multiple of
    TILE: a CPU library builds a kernel for every new matrix shape, so there must be few shapes. Loops
    over experts with hand-written gradients cost little more than the matrix products."""

    TILE = 64

    @staticmethod
    def forward(ctx, x, weight, index, gate, up, down):
        (n, k), n_expert, tile = index.shape, gate.shape[0], RoutedExperts.TILE
        flat = index.flatten()
        order = flat.argsort(stable=True)
        count = torch.bincount(flat, minlength=n_expert)
        padded = (count + tile - 1) // tile * tile
        ends = padded.cumsum(0)
        shift = (ends - padded) - (count.cumsum(0) - count)
        row_of_sorted = torch.arange(n * k, device=x.device) + shift[flat[order]]
        row = torch.empty_like(order)
        row[order] = row_of_sorted  # where each assignment's row is
        ends = ends.tolist()
        token = torch.full((ends[-1],), n, device=x.device)
        token[row_of_sorted] = order // k  # n stands for the zero row
        rows = F.pad(x, (0, 0, 0, 1))[token]

        hg, hu = (rows.new_empty(len(rows), gate.shape[1]) for _ in range(2))
        y = rows.new_empty(len(rows), down.shape[1])
        parts = [(e, slice(a, b)) for e, (a, b) in enumerate(zip([0] + ends, ends)) if a < b]
        for e, part in parts:
            torch.mm(rows[part], gate[e].t(), out=hg[part])
            torch.mm(rows[part], up[e].t(), out=hu[part])
        h = silu_gate(hg, hu)
        for e, part in parts:
            torch.mm(h[part], down[e].t(), out=y[part])
        y = y[row].view(n, k, -1)
        ctx.save_for_backward(rows, weight, row, token, gate, up, down, hg, hu, y)
        ctx.parts = parts
        return weighted_sum(y, weight)

    @staticmethod
    def backward(ctx, dout):
        rows, weight, row, token, gate, up, down, hg, hu, y = ctx.saved_tensors
        n, k = weight.shape
        row_weight = weight.new_zeros(len(rows))
        row_weight[row] = weight.flatten()
        dweight = torch.bmm(y, dout[:, :, None].to(y.dtype))[:, :, 0].to(weight.dtype)
        dy = scaled_rows(F.pad(dout, (0, 0, 0, 1)), token, row_weight)
        dgate, dup, ddown = (torch.zeros_like(w) for w in (gate, up, down))
        h, dh, dx = silu_gate(hg, hu), torch.empty_like(hg), torch.empty_like(rows)
        for e, part in ctx.parts:
            torch.mm(dy[part], down[e], out=dh[part])
            torch.mm(dy[part].t(), h[part], out=ddown[e])
        dhg, dhu = silu_gate_backward(hg, hu, dh)
        for e, part in ctx.parts:
            torch.mm(dhg[part].t(), rows[part], out=dgate[e])
            torch.mm(dhu[part].t(), rows[part], out=dup[e])
            torch.mm(dhg[part], gate[e], out=dx[part])
            dx[part].addmm_(dhu[part], up[e])
        return dx[row].view(n, k, -1).sum(1), dweight, None, dgate, dup, ddown


def silu_gate(gate, up):
    return F.silu(gate) * up


def silu_gate_backward(gate, up, dh):
    kind, gate, up, dh = gate.dtype, gate.float(), up.float(), dh.float()
    s = gate.sigmoid()
    return (dh * up * s * (1 + gate * (1 - s))).to(kind), (dh * gate * s).to(kind)


def weighted_sum(y, weight):
    return (y * weight[:, :, None]).sum(1).to(y.dtype)


def scaled_rows(x, index, scale):
    return (x[index] * scale[:, None]).to(x.dtype)


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, ff, sh = c.n_embd, c.n_ff_exp, c.n_ff_shexp

        def stack(n_row, n_col, std):
            return nn.Parameter(torch.randn(c.n_expert, n_row, n_col) * std)

        self.ffn_gate_inp = matrix(c.n_expert, d)
        self.ffn_gate_exps = stack(ff, d, d**-0.5)
        self.ffn_up_exps = stack(ff, d, d**-0.5)
        self.ffn_down_exps = stack(d, ff, 0.5 * ff**-0.5)
        self.ffn_gate_inp_shexp = nn.Parameter(torch.zeros(d))
        self.ffn_gate_shexp = matrix(sh, d)
        self.ffn_up_shexp = matrix(sh, d)
        self.ffn_down_shexp = matrix(d, sh, 0.5 * sh**-0.5)
        self.routing = None  # (expert ids in rank order, weights, router logits) of the last call

    def forward(self, x):
        c = self.c
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.ffn_gate_inp)
        prob = logits.softmax(-1)
        weight, index = prob.topk(c.n_expert_used, -1)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(6.103515625e-5)
        self.routing = (index, weight, logits)

        stacks = (w.to(x.dtype) for w in (self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps))
        y = RoutedExperts.apply(x, weight, index, *stacks)
        shared = F.linear(F.silu(F.linear(x, self.ffn_gate_shexp)) * F.linear(x, self.ffn_up_shexp), self.ffn_down_shexp)
        gate = (x.float() @ self.ffn_gate_inp_shexp[:, None]).sigmoid()
        return (y + shared * gate.to(y.dtype)).view(shape)

    def balance_loss(self):
        """(load balance, router z-loss) of the last call; the first is 1 when use is uniform."""
        index, _, logits = self.routing
        share = torch.bincount(index.flatten(), minlength=self.c.n_expert).float() / index.numel()
        balance = self.c.n_expert * (share * logits.softmax(-1).mean(0)).sum()
        return balance, logits.logsumexp(-1).square().mean()


class Block(nn.Module):
    def __init__(self, c, il):
        super().__init__()
        self.c = c
        self.attn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.mixer = DeltaNet(c) if c.is_recurrent(il) else Attention(c)
        self.post_attention_norm = nn.Parameter(torch.ones(c.n_embd))
        self.moe = MoE(c)

    def forward(self, x):
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x = x + self.mixer(rms_norm(x, self.attn_norm, self.c.eps).to(dtype))
        return x + self.moe(rms_norm(x, self.post_attention_norm, self.c.eps).to(dtype))


class MtpBlock(Block):
    """Predicts the token after the next from the trunk's normed hidden state and the next token."""

    def __init__(self, c):
        super().__init__(c, c.n_layer)
        self.nextn_eh_proj = matrix(c.n_embd, 2 * c.n_embd)
        self.nextn_enorm = nn.Parameter(torch.ones(c.n_embd))
        self.nextn_hnorm = nn.Parameter(torch.ones(c.n_embd))
        self.nextn_shared_head_norm = nn.Parameter(torch.ones(c.n_embd))

    def forward(self, embedding, hidden):
        e = rms_norm(embedding, self.nextn_enorm, self.c.eps)
        h = rms_norm(hidden, self.nextn_hnorm, self.c.eps)
        x = super().forward(F.linear(torch.cat([e, h], -1), self.nextn_eh_proj).float())
        return rms_norm(x, self.nextn_shared_head_norm, self.c.eps)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.token_embd = matrix(c.n_vocab, c.n_embd, 0.02 * 8)
        self.blk = nn.ModuleList([Block(c, il) for il in range(c.n_layer)] + [MtpBlock(c)])
        self.output_norm = nn.Parameter(torch.ones(c.n_embd))
        self.output = matrix(c.n_vocab, c.n_embd, 0.5 * c.n_embd**-0.5)

    def hidden(self, tokens):
        """[B, T] ids to the normed hidden states [B, T, d]."""
        x = F.embedding(tokens, self.token_embd)
        for block in self.blk[: self.c.n_layer]:
            x = block(x)
        return rms_norm(x, self.output_norm, self.c.eps)

    def mtp_hidden(self, hidden, next_tokens):
        return self.blk[self.c.n_layer](F.embedding(next_tokens, self.token_embd), hidden)

    def forward(self, tokens):
        return F.linear(self.hidden(tokens), self.output)


def gguf_tensors(model):
    """Yields (GGUF name, tensor) in file order."""
    for name, p in model.state_dict().items():
        name = name.replace(".mixer.", ".").replace(".moe.", ".").replace("nextn_", "nextn.")
        if name.endswith("ssm_a_log"):
            yield name[: -len("_log")], -p.exp()
        elif name.endswith("ssm_dt"):
            yield name + ".bias", p
        else:
            yield name + ".weight", p
