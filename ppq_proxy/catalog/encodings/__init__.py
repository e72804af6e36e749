"""OpenAI's byte-pair encodings, carried along: counting tokens never touches the network.

The files are those that tiktoken would download (MIT licence), packed with xz; their contents are pinned by SHA-256.
An encoding is unpacked on first use (0.3 to 0.6 s and about 60 MB for o200k, half of that for cl100k), so a server
calls `preload` in a thread at start.
"""

import base64
import functools
import hashlib
import lzma
import threading
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tiktoken import Encoding

_LETTERS = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_SMALL = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


class _Definition(NamedTuple):
    file: str
    sha256: str
    pattern: str
    special: dict[str, int]


_DEFINITIONS: Final = {
    "o200k": _Definition(
        "o200k_base.tiktoken.xz",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "|".join(
            (
                rf"[^\r\n\p{{L}}\p{{N}}]?[{_LETTERS}]*[{_SMALL}]+{_ENDING}",
                rf"[^\r\n\p{{L}}\p{{N}}]?[{_LETTERS}]+[{_SMALL}]*{_ENDING}",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            )
        ),
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
    "cl100k": _Definition(
        "cl100k_base.tiktoken.xz",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "|".join(
            (
                r"'(?i:[sdmt]|ll|ve|re)",
                r"[^\r\n\p{L}\p{N}]?+\p{L}++",
                r"\p{N}{1,3}+",
                r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
                r"\s++$",
                r"\s*[\r\n]",
                r"\s+(?!\S)",
                r"\s",
            )
        ),
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
}
NAMES: Final = tuple(_DEFINITIONS)
_building: Final = threading.Lock()
_loaded: Final[set[str]] = set()


class DamagedEncoding(RuntimeError):
    """The installed file is not the one that this release was made with."""


def content(name: str) -> bytes:
    """The unpacked file of an encoding: lines of a token in base64 and its rank. Raises DamagedEncoding."""
    definition = _DEFINITIONS[name]
    packed = resources.files(__package__).joinpath(definition.file).read_bytes()
    try:
        unpacked = lzma.decompress(packed)
    except lzma.LZMAError as error:
        raise DamagedEncoding(f"{definition.file}: {error}") from None
    if hashlib.sha256(unpacked).hexdigest() != definition.sha256:
        raise DamagedEncoding(f"{definition.file} has another content than expected")
    return unpacked


def encoding(name: str) -> "Encoding":
    """The encoding "o200k" or "cl100k", built once in a process whoever asks first."""
    with _building:
        return _built(name)


def loaded(name: str) -> bool:
    """True if an encoding is there already: building it takes a third of a second and 50 MB, so only who counts does."""
    return name in _loaded


def preload(names: tuple[str, ...] = ("o200k",)) -> None:
    """Build encodings now; for a thread at start-up."""
    for name in names:
        encoding(name)


@functools.cache
def _built(name: str) -> "Encoding":
    import tiktoken  # late: the command line starts without it

    definition = _DEFINITIONS[name]
    ranks = {base64.b64decode(line[: line.index(b" ")]): rank for rank, line in enumerate(content(name).splitlines())}
    built = tiktoken.Encoding(
        f"{name}_base", pat_str=definition.pattern, mergeable_ranks=ranks, special_tokens=definition.special
    )
    # The encoder has its own copy; ours would only hold 20 MB.
    ranks.clear()
    _loaded.add(name)
    return built
