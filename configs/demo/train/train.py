"""Trains the demonstration model: train.py WORKDIR --hours H [--workers N] [--resume]

WORKDIR holds corpus.bin, heldout.bin and (from --instruct-from of the way on) instruct.bin, all of them
16-bit token ids from pack.py. The learning rate follows the share of the hours that has passed (or of
--steps), constant first and then falling linearly to zero, so that a slow or shared machine still
ends with a finished model. Checkpoints go to WORKDIR/checkpoint.pt, the log to WORKDIR/train.tsv.

On a CPU several single-threaded workers share one copy of the parameters and take microbatches of a
step from a common counter: no worker ever waits inside an operator, which matters where the cores are
shared. On a GPU there is one worker. Matrices are updated by Muon, everything else by AdamW; each
worker updates its own share of the parameters.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

import bigram
import model as lm

MTP_WEIGHT, BALANCE_WEIGHT, ROUTER_Z_WEIGHT = 0.3, 0.005, 0.002
LEARNING_RATES = {"token_embd": 0.006, "output": 0.004, "ffn_gate_inp": 0.003, "muon": 0.02, "other": 0.004}


def loss_and_gradient(logits, target, scale):
    """Cross entropy of each row, and its gradient times scale in the logits' type."""
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    e = (logits - top).exp()
    total = e.sum(-1, keepdim=True)
    loss = (top + total.log())[:, 0] - logits.gather(1, target[:, None])[:, 0]
    column = torch.arange(logits.shape[1], device=logits.device)
    return loss, ((e / total - (column == target[:, None]).float()) * scale).to(torch.bfloat16)


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of hidden @ head.T, a slice of rows at a time, gradients made on the way."""

    @staticmethod
    def forward(ctx, hidden, head, target):
        n = hidden.shape[0]
        hidden, weight = hidden.to(torch.bfloat16), head.to(torch.bfloat16)
        dhidden, dhead = torch.empty_like(hidden), torch.zeros_like(head)
        total = 0.0
        for a in range(0, n, 1024):
            h = hidden[a : a + 1024]
            loss, dlogits = loss_and_gradient(h @ weight.t(), target[a : a + 1024], 1.0 / n)
            total = total + loss.sum()
            torch.mm(dlogits, weight, out=dhidden[a : a + 1024])
            dhead += dlogits.t() @ h
        ctx.save_for_backward(dhidden, dhead)
        return total / n

    @staticmethod
    def backward(ctx, grad):
        dhidden, dhead = ctx.saved_tensors
        return dhidden.float() * grad, dhead * grad, None


class Windows:
    """Token windows of a file in a seeded order that changes every epoch."""

    def __init__(self, path, length, seed):
        self.data = np.fromfile(path, dtype=np.uint16)
        self.length, self.seed = length, seed
        self.per_epoch = (len(self.data) - 1) // length - 1
        self.epoch, self.order = -1, None

    def __getitem__(self, i):
        epoch, i = divmod(i, self.per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self.epoch, self.shift, self.order = epoch, int(rng.integers(self.length)), rng.permutation(self.per_epoch)
        start = int(self.order[i]) * self.length + self.shift
        return torch.from_numpy(self.data[start : start + self.length + 1].astype(np.int64))


def microbatch(args, corpus, instruct, i):
    rows = []
    for j in range(i * args.batch, (i + 1) * args.batch):
        chat = instruct is not None and (j * 617) % 1000 < 1000 * args.instruct_share
        rows.append(instruct[int(j * args.instruct_share)] if chat else corpus[j])
    return torch.stack(rows)


def orthogonalize(g):
    """Newton-Schulz steps toward the nearest orthogonal matrix; g: [n, rows, columns]."""
    x = g.to(torch.bfloat16)
    if wide := x.shape[1] > x.shape[2]:
        x = x.transpose(1, 2)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.transpose(1, 2) if wide else x).float()


class Optimizer:
    def __init__(self, named, rank, world):
        kinds = [(name, p, self.kind(name, p)) for name, p in named]
        # the heaviest first, dealt in turn, so that the workers' shares are alike
        kinds.sort(key=lambda k: (-(k[1].numel() if k[2] == "muon" else 0), -k[1].numel()))
        self.mine = kinds[rank::world]
        self.state = {}

    @staticmethod
    def kind(name, p):
        last = name.split(".")[-1]
        if last in ("token_embd", "output", "ffn_gate_inp"):
            return last
        small = p.dim() < 2 or last in ("ssm_conv1d", "ssm_alpha", "ssm_beta")
        return "other" if small else "muon"

    @torch.no_grad()
    def step(self, gradients, factor, t):
        for name, p, kind in self.mine:
            g = gradients(name)
            rate = LEARNING_RATES[kind] * factor
            if kind == "muon":
                m = self.state.setdefault(name, torch.zeros_like(p))
                m.lerp_(g, 0.05)
                g3 = g.lerp(m, 0.95).view(-1, *p.shape[-2:])
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - rate * 0.1).add_(orthogonalize(g3).view_as(p), alpha=-rate * scale)
            else:
                m, v = self.state.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.03)
                update = (m / (1 - 0.9**t)) / ((v / (1 - 0.97**t)).sqrt() + 1e-10)
                p.add_(update, alpha=-rate)


def losses(net, rows, mtp_rows):
    """(language loss, MTP loss, balance, router z) of a microbatch [B, T + 1]."""
    tokens, target = rows[:, :-1], rows[:, 1:]
    hidden = net.hidden(tokens)
    main = HeadLoss.apply(hidden.flatten(0, 1), net.output, target.flatten())
    part, nxt = hidden[:mtp_rows, :-1], target[:mtp_rows]
    draft = net.mtp_hidden(part, nxt[:, :-1])
    mtp = HeadLoss.apply(draft.flatten(0, 1), net.output, nxt[:, 1:].flatten())
    balance, z = zip(*(b.moe.balance_loss() for b in net.blk))
    return main, mtp, sum(balance) / len(balance), sum(z) / len(z)


def evaluate(net, args, n_window):
    """Mean loss of next-token prediction over windows of the held-out text."""
    data = np.fromfile(args.work / "heldout.bin", dtype=np.uint16).astype(np.int64)
    n = min(n_window, (len(data) - 1) // args.length) // args.batch * args.batch
    rows = torch.stack([torch.from_numpy(data[i * args.length : (i + 1) * args.length + 1]) for i in range(n)])
    total = 0.0
    for chunk in rows.split(args.batch):
        chunk = chunk.to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            hidden = net.hidden(chunk[:, :-1]).flatten(0, 1)
            total += HeadLoss.apply(hidden, net.output, chunk[:, 1:].flatten()).item() * len(chunk)
    return total / n


def schedule(progress, flat, step):
    warm = min(1.0, (step + 1) / 20)
    return warm * (1.0 if progress < flat else max(0.0, (1 - progress) / (1 - flat)))


def take(counter):
    with counter.get_lock():
        counter.value += 1
        return counter.value - 1


def worker(rank, args, net, gradients, counter, stats, barrier):
    torch.set_flush_denormal(True)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    if args.compile:
        for function in ("rms_norm", "silu_gate", "silu_gate_backward", "weighted_sum", "scaled_rows"):
            setattr(lm, function, torch.compile(getattr(lm, function), dynamic=True))
        global loss_and_gradient
        loss_and_gradient = torch.compile(loss_and_gradient)
        for block in net.blk:
            block.mixer.compile()
    named = list(net.named_parameters())
    for (_, p), g in zip(named, gradients[rank]):
        p.grad = g
    index = {name: i for i, (name, _) in enumerate(named)}
    optimizer = Optimizer(named, rank, args.workers)
    state_path = args.work / f"optimizer{rank}.pt"
    first, elapsed = 0, 0.0
    if args.resume:
        saved = torch.load(args.work / "checkpoint.pt", map_location=args.device)
        first, elapsed = saved["step"], saved["elapsed"]
        optimizer.state = torch.load(state_path, map_location=args.device)
    corpus = Windows(args.work / "corpus.bin", args.length, 1)
    instruct = None
    log = open(args.work / "train.tsv", "a") if rank == 0 else None
    autocast = torch.autocast(args.device, torch.bfloat16)

    def backward(rows):
        with autocast:
            main, mtp, balance, z = losses(net, rows.to(args.device), args.mtp_rows)
            loss = main + MTP_WEIGHT * mtp * args.mtp_rows / args.batch + BALANCE_WEIGHT * balance + ROUTER_Z_WEIGHT * z
            (loss / args.accumulate).backward()
        return torch.tensor([main.item(), mtp.item(), balance.item(), z.item(), 1.0])

    def zero():
        for g in gradients[rank]:
            g.zero_()

    if rank == 0:  # compiles; the others then find its work in the cache
        backward(microbatch(args, corpus, None, 0))
        zero()
    start = saved_at = time.time()
    start -= elapsed
    step = first
    while True:
        if rank == 0:
            elapsed = time.time() - start
            stats[0] = step / args.steps if args.steps else elapsed / (args.hours * 3600)
            stats[-1] = float(stats[0] >= 1 or time.time() - saved_at > args.save_minutes * 60)
            counter.value = 0
        barrier.wait()
        progress = stats[0].item()
        if stats[-1].item():
            torch.save(optimizer.state, state_path)
            saved_at = time.time()
            if rank == 0:
                save_model(net, args, step, elapsed)
        if progress >= 1:
            break
        chat_path = args.work / "instruct.bin"
        if instruct is None and progress >= args.instruct_from and chat_path.exists():
            instruct = Windows(chat_path, args.length, 2)
        sums = torch.zeros(5)
        while (i := take(counter)) < args.accumulate:
            sums += backward(microbatch(args, corpus, instruct, step * args.accumulate + i))
        stats[1 + rank * 5 : 6 + rank * 5] = sums
        barrier.wait()  # all gradients are complete
        factor = schedule(progress, args.flat, step)
        optimizer.step(lambda name: sum(g[index[name]] for g in gradients), factor, step + 1)
        barrier.wait()  # all parameters are new
        zero()
        step += 1
        if rank == 0 and (step % 10 == 0 or step <= 10):
            total = stats[1:-1].view(-1, 5).sum(0)
            mean = "\t".join(f"{x:.4f}" for x in (total / total[4])[:4].tolist())
            tokens = step * args.accumulate * args.batch * args.length
            held = f"{evaluate(net, args, 16):.4f}" if step % 100 == 0 else ""
            line = f"{step}\t{time.time() - start:.0f}\t{tokens}\t{factor:.4f}\t{mean}\t{held}"
            print(line, file=log, flush=True)
            print(line, flush=True)
    if rank == 0:
        print("held-out loss", evaluate(net, args, 10**9), flush=True)


def save_model(net, args, step, elapsed):
    path = args.work / "checkpoint.pt"
    tokens = step * args.accumulate * args.batch * args.length
    torch.save({"config": net.c.as_dict(), "step": step, "tokens": tokens, "elapsed": elapsed, "state": net.state_dict()}, f"{path}.new")
    os.replace(f"{path}.new", path)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("work", type=Path)
    ap.add_argument("--hours", type=float, default=3.0)
    ap.add_argument("--steps", type=int, default=0, help="train this many steps, whatever the time")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--workers", type=int, default=0)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--length", type=int, default=1024)
    ap.add_argument("--batch", type=int, default=4, help="sequences in a microbatch")
    ap.add_argument("--accumulate", type=int, default=4, help="microbatches in a step")
    ap.add_argument("--mtp-rows", type=int, default=1, help="sequences of a microbatch that also train the MTP block")
    ap.add_argument("--flat", type=float, default=0.5, help="share of the run at the full learning rate")
    ap.add_argument("--instruct-from", type=float, default=0.65)
    ap.add_argument("--instruct-share", type=float, default=0.25)
    ap.add_argument("--save-minutes", type=float, default=15)
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--no-compile", dest="compile", action="store_false")
    args = ap.parse_args()
    args.workers = args.workers or (1 if args.device == "cuda" else os.cpu_count())
    torch.manual_seed(0)
    net = lm.Model(lm.Config(n_ctx=args.length)).to(args.device)
    if not args.resume:
        with torch.no_grad():
            for p, rows in zip((net.token_embd, net.output), bigram.start(args.work / "corpus.bin", *net.output.shape)):
                p.copy_(rows)
    else:
        net.load_state_dict(torch.load(args.work / "checkpoint.pt", map_location=args.device)["state"])
    gradients = [[torch.zeros_like(p) for p in net.parameters()] for _ in range(args.workers)]
    stats = torch.zeros(2 + 5 * args.workers)
    if args.workers == 1:
        worker(0, args, net, gradients, mp.Value("q", 0), stats, mp.Barrier(1))
        return
    net.share_memory()
    stats.share_memory_()
    for gs in gradients:
        for g in gs:
            g.share_memory_()
    context = mp.get_context("spawn")
    arguments = (args, net, gradients, context.Value("q", 0), stats, context.Barrier(args.workers))
    mp.spawn(worker, arguments, nprocs=args.workers)


if __name__ == "__main__":
    main()
