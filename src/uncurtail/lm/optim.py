"""The inner optimizers: Muon for the blocks' matrices, AdamW for the embedding and the head.

Muon (Jordan 2024) replaces each momentum matrix by the nearest orthogonal one. It is only for
matrices inside the network: not for embeddings, heads, vectors or scalars. `OptimSection` says
which rates are scaled by what. Suffixes: N matrices of R rows and C columns.
"""
# ruff: noqa: N803, N806

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uncurtail.lm.sections import OptimSection

__all__ = ["Muon", "OptimSection", "Optimizers", "build_optimizers", "fast_bf16", "orthogonalize"]

Quintic = tuple[float, float, float]  # a, b, c of x -> ax + bx^3 + cx^5 on every singular value

# Jordan's quintic, steepest at zero; five steps bring every singular value into about [0.7, 1.2]
NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
# Polar Express (2505.16932): the best quintic at each step for singular values in [1e-3, 1], made
# 2 % shallower against rounding
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_LIMIT: Quintic = (15 / 8, -10 / 8, 3 / 8)  # what they tend to, for further steps
POLAR_MARGIN = 1.02  # its quintics blow up above one, so start that much below
# Where the Gram matrix stands for the matrix itself, the steps (first, every so many) before which
# it is made anew: rounding makes eigenvalues below zero, which every step multiplies by a^2. In
# bfloat16, of momenta of real training, the largest singular values are then 1.21 and 1.15 (1.20
# and 1.14 without Gram matrices). Polar Express by (2, 2) gives 1.4, by (3, 3) 1,800; 12 steps of
# Newton-Schulz by (3, 3) overflow.
GRAM_ANEW = {"newton-schulz": (3, 2), "polar-express": (1, 2)}
GRAM_PAYS = 2  # columns a row from which on the Gram matrix's products are clearly fewer
REFERENCE_WIDTH = 768  # nanochat tuned its AdamW rates at this width
RESID_LR_SHARE = 0.01  # of scalar_lr: the multipliers of the residual stream compound


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 here: Ampere on, or AVX512-BF16 or AMX.

    Other GPUs (T4, V100) and CPUs emulate bfloat16, which is slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def quintics(section: OptimSection) -> tuple[list[Quintic], float]:
    """The polynomials to apply one after the other, and how far below norm one to start."""
    if section.orthogonalization == "newton-schulz":
        return [NEWTON_SCHULZ] * section.muon_steps, 1.0
    further = (POLAR_LIMIT,) * max(0, section.muon_steps - len(POLAR_EXPRESS))
    return [*POLAR_EXPRESS[: section.muon_steps], *further], POLAR_MARGIN


def orthogonalize(update_NRC: Tensor, section: OptimSection, dtype: torch.dtype) -> Tensor:
    """Bring the singular values of N matrices close to one, N at a time.

    Args:
        update_NRC: N matrices of R rows and C columns.
        section: Which polynomials, and how many of them.
        dtype: What to compute and return in.
    """
    steps, margin = quintics(section)
    tall = update_NRC.shape[1] > update_NRC.shape[2]
    x = update_NRC.to(dtype)
    x = x.mT if tall else x  # the Gram matrix is the smaller of the two
    x = x / (x.norm(dim=(1, 2), keepdim=True) * margin).clamp(min=1e-7)
    if x.shape[2] >= GRAM_PAYS * x.shape[1]:
        first, every = GRAM_ANEW[section.orthogonalization]
        x = _by_gram(x, steps, range(first, len(steps), every))
    else:
        for a, b, c in steps:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _by_gram(x: Tensor, steps: list[Quintic], anew: Collection[int]) -> Tensor:
    """The same steps on R x R matrices: each is x -> p(G) x with G = x x^T, and G -> p(G) G p(G).

    Gram Newton-Schulz (Dao lab, 2026): for C = 4 R a third fewer operations by Newton-Schulz,
    a fifth by Polar Express. `anew`: the steps before which x itself is made, and G from it.
    """
    gram = x @ x.mT
    eye = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    product: Tensor | None = None  # of all p(G) since x was made
    for number, (a, b, c) in enumerate(steps):
        if number in anew and product is not None:
            x = product @ x
            gram, product = x @ x.mT, None
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # p(G) - a
        if product is None:
            product = rest + a * eye
        else:
            product = torch.baddbmm(product, rest, product, beta=a)
        if number + 1 < len(steps) and number + 1 not in anew:
            half = torch.baddbmm(gram, rest, gram, beta=a)
            gram = torch.baddbmm(half, half, rest, beta=a)
    assert product is not None
    return product @ x


def even_out(update_NRC: Tensor, squares: Tensor, beta: float) -> Tensor:
    """Let every neuron move equally far over time, at an unchanged norm of each matrix.

    NorMuon (2510.05491), in the form of nanochat of January 2026: a neuron is a row, or a column
    of a matrix that has more of these.

    Args:
        update_NRC: Orthogonalized updates.
        squares: The running mean of each neuron's squared updates, (N, R, 1) or (N, 1, C): is
            moved towards this update's.
        beta: How much of it is kept.
    """
    x = update_NRC.float()
    across = 2 if squares.shape[2] == 1 else 1
    now = x.square().mean(dim=across, keepdim=True)
    squares.lerp_(now, 1.0 - beta)
    factor = squares.clamp(min=1e-10).rsqrt()
    before, after = (part.sum(dim=(1, 2), keepdim=True) for part in (now, now * factor.square()))
    return x * (factor * (before / after.clamp(min=1e-20)).sqrt())


class Muon:
    """Nesterov momentum, orthogonalized; matrices of one shape are handled as one batch.

    Agrees with `torch.optim.Muon`, which takes them one by one, unless an option of nanochat's
    later optimizer is on.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], section: OptimSection, weight_decay: float
    ) -> None:
        self._section, self._weight_decay = section, weight_decay
        shapes: dict[torch.Size, dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in named.items():
            shapes[parameter.shape][name] = parameter
        self._groups = list(shapes.values())
        self._momenta = [torch.stack([*group.values()]).detach().zero_() for group in self._groups]
        self._squares = [
            average.new_zeros(_one_a_neuron(average.shape) if section.variance_reduction else 0)
            for average in self._momenta
        ]
        device = next(iter(named.values())).device
        self.dtype = torch.bfloat16 if fast_bf16(device) else torch.float32

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay_scale: float = 1.0) -> None:
        """Move every matrix by its gradient; one without a gradient is an error of ours.

        `decay_scale` multiplies the weight decay.
        """
        decay = lr * self._weight_decay * decay_scale
        for group, average_NRC, squares in zip(
            self._groups, self._momenta, self._squares, strict=True
        ):
            parameters = list(group.values())
            gradients = [parameter.grad for parameter in parameters]
            gradient_NRC = torch.stack([g for g in gradients if g is not None])
            average_NRC.lerp_(gradient_NRC, 1.0 - momentum)
            update_NRC = gradient_NRC.lerp_(average_NRC, momentum)
            update_NRC = orthogonalize(update_NRC, self._section, self.dtype)
            if self._section.variance_reduction:
                update_NRC = even_out(update_NRC, squares, self._section.variance_beta)
            rows, columns = parameters[0].shape
            stretch = math.sqrt(max(1.0, rows / columns))
            for parameter, update in zip(parameters, update_NRC, strict=True):
                if self._section.cautious_weight_decay:
                    # nanochat stretches this decay along with the update
                    agrees = update * parameter >= 0
                    parameter.sub_(parameter * agrees, alpha=decay * stretch)
                elif decay:
                    parameter.mul_(1.0 - decay)
                parameter.add_(update.to(parameter.dtype), alpha=-lr * stretch)

    def state(self) -> dict[str, Tensor]:
        """Each matrix's running averages, as `kind/parameter`: views, not copies."""
        kinds = {"momentum": self._momenta}
        if self._section.variance_reduction:
            kinds["squares"] = self._squares
        return {
            f"{kind}/{name}": average
            for kind, averages in kinds.items()
            for group, average_NRC in zip(self._groups, averages, strict=True)
            for name, average in zip(group, average_NRC, strict=True)
        }


def _one_a_neuron(shape: torch.Size) -> tuple[int, int, int]:
    count, rows, columns = shape
    return (count, rows, 1) if rows >= columns else (count, 1, columns)


@dataclass(frozen=True, slots=True)
class Scale:
    """What the rates are multiplied with for the size of the model and of a step."""

    by_width: float
    by_depth: float
    by_batch: float

    @classmethod
    def of(cls, section: OptimSection, width: int, depth: int, batch_tokens: int | None) -> "Scale":
        """The factors that `OptimSection` describes; `batch_tokens` are those of a step."""
        assert section.reference_batch_tokens is None or batch_tokens is not None
        ratio = (batch_tokens or 1) / (section.reference_batch_tokens or batch_tokens or 1)
        return cls(
            by_width=(width / REFERENCE_WIDTH) ** -0.5,
            by_depth=((section.reference_depth or depth) / depth) ** 2,
            by_batch=math.sqrt(ratio),
        )

    def rate(self, section: OptimSection, name: str) -> float:
        """AdamW's rate of a parameter, before the batch is reckoned with."""
        match name:
            case "resid_lambdas":
                return RESID_LR_SHARE * section.scalar_lr
            case "x0_lambdas":
                return section.scalar_lr
            case "lm_head.weight":
                return self.by_width * section.head_lr
            case _:
                return self.by_width * section.embedding_lr


class Optimizers:
    """Muon and AdamW as one, with a state of named tensors that needs no pickle."""

    def __init__(self, model: nn.Module, section: OptimSection, scale: Scale) -> None:
        named = dict(model.named_parameters())
        self._matrices = {n: p for n, p in named.items() if ".h." in n and p.ndim == 2}
        self._rest = {n: p for n, p in named.items() if n not in self._matrices}
        self._muon = Muon(self._matrices, section, section.weight_decay * scale.by_depth)
        self._matrix_lr = section.matrix_lr * scale.by_batch
        self._rates = {name: scale.by_batch * scale.rate(section, name) for name in self._rest}
        self._adamw = torch.optim.AdamW(
            [{"params": [self._rest[name]], "lr": rate} for name, rate in self._rates.items()],
            betas=section.adam_betas,
            eps=section.adam_eps,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, lr_scale: float, momentum: float, decay_scale: float = 1.0) -> None:
        """One update of every parameter from its gradient.

        `lr_scale` multiplies every rate, `decay_scale` the weight decay (on top of the rate).
        """
        for group, rate in zip(self._adamw.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate * lr_scale
        self._adamw.step()
        self._muon.step(self._matrix_lr * lr_scale, momentum, decay_scale)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Orthogonalize in this dtype from now on; at first it is bfloat16 where that is fast."""
        self._muon.dtype = dtype

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self._matrices.values(), *self._rest.values()):
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The state as `kind/parameter` -> tensor; live tensors, so copy before the next step."""
        state = self._muon.state()
        for name, parameter in self._rest.items():
            for kind, value in self._adam_state(parameter).items():
                state[f"{kind}/{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: Names or shapes differ; nothing has then been changed.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise ValueError(f"optimizer state of another model: {odd} do not match")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(f"optimizer state {name} has shape {tuple(state[name].shape)}")
        for name, value in own.items():
            value.copy_(state[name])

    def _adam_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's tensors of one parameter, made here if no step has been taken yet."""
        state = self._adamw.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return dict(state)


def build_optimizers(
    model: nn.Module, section: OptimSection, batch_tokens: int | None = None
) -> Optimizers:
    """The optimizers of a `GPT`: Muon for the matrices in its blocks, AdamW for the rest.

    `batch_tokens` are the tokens of one step; needed only with `reference_batch_tokens`.
    """
    names = [name for name, _ in model.named_parameters()]
    depth = sum(name.endswith("attn.c_q.weight") for name in names)
    width = model.get_parameter("lm_head.weight").shape[1]
    return Optimizers(model, section, Scale.of(section, width, depth, batch_tokens))
