"""Video frame by frame through an image tower, and frames that carry their times.

Letters: B batch, L frames of a sample, P real frames, N tokens of a frame, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from encoders.base import Encoder, EncoderOutput

_STAMP = 4  # bytes of a float32
_SLACK = 1e-3  # of a sampling period: a frame at its very end counts for the next

Video = tuple[Tensor, Tensor]
"""uint8 frames (T, 3, H, W) and their float times (T,) in seconds, rising from 0 or later."""


@final
@dataclass(frozen=True)
class EachFrame:
    """Samples the frames of a video by time and transforms each.

    Args:
        picture: Transform of one frame. What it draws at random is the same for all frames.
        fps: Most frames kept of a second.
        max_seconds: Seconds kept of a video.
        random_start: Keep them from a random time on, not from the start.
    """

    picture: Callable[[Tensor], Tensor]
    fps: float
    max_seconds: float
    random_start: bool = False

    def __call__(self, raw: Video) -> Tensor:
        """Turn frames and times into (L, bytes) uint8, for `unstamp` to read.

        Raises:
            ValueError: If `raw` is no video, or `picture` makes more than one of a frame.
        """
        frames, times = sample_frames(raw, self.fps, self.max_seconds, self.random_start)
        draws = torch.get_rng_state()
        pictures = []
        for frame in frames:
            torch.set_rng_state(draws)
            pictures.append(self.picture(frame))
        if any(len(picture) != 1 for picture in pictures):
            raise ValueError(
                f"{self.picture} makes {len(pictures[0])} pictures of a frame; choose an image "
                "tower whose transform makes one."
            )
        return stamp(torch.cat(pictures), times)


def sample_frames(
    raw: Video, fps: float, max_seconds: float, random_start: bool = False
) -> tuple[Tensor, Tensor]:
    """The first frame of each 1 / fps seconds: uint8 (L, 3, H, W) and times (L,) in seconds.

    A second that holds fewer frames gives those that it holds; none is made up.

    Raises:
        ValueError: If `raw` is not `(frames, times)` of that form.
    """
    frames, times = raw
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(
            f"The frames of a video must be uint8 RGB of shape (frames, 3, height, width), got "
            f"{frames.dtype} {tuple(frames.shape)}; decode them first."
        )
    times = times.double()
    rising = times.shape == frames.shape[:1] and bool((times.diff() > 0).all())
    if not rising or not times.isfinite().all() or times[0] < 0:
        raise ValueError(
            f"A video of {len(frames)} frames needs as many times in seconds, rising from 0 or "
            f"later, got {tuple(times.shape)} from {times.min():g} to {times.max():g}."
        )
    start = float(times[0])
    if random_start:
        spare = max(0.0, float(times[-1]) - start - max_seconds)
        start = float(times[times <= start + float(torch.rand(())) * spare][-1])
    elapsed = (times - start) * fps + _SLACK  # periods
    first = torch.cat([elapsed.new_ones(1, dtype=torch.bool), elapsed.floor().diff() > 0])
    kept = first & (elapsed >= 0) & (elapsed < max_seconds * fps)
    return frames[kept], times[kept].float()


def stamp(values: Tensor, seconds: Tensor) -> Tensor:
    """Puts a time (L,) with each of some values (L, ...): (L, bytes) uint8.

    Times of frames are uneven, and what a transform makes is a single tensor.
    """
    parts = (values.contiguous().flatten(1), seconds.float().unsqueeze(1))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def unstamp(stamped: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (..., values) uint8 and seconds (...) float32 of what `stamp` made."""
    seconds = stamped[..., -_STAMP:].contiguous().view(torch.float32).squeeze(-1)
    return stamped[..., :-_STAMP].contiguous(), seconds


@final
class FrameEncoder(Encoder):
    """Any image tower over the frames of a video: its tokens, each with the time of its frame.

    It has no weights beside the tower's and trains as the tower does.

    Args:
        image: The tower; its transform makes one picture of a frame, all of one size.
        fps: Most frames taken of a second.
        max_seconds: Seconds kept of a video.
        modality: Name of the modality.

    Raises:
        ValueError: If `fps` or `max_seconds` is not above 0.
    """

    def __init__(
        self,
        image: Encoder,
        fps: float = 2.0,
        max_seconds: float = 30.0,
        modality: str = "video",
    ) -> None:
        if min(fps, max_seconds) <= 0:
            raise ValueError(f"Got fps={fps} and max_seconds={max_seconds}; give both above 0.")
        super().__init__(
            modality,
            image.dim,
            EachFrame(image.transform, fps, max_seconds),
            EachFrame(image.augment, fps, max_seconds, random_start=True),
        )
        self.image = image
        frame = image.transform(torch.zeros(3, 64, 64, dtype=torch.uint8))
        self.shape, self.dtype = frame.shape[1:], frame.dtype
        if image.frozen:
            self.freeze()

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode stamped frames (B, L, bytes) into L times the tokens of a frame."""
        rows, seconds = unstamp(inputs[mask] if mask.any() else inputs[:1, 0].clone().zero_())
        frames = rows.view(self.dtype).unflatten(1, self.shape)  # (P, ...)
        real = torch.ones(len(frames), 1, dtype=torch.bool, device=mask.device)
        tokens = self.image(frames.unsqueeze(1), real)
        place = tokens.position.clone()  # (P, N, 3)
        place[..., 0] += seconds.unsqueeze(1)
        values, position, token_mask = (
            _lay_out(part, mask).flatten(1, 2) for part in (tokens.values, place, tokens.mask)
        )
        return EncoderOutput(values, token_mask, position)


def _lay_out(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows (P, ...) to the True places of the mask (B, L), zero elsewhere: (B, L, ...)."""
    values = rows.new_zeros(*mask.shape, *rows.shape[1:])
    return values.index_put((mask,), rows[: int(mask.sum())])
