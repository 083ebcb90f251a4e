"""Muon for the weight matrices: momentum, orthogonalised by Newton and Schulz's iteration (Jordan et al. 2024),
with steps about as large as AdamW's at the same rate (Liu et al. 2025)."""

from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Root mean square of a step, as a share of the rate: somewhat more than AdamW's usual one.
STEP_RMS = 0.3
# A quintic whose fifth iterate takes singular values from 0.01 to 1 near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(g: Tensor) -> Tensor:
    """Matrices `[n, rows, columns]` with all singular values drawn towards 1; bf16 on a GPU, where that is
    enough."""
    x = g.bfloat16() if g.is_cuda else g
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are worked on together. What has more than two dimensions counts as
    `[first, all others]`."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float):
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for p in params:
            shapes[tuple(p.shape)].append(p)
        groups = [{"params": same} for same in shapes.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params, rate = group["params"], group["lr"]
            grads = torch.stack([p.grad.flatten(1) for p in params]).float()
            # The state of a group lies with its first matrix.
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            momentum = state["momentum"].lerp_(grads, 1 - MOMENTUM)
            step = orthogonalised(grads.lerp(momentum, MOMENTUM))
            scale = STEP_RMS * max(step.shape[1:]) ** 0.5
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
            steps = [s.view(p.shape).to(p.dtype) for s, p in zip(step.contiguous().unbind(), params)]
            torch._foreach_add_(params, steps, alpha=-rate * scale)
