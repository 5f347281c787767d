"""Checks of numbers, rounds and memory."""

import os
from typing import final

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fusion.doctor.base import Check, Finding, Patient, State, without_dropout

CONVERGED = 0.95  # share of samples
STATES = 4  # numbers kept for each weight that trains: weight, gradient, two averages of Adam


@final
class FiniteNumbers(Check):
    """Whether losses and gradients are finite in float32 and under bf16 autocast."""

    title = "finite in fp32 and bf16"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        bad, losses = [], []
        for name, enabled in (("fp32", False), ("bf16", True)):
            model, loss = patient.copy()
            without_dropout(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                total = patient.total(model, loss)
            total.backward()
            losses.append(float(total.detach()))
            gradients = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
            wrong = [n for n, slope in gradients if not slope.isfinite().all()]
            if not total.isfinite() or wrong:
                bad.append(f"{name} ({wrong[0] if wrong else 'the loss'})")
        what = f"loss {losses[0]:.3f} in fp32, {losses[1]:.3f} in bf16"
        if bad:
            advice = f"Not finite in {', '.join(bad)}: check inputs and norms there."
            return Finding(State.FAIL, what, advice)
        return Finding(State.OK, what)


@final
class Converged(Check):
    """How many samples the iteration of each block brings to rest, and in how many rounds."""

    title = "the iteration converges"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, _ = patient.copy()
        model.eval()
        names = [name for name in model.modalities if name in patient.batch["inputs"]]
        with torch.no_grad():
            stats = model.fuse(model.encode(patient.batch, names)).stats
        share = min(float(each.converged.float().mean()) for each in stats)
        rounds = torch.cat([each.num_iters for each in stats]).float()
        q = max(float(each.q.max()) for each in stats)
        what = f"{share:.0%} in {rounds.mean():.1f} rounds, at most {rounds.max():.0f}; q {q:.2f}"
        if share < CONVERGED:
            advice = "Raise the solver's max_iters or tol, or choose an Assim that contracts."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class Memory(Check):
    """What a training step at the configured batch size needs, beside what this machine has."""

    title = "memory of a step"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, loss = patient.copy(awake=False)
        without_dropout(model)
        known = {p.data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in known:
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            patient.total(model, loss).backward()
        activations = sum(seen.values()) / len(patient.batch["group_id"]) * patient.batch_size
        need = _bytes(model) + activations
        has = _available()
        what = (
            f"{need / 1e9:.2f} GB at batch_size {patient.batch_size}, of them "
            f"{activations / 1e9:.2f} for activations; {has / 1e9:.1f} GB are free here"
        )
        if need > has:
            advice = "Lower batch_size, or give pairing.part_size: parts are the same batch."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


def _bytes(model: nn.Module) -> int:
    """Of weights, gradients and the optimizer's averages."""
    return sum(
        p.numel() * p.element_size() * (STATES if p.requires_grad else 1)
        for p in model.parameters()
    )


def _available() -> int:
    """Bytes of memory that are free, or that the machine has where it does not say."""
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    if not torch.cuda.is_available():
        return free
    return torch.cuda.mem_get_info()[0]
