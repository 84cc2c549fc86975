"""Optimizers seen as memories of gradients: delta gradient descent and multi-scale momentum.

Behrouz et al. 2025, Nested Learning. A gradient step on y = W x writes the pair (x, -u), u = dL/dy, into W as a sum of outer
products; `DGD` writes it by the delta rule instead, so that a repeated or correlated x replaces what it held:
    W <- W - eta' (W x + u) x^T = W (I - eta' x x^T) - eta' u x^T
`M3` keeps gradients on two clocks and makes matrices orthogonal, as Muon does (Jordan et al. 2024):
    M1 every step, M2 every f steps from the f gradients between;  theta <- theta - lr (NS(M1) + a NS(M2))
Legend: N samples, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at zero, singular values end within .7 and 1.2

Closure = Callable[[], float]


class DGD(Optimizer):
    """Delta gradient descent for every `nn.Linear` of a model, and plain gradient descent for its other parameters.

        W <- W (I - eta' X^T X / N) - eta' grad,    eta' = lr / (1 + lr mean ||x||^2)

    X [N, I] are the inputs of the forward passes that were differentiated since the last step, grad that of a loss averaged
    over the N samples. For one sample this is exactly the W that minimises 1/2 ||W x + u||^2 + 1/(2 lr) ||W - W_0||^2: for
    a u that stays, no rate is too large. Hooks on the model watch its layers; `close()` takes them off and ends the optimizer.

    W x is pulled towards -u. Where u = -v is fixed (a loss -<y, v>) this is the delta rule and ends at W x = v. A loss whose
    u vanishes at its solution is shrunk along the inputs instead: c/2 ||W x - v||^2 ends at W x = v c / (1 + c), so scale
    such a loss up.
    """

    def __init__(self, model: nn.Module, lr: float = 0.1):
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}")
        _positive("lr", lr)
        super().__init__(model.parameters(), {"lr": lr})
        self._inputs: dict[Tensor, list[Tensor]] = {}
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self._hooks = [layer.register_forward_hook(self._watch) for layer in layers]

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._inputs.clear()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients as they are; `closure` may compute them first."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for p in group["params"]:
                inputs = self._inputs.pop(p, None)
                if p.grad is None:
                    continue
                rate = group["lr"]
                if inputs and len(x := torch.cat(inputs)):
                    rate = rate / (1 + rate * x.square().sum(-1).mean())
                    p.sub_(rate * ((p @ x.mT) @ x) / len(x))
                p.sub_(rate * p.grad)
        return loss

    def _watch(self, layer: nn.Linear, args: tuple[Any, ...], y: Tensor) -> None:
        """Keep the input of this pass, but only once it is differentiated: evaluations leave nothing."""
        if not y.requires_grad or not layer.weight.requires_grad:
            return
        x = args[0].detach().flatten(0, -2).to(layer.weight) if args[0].dim() > 1 else args[0].detach()[None]

        def keep(_: Tensor) -> None:
            self._inputs.setdefault(layer.weight, []).append(x)

        y.register_hook(keep)


class M3(Optimizer):
    """Multi-scale momentum: a fast momentum every step, a slow one every `every` steps.

        M1 <- b1 M1 + (1 - b1) g;  V <- b2 V + (1 - b2) g^2;  every f steps M2 <- b3 M2 + (1 - b3) mean of the last f g
        matrices: theta <- theta - lr (NS(M1) + a NS(M2));  vectors: theta <- theta - lr (M1 + a M2) / (sqrt V + eps)

    betas: b1, b2, b3. every: f. slow: a, the weight of the slow momentum. NS is Newton-Schulz orthogonalisation; what has
    more axes than two is a matrix of its first axis by the rest. Averages of vectors are corrected for their start at zero.
    ema: as written above. The published rule adds up (M1 += b1 g, V += b2 g^2, M2 += b3 sum of g) and never forgets, which
    `ema=False` does; which of the two was meant is not clear.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        betas: tuple[float, float, float] = (0.9, 0.99, 0.9),
        every: int = 8,
        slow: float = 0.5,
        ema: bool = True,
        eps: float = 1e-8,
    ):
        _positive("lr", lr)
        _positive("eps", eps)
        if len(betas) != 3 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"betas: expected three numbers from 0 to below 1, got {betas}")
        if every < 1:
            raise ValueError(f"every: expected at least 1 step, got {every}")
        if slow < 0:
            raise ValueError(f"slow: expected a weight of at least 0, got {slow}")
        options = {"lr": lr, "betas": betas, "every": every, "slow": slow, "ema": ema, "eps": eps}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients as they are; `closure` may compute them first."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * self._direction(p, group))
        return loss

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        g, state, ema, every = p.grad, self.state[p], group["ema"], group["every"]
        assert g is not None
        if not state:
            names = ("fast", "slow", "gathered") if p.dim() > 1 else ("fast", "slow", "gathered", "variance")
            state["step"] = 0
            state |= {name: torch.zeros_like(p) for name in names}
        state["step"] += 1

        def gather(name: str, beta: float, new: Tensor) -> None:
            keep, take = (beta, 1 - beta) if ema else (1.0, beta)
            state[name].mul_(keep).add_(new, alpha=take)

        b1, b2, b3 = group["betas"]
        gather("fast", b1, g)
        state["gathered"] += g
        if state["step"] % every == 0:
            gather("slow", b3, state["gathered"] / every if ema else state["gathered"])
            state["gathered"].zero_()
        if p.dim() > 1:
            fast, slow = (orthogonal(state[name].flatten(1)).view_as(p) for name in ("fast", "slow"))
            step: Tensor = fast + group["slow"] * slow
            return step
        gather("variance", b2, g.square())

        def average(name: str, beta: float, steps: int) -> Tensor:
            """Without the pull towards the zeros an average starts from."""
            value: Tensor = state[name]
            return value / (1 - beta**steps) if ema and steps else value

        fast, variance = average("fast", b1, state["step"]), average("variance", b2, state["step"])
        slow = average("slow", b3, state["step"] // every)
        step = (fast + group["slow"] * slow) / (variance.sqrt() + group["eps"])
        return step


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: a matrix [O, I] with its singular values moved to about one; a zero matrix stays zero.

    At least single precision, since the iteration amplifies what rounding leaves of small singular values.
    """
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrix if matrix.dtype == torch.double else matrix.float()
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)


def _evaluate(closure: Closure | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")
