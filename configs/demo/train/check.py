"""Checks the model's code against plain definitions and against llama.cpp: check.py WORKDIR (needs tokenizer.json)"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import model as lm
from reference import Reference


def check_delta_rule():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 192, 64) for _ in range(3))
    q, k = lm.l2_norm(q, 1e-6), lm.l2_norm(k, 1e-6)
    g, beta = -0.2 * torch.rand(2, 4, 192), torch.rand(2, 4, 192)
    difference = lm.delta_rule_chunked(q, k, v, g, beta) - lm.delta_rule_stepwise(q, k, v, g, beta)
    assert difference.abs().max() < 1e-5, difference.abs().max()


def check_experts():
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.double, requires_grad=True)

    index = torch.tensor([[0, 2], [2, 1], [1, 0], [0, 2], [4, 2], [0, 4], [2, 4]])  # expert 3 gets nothing
    x, weight, gate, up, down = draw(7, 4), draw(7, 2), draw(5, 3, 4), draw(5, 3, 4), draw(5, 4, 3)
    y = lm.RoutedExperts.apply(x, weight, index, gate, up, down)
    for t in range(7):
        expected = sum(weight[t, j] * (down[e] @ (F.silu(gate[e] @ x[t]) * (up[e] @ x[t]))) for j, e in enumerate(index[t]))
        torch.testing.assert_close(y[t], expected)
    # the compiled part of the gradient works in f32
    assert torch.autograd.gradcheck(lambda *a: lm.RoutedExperts.apply(*a[:2], index, *a[2:]), (x, weight, gate, up, down), eps=1e-3,
                                    atol=1e-3, nondet_tol=0)


def check_export(work):
    """Fresh weights, exported as F32, in llama.cpp and in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        subprocess.run([sys.executable, Path(__file__).parent / "export.py", work, path, "--type", "f32", "--random"], check=True)
        reference = Reference(path)
        torch.manual_seed(1)
        net = lm.Model(lm.Config())
        ids = torch.randint(300, 8000, (300,))
        with torch.no_grad():
            ours = net(ids[None])[0]
        theirs = torch.from_numpy(reference.feed(ids.tolist(), True))
        error = (ours - theirs).square().mean().sqrt() / theirs.std()
        assert error < 1e-4, error
        return error.item()


if __name__ == "__main__":
    check_delta_rule()
    check_experts()
    print(f"ok; export differs from llama.cpp by {check_export(Path(sys.argv[1])):.1e}")
