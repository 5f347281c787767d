"""Metadata: JSON objects."""

from __future__ import annotations

import json
from typing import Any

from datamodules.decode.error import DecodeError, one_line
from datamodules.reasons import Reason


def decode_metadata(data: bytes, *, max_bytes: int = 2**20) -> dict[str, Any]:
    """Decode a JSON object; NaN and infinities, which JSON does not have, are refused.

    Raises:
        DecodeError: not a JSON object of finite values, or longer than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise DecodeError(
            f"this metadata has {len(data)} bytes; the limit is {max_bytes}", Reason.TOO_LARGE
        )
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(
            f"this metadata is not JSON ({one_line(error)})", Reason.NOT_JSON
        ) from error
    if not isinstance(value, dict):
        raise DecodeError(
            f"this metadata is a {type(value).__name__}; wanted a JSON object", Reason.NOT_JSON
        )
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
