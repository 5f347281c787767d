"""The fusion block on its own: three modalities, some absent, and what its certificate promises.

Run: python examples/block_only.py (two seconds, no data, no weights)

Shapes: B batch, N tokens, D width.
"""

import torch

from fusion import FixedPointSolver, FusionBlock, Tokens
from fusion.tokens import concat

NUM_TOKENS = {"image": 9, "text": 6, "audio": 20}


def random_tokens(index: int, num_tokens: int, present: list[bool]) -> Tokens:
    """Tokens of one modality; samples that lack it have an all-False row in the mask."""
    mask = torch.tensor(present).unsqueeze(1).expand(-1, num_tokens)
    values = torch.randn(len(present), num_tokens, 64)
    modality = torch.full((num_tokens,), index)
    return Tokens(values, mask, torch.zeros(len(present), num_tokens, 3), modality)


def main() -> None:
    """Fuses four samples and compares the certificate with the truth."""
    torch.manual_seed(0)
    present = {
        "image": [True, True, False, False],
        "text": [True, False, True, False],
        "audio": [True, True, False, False],
    }
    tokens = concat(
        [
            random_tokens(index, NUM_TOKENS[name], present[name])
            for index, name in enumerate(NUM_TOKENS)
        ]
    )
    block = FusionBlock(dim=64, num_heads=4, num_slots=8, solver=FixedPointSolver(tol=1e-2))
    exact = FixedPointSolver(max_iters=200, tol=1e-6)

    with torch.no_grad():
        choice = block.choose(tokens.values, tokens.mask, tokens.position)
        start = choice.start()
        real = choice.real(start)
        state, stats = block.solver(choice.step, start, real, choice.q)
        truth, _ = exact(choice.step, start, real)
    gap = (state - truth).norm(dim=-1).amax(dim=(1, 2))

    print("modalities         rounds  converged      q   error <=   true error")
    for row in range(len(tokens.mask)):
        names = "+".join(name for name in NUM_TOKENS if present[name][row]) or "(none)"
        print(
            f"{names:<18} {stats.num_iters[row]:6d}  {bool(stats.converged[row])!s:>9}  "
            f"{stats.q[row]:5.2f}  {stats.error_bound[row]:9.1e}   {gap[row]:10.1e}"
        )
    assert (gap <= stats.error_bound + 1e-6).all()


if __name__ == "__main__":
    main()
