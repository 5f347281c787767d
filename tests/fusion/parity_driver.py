"""Gradients of contrastive training on 1, 2 and 3 processes, against one big batch on one.

`python -m tests.fusion.parity_driver FILE DEVICE W...` writes {case: largest deviation}; the tests
judge. DEVICE is cpu (gloo) or cuda (NCCL, a GPU for each process).
Torch is imported once and forked for each rank. The towers drop units out, share one image tower
between two directions, and are averaged over ranks by DistributedDataParallel, all in float64.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fusion import accumulation
from fusion.safeguards import all_finite
from tests.fusion.parity_cases import Case, Part, System, cases, join, make_parts


@cache
def expected(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Gradients of one process with the parts of all ranks, and the loss."""
    system = System(case).to(device)
    made = []
    for rank in range(case.ranks):
        parts = parts_of(case, rank, device)
        torch.manual_seed(100 + rank)
        made += [system.embed(part) for part in parts]
    loss = system.total(join(made), system.dense_loss)
    loss.backward()
    return gradients(system) | {"loss": loss.detach()}


def found(case: Case, rank: int, device: torch.device) -> dict[str, Tensor]:
    """The same of one of several ranks."""
    system = System(case).to(device)
    step = system if case.ranks == 1 else DistributedDataParallel(system)
    parts = parts_of(case, rank, device)
    torch.manual_seed(100 + rank)
    loss = step(parts)
    keep = accumulation._generators
    if case.method == "no replay of dropout":
        accumulation._generators = lambda state: nullcontext()
    loss.backward()
    accumulation._generators = keep
    mean = loss.detach().clone()
    if case.ranks > 1:
        dist.all_reduce(mean)
    return gradients(system) | {"loss": mean / case.ranks}


def parts_of(case: Case, rank: int, device: torch.device) -> list[Part]:
    return [{n: x.to(device) for n, x in part.items()} for part in make_parts(case)[rank]]


def gradients(system: System) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in system.named_parameters()
    }


def deviations(ranks: int, rank: int, device: torch.device) -> dict[str, float]:
    """The largest difference of each case from what is expected, over parameters and loss."""
    result = {}
    for case in cases(ranks):
        wanted = expected(case._replace(method="plain"), device)
        got = found(case, rank, device)
        worst = [(got[name] - wanted[name]).abs().max() for name in wanted]
        result[str(case)] = float(torch.stack(worst).nan_to_num(nan=torch.inf).max())
    return result


def answers(ranks: int, rank: int, device: torch.device) -> dict[str, float]:
    """1 where `all_finite` says yes: to good gradients, and to a bad one on the last rank."""
    tower, result = nn.Linear(2, 2, device=device), {}
    for name, value in (("good", 1.0), ("bad", torch.nan if rank == ranks - 1 else 1.0)):
        tower.bias.grad = torch.full_like(tower.bias, value)
        result[f"{name} gradients | {ranks}"] = float(
            all_finite(tower, torch.tensor(1.0, device=device))
        )
    return result


def run_rank(ranks: int, rank: int, folder: Path, kind: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    device, backend = torch.device(kind), "gloo"
    if kind == "cuda":
        device, backend = torch.device(kind, rank), "nccl"
        torch.cuda.set_device(device)
    store = f"file://{folder}/store{ranks}"
    dist.init_process_group(backend, store, world_size=ranks, rank=rank)
    (folder / f"{ranks}-{rank}.json").write_text(
        json.dumps(deviations(ranks, rank, device) | answers(ranks, rank, device))
    )
    dist.destroy_process_group()


def main(path: Path, kind: str, ranks: Sequence[int]) -> None:
    torch.set_num_threads(1)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in ranks:
            children = []
            for rank in range(count):
                child = os.fork()
                if not child:
                    run_rank(count, rank, Path(folder), kind)
                    os._exit(0)
                children.append(child)
            failed = [child for child in children if os.waitpid(child, 0)[1]]
            if failed:
                raise RuntimeError(f"{len(failed)} of {count} ranks failed")
            for rank in range(count):
                for case, worst in json.loads(
                    Path(folder, f"{count}-{rank}.json").read_text()
                ).items():
                    result[case] = max(worst, result.get(case, 0.0))
    path.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(count) for count in sys.argv[3:]])
