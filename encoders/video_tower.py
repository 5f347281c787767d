"""Video through the space-time towers of torchvision.

Letters: B batch, L frames of a sample, P clips, S frame side, N tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from encoders.base import Encoder, EncoderOutput, TrainMode
from encoders.picture import Normalise, cell_positions
from encoders.video import Video, sample_frames, stamp, unstamp
from encoders.video_trunk import check_clip, video_recipe, video_trunk
from encoders.windows import cut_windows, join_windows

_LONGEST = 8  # times the shorter side; beyond that a frame's ends are never seen


@final
@dataclass(frozen=True)
class VideoFrames:
    """Samples the frames of a video by time, scales them and cuts out a square.

    Args:
        fps: Most frames kept of a second.
        max_seconds: Seconds kept of a video.
        scaled: Height and width that frames are scaled to, or their shorter side alone.
        size: Side S of the square.
        random: Keep a random time and place, not the start and the centre.
    """

    fps: float
    max_seconds: float
    scaled: tuple[int, ...]
    size: int
    random: bool = False

    def __call__(self, raw: Video) -> Tensor:
        """Turn frames and times into (L, bytes) uint8, for `unstamp` to read.

        Raises:
            ValueError: If `raw` is no video.
        """
        from torchvision.transforms import functional, v2

        frames, times = sample_frames(raw, self.fps, self.max_seconds, self.random)
        # As the weights' own recipe, which does without antialiasing.
        if len(self.scaled) == 1:
            longest = _LONGEST * min(frames.shape[2:])
            frames = functional.center_crop(frames, [min(n, longest) for n in frames.shape[2:]])
        frames = functional.resize(frames, list(self.scaled), antialias=False)
        cut: Callable[[Tensor], Tensor] = (v2.RandomCrop if self.random else v2.CenterCrop)(
            self.size
        )
        return stamp(cut(frames), times)


@final
class TorchvisionVideo(Encoder):
    """A video tower of torchvision; its last feature map in time and space are the tokens.

    Frames are taken in clips one after the other; the last repeats its last frame. Batch
    normalisation is folded into the convolutions, which is exact in eval mode, or, from scratch,
    replaced by group normalisation with one group, so that samples stay independent.

    Args:
        name: "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t",
            "swin3d_s" or "swin3d_b".
        weights: Tag of published weights, such as "KINETICS400_V1", or a local file.
        size: Side in pixels of a frame; None is that of the weights' recipe.
        fps: Most frames taken of a second.
        max_seconds: Seconds kept of a video.
        clip_frames: Frames that a token can see.
        train: How the weights take part in training; of these towers MViT alone takes "lora".

    Raises:
        ValueError: If there is no such tower, or the weights or the sizes do not fit it.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """

    def __init__(
        self,
        name: str = "r2plus1d_18",
        weights: str | None = None,
        size: int | None = None,
        fps: float = 8.0,
        max_seconds: float = 10.0,
        clip_frames: int = 16,
        train: TrainMode = "frozen",
    ) -> None:
        recipe = video_recipe(name, weights, size)
        check_clip(name, recipe.size, clip_frames)
        trunk, dim = video_trunk(name, weights, train)
        frames = VideoFrames(fps, max_seconds, recipe.scaled, recipe.size)
        super().__init__("video", dim, frames, replace(frames, random=True))
        self.size = recipe.size
        self.clip_frames = clip_frames
        self.normalise = Normalise(recipe.mean, recipe.std)
        self.net = trunk
        self.set_train_mode(train)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode stamped frames (B, L, bytes); tokens go by time, then row, then column."""
        windows = cut_windows(inputs, mask, self.clip_frames)
        frames, _ = unstamp(_repeat_last(windows.values, windows.lengths))
        clips = self.normalise(frames.unflatten(2, (3, self.size, self.size))).transpose(1, 2)
        # On a CPU, torch 2.11's bfloat16 gradients of space-time convolutions are not all finite.
        with torch.autocast("cpu", enabled=False):
            maps = self.net(clips.to(next(self.net.parameters()).dtype))  # (P, time, row, col, D)
        step = self.clip_frames // maps.shape[1]
        step_mask = mask[:, ::step]
        maps = maps[: len(windows.values)]
        values = join_windows(maps.flatten(2), windows.place, step_mask)
        _, seconds = unstamp(inputs[:, ::step])
        cells = cell_positions(*maps.shape[2:4]).to(mask.device)
        position = cells.repeat(*step_mask.shape, 1, 1)
        position[..., 0] = seconds.masked_fill(~step_mask, 0).unsqueeze(2)
        return EncoderOutput(
            values.unflatten(2, (len(cells), self.dim)).flatten(1, 2),
            step_mask.repeat_interleave(len(cells), dim=1),
            position.flatten(1, 2),
        )


def _repeat_last(values: Tensor, lengths: Tensor) -> Tensor:
    """Clips (P, L, bytes), their last real frame repeated to the end; one empty clip if P is 0."""
    if not len(values):
        return values.new_zeros(1, *values.shape[1:])
    steps = torch.arange(values.shape[1], device=values.device)
    rows = torch.arange(len(values), device=values.device)
    return values[rows[:, None], steps.minimum(lengths[:, None] - 1)]
