"""Videos: a few frames, evenly spaced in time.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.decode.error import DecodeError, expect, one_line
from datamodules.decode.extent import mp4_extent, webm_extent
from datamodules.reasons import Reason

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

    _Timed = tuple[int, Packet]

Video = tuple[Tensor, Tensor]

_DEMUXERS = {"MP4": "mov", "WebM": "matroska"}
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")  # of FFmpeg's some two hundred
_MAX_DECODED = 2**32  # pixels decoded on the way to the frames that are wanted


def decode_video(
    data: bytes,
    *,
    num_frames: int = 16,
    max_seconds: float = 600.0,
    max_pixels: int = 4096 * 2304,
    max_bytes: int = 512 * 2**20,
) -> Video:
    """Decode frames of an MP4 or WebM video (H.264, HEVC, VP8, VP9, AV1 or MPEG-4; no sound).

    The video is cut into `num_frames` parts of equal time, and the frame that is shown in the
    middle of each is taken. A rotation in the header is applied.

    Args:
        data: the whole file.
        num_frames: how many frames; a video of fewer gives each of them once.
        max_seconds: longest video that is decoded.
        max_pixels: largest width x height.
        max_bytes: most bytes of the frames that are returned. All limits are checked in the
            header and, since that may lie, on what comes out.

    Returns:
        (frames uint8 (T, 3, H, W) RGB, their times float32 (T,) in seconds from the first frame).

    Raises:
        DecodeError: not a video, too long, too large, truncated or damaged.
    """
    kind = expect(data, tuple(_DEMUXERS), "a video")
    extent = (mp4_extent if kind == "MP4" else webm_extent)(data)
    if extent > len(data):
        raise DecodeError(
            f"this {kind} video is truncated: {len(data)} of {extent} bytes", Reason.DAMAGED
        )
    import av

    options = {
        "max_pixels": str(max_pixels),  # for the decoder, which may meet another size
        "err_detect": "explode",  # do not conceal errors
        "codec_whitelist": ",".join((*_CODECS, "libdav1d")),
    }
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=_DEMUXERS[kind],
            options=options,
            metadata_errors="replace",
        ) as container:
            stream = _video_of(container.streams.video, kind)
            _check_size(stream.width * stream.height, num_frames, max_pixels, max_bytes)
            _check_seconds((container.duration or 0) / av.time_base, max_seconds)
            packets = _timed([p for p in container.demux(stream) if p.size and not p.is_discard])
            clock = float(stream.time_base or 0)  # seconds
            times = _times(packets, stream.codec_context.codec.canonical_name)
            _check_seconds((times[-1] - times[0]) * clock, max_seconds)
            chosen = _chosen(times, num_frames)
            seconds = torch.tensor([(time - times[0]) * clock for time in chosen])
            return _decode(stream, packets, set(chosen)), seconds
    except DecodeError:
        raise
    except Exception as error:  # FFmpeg has some forty classes of its own
        raise DecodeError(
            f"this {kind} video is damaged ({one_line(error)})", Reason.DAMAGED
        ) from error


def _video_of(streams: Sequence[VideoStream], kind: str) -> VideoStream:
    """The first stream that is no cover picture."""
    from av.stream import Disposition

    for stream in streams:
        if not stream.disposition & Disposition.attached_pic:
            codec = stream.codec_context.codec.canonical_name
            if codec in _CODECS:
                stream.codec_context.thread_count = 1
                return stream
            raise DecodeError(
                f"this {kind} video is coded as {codec}; {', '.join(_CODECS)} are read",
                Reason.WRONG_FORMAT,
            )
    raise DecodeError(f"this {kind} file holds no video", Reason.WRONG_FORMAT)


def _check_size(num_pixels: int, num_frames: int, max_pixels: int, max_bytes: int) -> None:
    if num_pixels > max_pixels:
        raise DecodeError(
            f"this video claims frames of {num_pixels} pixels, more than the limit of {max_pixels}",
            Reason.TOO_MANY_PIXELS,
        )
    if 3 * num_pixels * num_frames > max_bytes:
        raise DecodeError(
            f"{num_frames} frames of {num_pixels} pixels are more than the limit of {max_bytes} "
            "bytes once decoded",
            Reason.TOO_LARGE,
        )


def _check_seconds(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise DecodeError(
            f"this video lasts {seconds:.0f} s, more than the limit of {max_seconds:g}",
            Reason.TOO_LONG,
        )


def _timed(packets: Sequence[Packet]) -> list[_Timed]:
    """Packets with the times at which their frames are shown, in units of the stream's clock."""
    timed = [(packet.pts, packet) for packet in packets if packet.pts is not None]
    if not packets:
        raise DecodeError("this video holds no frame", Reason.EMPTY)
    if len(timed) < len(packets):
        raise DecodeError("frames of this video have no time", Reason.DAMAGED)
    return timed


def _times(packets: Sequence[_Timed], codec: str) -> list[int]:
    """When each frame is shown, in order, and when the last one ends."""
    # Bit 4 of a VP8 frame says that it is shown; some are there to predict from only.
    times = sorted({time for time, p in packets if codec != "vp8" or bytes(p)[0] & 16})
    if not times:
        raise DecodeError("this video shows no frame", Reason.EMPTY)
    return [*times, times[-1] + max(1, *(p.duration or 0 for _, p in packets))]


def _chosen(times: Sequence[int], num_frames: int) -> list[int]:
    """The times of the frames that are shown in the middle of `num_frames` equal parts."""
    if len(times) - 1 <= num_frames:
        return list(times[:-1])
    first, span = times[0], times[-1] - times[0]
    middles = [first + span * (2 * i + 1) / (2 * num_frames) for i in range(num_frames)]
    return sorted({times[bisect_right(times, middle) - 1] for middle in middles})


def _runs(packets: Sequence[_Timed], chosen: set[int]) -> Iterator[list[Packet]]:
    """Stretches of packets that begin at a key frame and suffice to decode the chosen frames."""
    starts = [0, *(i for i, (_, p) in enumerate(packets) if p.is_keyframe and i), len(packets)]
    groups = [packets[start:end] for start, end in pairwise(starts)]
    # Frames shown before the key frame that they follow are predicted from the group before, too.
    early = [any(t < g[0][0] and t in chosen for t, _ in g) for g in groups] + [False]
    run: list[Packet] = []
    for index, group in enumerate(groups):
        if early[index + 1] or any(time in chosen for time, _ in group):
            run += [p for time, p in group if run or not index or time >= group[0][0]]
        elif run:
            yield run
            run = []
    if run:
        yield run


def _decode(stream: VideoStream, packets: Sequence[_Timed], chosen: set[int]) -> Tensor:
    """The chosen frames (T, 3, H, W)."""
    runs = list(_runs(packets, chosen))
    total = stream.width * stream.height * sum(map(len, runs))
    if total > _MAX_DECODED:
        raise DecodeError(
            f"{total} pixels have to be decoded for {len(chosen)} frames of this video, more than "
            f"the limit of {_MAX_DECODED}; give it more key frames",
            Reason.TOO_LARGE,
        )
    frames, missing = [], set(chosen)
    for frame in (frame for run in runs for frame in _frames(stream, run, chosen)):
        if (frame.width, frame.height) != (stream.width, stream.height):
            raise DecodeError("the frames of this video change their size", Reason.DAMAGED)
        if frame.pts in missing:
            missing.remove(frame.pts)
            frames.append(_upright(frame))
    if missing:
        raise DecodeError(f"{len(missing)} frames of this video are damaged", Reason.DAMAGED)
    return torch.stack(frames)


def _frames(stream: VideoStream, run: Sequence[Packet], chosen: set[int]) -> Iterator[VideoFrame]:
    codec = stream.codec_context
    for packet in run:
        # A frame that nothing is predicted from is decoded only if it is wanted.
        codec.skip_frame = "DEFAULT" if packet.pts in chosen else "NONREF"
        yield from codec.decode(packet)
    yield from codec.decode(None)
    codec.flush_buffers()


def _upright(frame: VideoFrame) -> Tensor:
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return pixels.rot90(frame.rotation // 90, (1, 2)).contiguous()
