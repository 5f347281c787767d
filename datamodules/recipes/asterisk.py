"""Asterisk's telephone prompts: one professional speaker, with transcripts."""

import gzip
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task, key_of, members_of
from datamodules.recipes.packages import DebianPackage, RecipeError

_VOICE = Path("usr/share/asterisk/sounds/en_US_f_Allison")
_TRANSCRIPTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
_SPEAKER, _LICENCE = "Allison Smith", "CC-BY-SA-3.0"


@final
class Asterisk(Recipe):
    """English prompts, one sample for each recording of speech that has a transcript.

    Members: `flac` (8 kHz mono, the samples of the package's file), `txt` (the transcript),
    `json` (source, path, language, speaker, licence). One speaker: good for a test that speech is
    learnt at all, not for one of other voices.
    """

    name = "asterisk"
    packages = (
        DebianPackage("asterisk-core-sounds-en"),
        DebianPackage("asterisk-core-sounds-en-wav"),
    )
    libraries = ()

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each recording whose transcript is words, not "[a tone]"."""
        for place in (_VOICE, _TRANSCRIPTS):
            if not (source / place).exists():
                raise RecipeError(
                    f"No {place} in {source}; give the folder into which asterisk-core-sounds-en "
                    "and asterisk-core-sounds-en-wav were extracted."
                )
        transcripts = read_transcripts(source / _TRANSCRIPTS)
        root = source / _VOICE
        for path in sorted(root.rglob("*.wav")):
            place = path.relative_to(root).with_suffix("").as_posix()
            text = transcripts.get(place) or transcripts.get(path.stem, "")
            if not text:
                yield Rejection(place, "no transcript")
            elif text.startswith(("[", "(")):
                yield Rejection(place, f"no speech: {text}")
            else:
                yield Task(place, partial(_draw, path, place, text))


def read_transcripts(path: Path) -> dict[str, str]:
    """Reads lines `name: text`, name relative to the voice's folder; `;` begins a comment.

    Raises:
        RecipeError: When it is no gzip file of UTF-8.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line.partition(":") for line in file if not line.startswith(";")]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is damaged ({error}); extract the package again.") from error
    return {name.strip(): text.strip() for name, colon, text in lines if colon}


def _draw(path: Path, place: str, text: str) -> Drawn:
    import soundfile

    frames, rate = soundfile.read(path, dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, frames, rate, format="FLAC", subtype="PCM_16")
    meta = {
        "source": "asterisk",
        "path": place,
        "language": "en",
        "speaker": _SPEAKER,
        "licence": _LICENCE,
    }
    return Drawn(key_of(place), members_of("flac", out.getvalue(), text, meta))
