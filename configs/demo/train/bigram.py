"""A start for the embeddings: a bigram model of the corpus, factorised.

With the start below, head times normed embedding gives the logits of a smoothed bigram model before
the first step, so that a short run need not spend its tokens on learning which word follows which.
log p(j | i) = log p(j) + log(1 + count(i, j) / (K p(j))) + a constant of i (Dirichlet smoothing); the
second term is approximated by its leading singular vectors, the first takes one dimension, and
one more makes all embeddings equally long, so that the norm before the head changes nothing.
"""

import numpy as np
import torch

K = 400.0  # weight of the unigram prior, in tokens
POWER = 0.5


def start(path, n_vocab, n_embd):
    """(token_embd, output), each [n_vocab, n_embd], from the token file at path."""
    data = torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int64))
    pairs = torch.bincount(data[:-1] * n_vocab + data[1:], minlength=n_vocab * n_vocab).view(n_vocab, n_vocab).float()
    p = (pairs.sum(0) + 0.5) / (pairs.sum() + 0.5 * n_vocab)
    excess = torch.log1p(pairs / (K * p))
    weight = (p / p.mean()) ** POWER  # frequent tokens count more in the fit
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(weight[:, None] * excess * weight, q=n_embd + 30, niter=3)
    rank = n_embd - 2
    u, v = u[:, :rank] * s[:rank].sqrt() / weight[:, None], v[:, :rank] * s[:rank].sqrt() / weight[:, None]
    length = u.norm(dim=1)
    longest = length.quantile(0.995)
    u = u * (longest / length).clamp(max=1.0)[:, None]
    one = torch.full((n_vocab, 1), float(longest) * 0.5)
    filler = (longest**2 - u.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    embd = torch.cat([u, filler, one], 1)
    scale = n_embd**0.5 / embd.norm(dim=1).mean()  # after the norm an embedding has length sqrt(n_embd)
    head = torch.cat([v, torch.zeros(n_vocab, 1), p.log()[:, None] / one], 1) / scale
    turn = torch.linalg.qr(torch.randn(n_embd, n_embd))[0]  # no dimension is special to the blocks
    return embd * scale @ turn, head @ turn
