"""Measures a checkpoint for the model card: measure.py WORKDIR HELDOUT.txt

Prints, for the weights rounded to BF16 as the exported file has them: loss and perplexity on the held-out text
(windows of the context length, each read from its start), and per layer how experts are used: entropy and skew of
their shares, reuse from token to token, and how well the next layer's router does on this layer's input.
"""

import math
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

import model as lm


def load(work):
    """The checkpoint's model with its weights rounded as in the BF16 file, and the checkpoint."""
    torch.set_num_threads(1)  # workers that wait for each other are slow where cores are shared
    torch.set_flush_denormal(True)
    saved = torch.load(work / "checkpoint.pt", map_location="cpu")
    net = lm.Model(lm.Config(**saved["config"]))
    net.load_state_dict(saved["state"])
    for name, p in net.named_parameters():
        if p.dim() > 1 and not name.endswith(("ffn_gate_inp", "ssm_conv1d")):
            p.data = p.data.to(torch.bfloat16).float()
    return net, saved


def encode(tokenizer, path):
    """The documents of a text file as one text, so that `lean eval --text` reads the same tokens."""
    return torch.tensor(tokenizer.encode(path.read_text().replace("\f", "\n\n")).ids)


class Recorder:
    """Keeps, per layer and window, the router's input and the experts it chose."""

    def __init__(self, net):
        self.layers = [([], []) for _ in range(net.c.n_layer)]
        for block, (inputs, chosen) in zip(net.blk, self.layers):
            block.moe.register_forward_pre_hook(lambda _, x, kept=inputs: kept.append(x[0].flatten(0, 1)))
            block.moe.register_forward_hook(lambda moe, _, y, kept=chosen: kept.append(moe.routing[0]))


def overlap(a, b):
    """Mean share of a's experts that are in b, both [n, k]."""
    return (a[:, :, None] == b[:, None, :]).any(2).float().mean().item()


def routing_table(net, recorder):
    c = net.c
    yield "| layer | entropy / log E | busiest expert, x mean | experts for half of the load | reuse of last token's | of 4 hottest | stale gate recall |"
    yield "|---|---|---|---|---|---|---|"
    for il, (inputs, chosen) in enumerate(recorder.layers):
        share = torch.bincount(torch.cat(chosen).flatten(), minlength=c.n_expert).double()
        share /= share.sum()
        entropy = -(share * share.clamp_min(1e-12).log()).sum() / math.log(c.n_expert)
        half = int((share.sort(descending=True)[0].cumsum(0) < 0.5).sum()) + 1
        reuse = sum(overlap(w[1:], w[:-1]) for w in chosen) / len(chosen)
        hottest = share.topk(c.n_expert_used)[0].sum()
        stale = "-"
        if il:
            before = torch.cat(recorder.layers[il - 1][0])
            guess = (before @ net.blk[il].moe.ffn_gate_inp.T).topk(c.n_expert_used)[1]
            stale = f"{overlap(torch.cat(chosen), guess):.3f}"
        yield f"| {il} | {entropy:.3f} | {share.max() * c.n_expert:.2f} | {half} of {c.n_expert} | {reuse:.3f} | {hottest:.3f} | {stale} |"


@torch.no_grad()
def main(work, heldout):
    net, saved = load(work)
    ids = encode(Tokenizer.from_file(str(work / "tokenizer.json")), heldout)
    recorder = Recorder(net)
    total, mtp_total, mtp_hits, n, mtp_n = 0.0, 0.0, 0, 0, 0
    for window in ids.split(net.c.n_ctx):
        if len(window) < 3:
            continue
        hidden = net.hidden(window[None, :-1])
        total += torch.nn.functional.cross_entropy((hidden @ net.output.T)[0], window[1:], reduction="sum").item()
        logits = (net.mtp_hidden(hidden[:, :-1], window[None, 1:-1]) @ net.output.T)[0]
        mtp_total += torch.nn.functional.cross_entropy(logits, window[2:], reduction="sum").item()
        mtp_hits += (logits.argmax(-1) == (hidden[0, 1:] @ net.output.T).argmax(-1)).sum().item()
        n, mtp_n = n + len(window) - 1, mtp_n + len(window) - 2
    print(f"steps {saved['step']}, tokens seen {saved['tokens']}, hours {saved['elapsed'] / 3600:.2f}")
    print(f"held-out: {n} tokens, loss {total / n:.4f}, perplexity {math.exp(total / n):.3f}, bits per byte {total / math.log(2) / heldout.stat().st_size:.3f}")
    print(f"MTP block: loss {mtp_total / mtp_n:.4f}, agrees with the trunk's next choice {mtp_hits / mtp_n:.3f}")
    print("\n".join(routing_table(net, recorder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
