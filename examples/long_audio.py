"""Five minutes of speech as 16,000 tokens: windows, contexts of windows, one context.

A pyramid fuses windows of 256 frames, then the contexts of 8 windows at a time, then all that is
left. Each window stops on its own, and the cost grows with the length; where every token reads
every other it grows with the square.

Run: python examples/long_audio.py (six seconds; the sample data's speech, no weights)

Shapes: N frames, D mel bands, which are the width of the tokens.
"""

from functools import partial
from importlib import resources
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from datamodules import decode_samples, read_shards
from encoders.audio import LogMel
from fusion import FixedPointSolver, FusionBlock, FusionOutput
from fusion.accom import RelationalAccom
from fusion.recursion import ContextPyramid, PyramidOutput

NUM_FRAMES, NUM_MELS = 16_000, 64
FRAME_SECONDS = 0.02
WINDOWS = (256, 8)


def speech() -> Tensor:
    """The first (N, D) log-mel frames of the sample data's French names, one after the other."""
    shard = Path(str(resources.files("datamodules"))) / "sample_data" / "stamps-000000.tar.gz"
    samples = decode_samples(read_shards([shard], {"audio": ("speech_fr.opus",)}))
    waves, rate, missing = [], 16_000, NUM_FRAMES * FRAME_SECONDS
    for sample in samples:
        if "audio" in sample.inputs:
            wave, rate = sample.inputs["audio"]
            waves.append(wave)
            missing -= wave.shape[1] / rate
        if missing < 0:
            break
    frames = LogMel(NUM_MELS, NUM_FRAMES * FRAME_SECONDS)
    return frames((torch.cat(waves, dim=1), rate))[:NUM_FRAMES]


def fuse(model: FusionBlock | ContextPyramid, frames: Tensor) -> FusionOutput | PyramidOutput:
    """The output for one recording."""
    position = torch.zeros(1, len(frames), 3)
    position[..., 0] = torch.arange(len(frames)) * FRAME_SECONDS
    return model(frames[None], torch.ones(1, len(frames), dtype=torch.bool), position)


def cost(model: FusionBlock | ContextPyramid, frames: Tensor) -> tuple[float, float]:
    """Seconds of one pass, and the megabytes that it keeps for the backward pass."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = fuse(model, frames)
        seconds = perf_counter() - start
    del out
    return seconds, sum(kept.values()) / 1e6


def main() -> None:
    """Prints what each level did, and how cost grows with length."""
    torch.manual_seed(0)
    make = partial(FusionBlock, NUM_MELS, num_slots=8, solver=FixedPointSolver(tol=1e-3))
    pyramid = ContextPyramid([make(), make(), make()], WINDOWS)
    frames = speech()
    with torch.no_grad():
        out = fuse(pyramid, frames)
    assert isinstance(out, PyramidOutput)

    print(f"{len(frames)} frames, {len(frames) * FRAME_SECONDS:.0f} s of speech\n")
    print("level   tokens  rounds  converged      q   error <=")
    for number, (tokens, stats) in enumerate(out.levels, start=1):
        print(
            f"{number:5d} {tokens.mask.shape[1]:8d} {stats.num_iters[0]:7d}  "
            f"{bool(stats.converged[0])!s:>9}  {stats.q[0]:5.2f}  {stats.error_bound[0]:9.1e}"
        )
    print(f"top   {out.context.shape[1]:8d}  slots; of each level its worst window\n")
    assert all(level.stats.converged.all() for level in out.levels)

    print("one pass with gradients      frames  seconds  MB kept")
    for name, model, lengths in (
        ("pyramid", pyramid, (4000, 8000, 16000)),
        ("one block, 8 slots", make(), (4000, 8000, 16000)),
        ("one block, every pair", make(accom=RelationalAccom), (500, 1000, 2000)),
    ):
        for length in lengths:
            seconds, megabytes = cost(model, frames[:length])
            print(f"{name:<25} {length:9d} {seconds:8.2f} {megabytes:8.0f}")


if __name__ == "__main__":
    main()
