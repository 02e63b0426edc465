"""Text to token ids: a Hugging Face tokenizer.json, or a plain vocabulary with one word a line."""

from __future__ import annotations

import codecs
import hashlib
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from edge_mbm.errors import EdgeMbmError, EngineError, InputError, ManifestError, MissingDependencyError
from edge_mbm.spec import TokenSteps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_CHARACTERS",
    "MAX_TOKENIZER_BYTES",
    "Detokenizer",
    "TextPreprocessor",
    "as_lines",
    "as_text",
    "is_tokenizer_json",
]

MAX_CHARACTERS = 10_000
"""Of one text: a prompt or an utterance. What is longer is refused, so that a document cannot hold a stream up."""
MAX_TOKENIZER_BYTES = 64 << 20
"""Of a tokenizer's file: those of a quarter of a million words have 17 MB."""

# Of a tokenizer.json that does not say with what it pads: the names that models give that token.
_PADDING_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
_UNKNOWN = 1
"""Of a plain vocabulary: 0 is padding, 1 any word that it lacks."""
_SPECIAL = [b"", b"[UNK]"]
_PUNCTUATION = string.punctuation.encode()


class TextPreprocessor:
    """One text to one row of numbers, or to one for each of its lines, padded and cut to ``max_length``.

    Which kind of tokenizer the asset is shows in its first character: "{" begins a ``tokenizer.json``, and no word of
    a vocabulary, where punctuation is stripped.

    - A Hugging Face ``tokenizer.json`` says itself how text is normalised and split, which special tokens are added,
      and with what and on which side it is padded and cut. It needs the tokenizers library.
    - A vocabulary is UTF-8, one word a line, as Keras's ``TextVectorization.get_vocabulary()`` lists it: index 0 is
      padding, 1 is any unknown word; where the file does not begin with an empty line and "[UNK]", they are counted
      before its first word. Text is lowered and stripped of punctuation (ASCII, as ``TextVectorization`` does it),
      split at white space, cut and padded at its end.

    Args:
        steps: length, and which of the token's numbers are wanted.
        asset: bytes of the tokenizer's file.

    Raises:
        ManifestError: the file is neither, or has no room for its special tokens within ``max_length``.
        MissingDependencyError: a ``tokenizer.json``, and the tokenizers library is not installed.
    """

    def __init__(self, steps: TokenSteps, asset: bytes) -> None:
        rows = () if steps.lines == 1 else (steps.lines,)
        self.shape: tuple[int, ...] = (1, *rows, steps.max_length)
        self._gives = steps.gives
        self._lines = steps.lines
        self._tokenizer = _load(asset, steps.max_length, f"the tokenizer '{steps.asset}'")

    def __call__(self, data: object, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Prepare one text.

        Args:
            data: str; an empty one gives special tokens and padding only, where a text is not taken line by line.
            out: int64 of ``shape`` to write into, such as an engine's input buffer.

        Returns:
            int64[1, max_length], or int64[1, lines, max_length]: ``out`` if given. Ids; or 1 where a token is and 0
            where padding is; or segments. Rows without a line are padding.

        Raises:
            InputError: not such a text, or see ``as_lines``.
        """
        tokens = self._tokenizer.encode(as_lines(data, self._lines))[self._gives]
        result = np.empty(self.shape, np.int64) if out is None else out
        rows = result.reshape(self._lines, -1)
        rows[: len(tokens)] = tokens
        rows[len(tokens) :] = self._tokenizer.padding[self._gives]
        return result


class Detokenizer:
    """Token ids back to text, by the same files as ``TextPreprocessor``.

    Args:
        asset: bytes of the tokenizer's file.

    Raises:
        ManifestError: it is neither.
        MissingDependencyError: a ``tokenizer.json``, and the tokenizers library is not installed.
    """

    def __init__(self, asset: bytes) -> None:
        self._tokenizer = _load(asset, None, "the decoder's tokenizer")

    def __call__(self, tokens: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        return self._tokenizer.decode(tokens)

    def partial(self, tokens: Sequence[int]) -> str:
        """The same for a text that is not over: without a last letter of which only a part has come."""
        return self(tokens).rstrip("\N{REPLACEMENT CHARACTER}")


def as_text(data: object) -> str:
    """Check a text.

    Args:
        data: str of at most ``MAX_CHARACTERS``; any characters, control characters included.

    Raises:
        InputError: says what came and what is expected.
    """
    if not isinstance(data, str):
        raise InputError(f"a text is a str, got {type(data).__name__}")
    if len(data) > MAX_CHARACTERS:
        raise InputError(f"a text has at most {MAX_CHARACTERS} characters, got {len(data)}: cut it to what matters")
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is no valid Unicode ({error.reason}, character {error.start})") from None
    return str(data)


def as_lines(data: object, lines: int) -> tuple[str, ...]:
    """The prompts that a text is.

    Args:
        data: as for ``as_text``.
        lines: of how many lines at most it is a list, see ``TokenSteps.lines``; 1 for a text that is one prompt.

    Returns:
        Its lines in order, without white space around them and without the empty ones; or the text itself for 1.

    Raises:
        InputError: no such text, nothing but white space in it, or more lines than there is room for.
    """
    text = as_text(data)
    if lines == 1:
        return (text,)
    found = tuple(line for line in map(str.strip, text.splitlines()) if line)
    if not found:
        raise InputError("the text is empty, and a prompt was expected on each of its lines: give at least one")
    if len(found) > lines:
        raise InputError(
            f"the text has {len(found)} prompts, one a line, and the bundle has room for {lines} at a time"
        )
    return found


def is_tokenizer_json(asset: bytes) -> bool:
    """Whether a tokenizer's file is a ``tokenizer.json``; else it is a vocabulary."""
    return asset[:256].lstrip().startswith(b"{")


class _Tokenizer(Protocol):
    """Texts to int64[texts, max_length] of "ids", "mask" and "segments", and tokens back to a text; for any threads."""

    padding: Mapping[str, int]
    """What each of the three is where no token is."""

    def encode(self, texts: tuple[str, ...]) -> Mapping[str, NDArray[np.int64]]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


_LOADED: WeakValueDictionary[tuple[bytes, int | None], _Tokenizer] = WeakValueDictionary()
"""While they are used: ids, mask and segments of one encoder, and several sessions, share one."""


def _load(asset: bytes, max_length: int | None, where: str) -> _Tokenizer:
    """Without a ``max_length`` it only decodes."""
    if len(asset) > MAX_TOKENIZER_BYTES:
        raise ManifestError(f"{where} has {len(asset)} bytes; at most {MAX_TOKENIZER_BYTES} are read")
    key = (hashlib.sha256(asset).digest(), max_length)
    tokenizer = _LOADED.get(key)
    if tokenizer is None:
        kind = _HuggingFace if is_tokenizer_json(asset) else _Vocabulary
        tokenizer = _LOADED[key] = kind(asset, max_length, where)
    return tokenizer


class _Vocabulary:
    """Words by their line."""

    padding: Mapping[str, int] = {"ids": 0, "mask": 0, "segments": 0}

    def __init__(self, asset: bytes, max_length: int | None, where: str) -> None:
        lines = [line.removesuffix(b"\r") for line in asset.removeprefix(codecs.BOM_UTF8).split(b"\n")]
        words = lines if lines[-1] else lines[:-1]
        words = words[2:] if words[:2] == _SPECIAL else words
        self._index = {word: index for index, word in enumerate(words, start=_UNKNOWN + 1)}
        self._words = ["", "[UNK]", *(word.decode(errors="replace") for word in words)]
        self._max_length = max_length or 0
        _check_words(words, self._index, where)

    def encode(self, texts: tuple[str, ...]) -> Mapping[str, NDArray[np.int64]]:
        ids = np.zeros((len(texts), self._max_length), np.int64)
        for row, text in zip(ids, texts, strict=True):
            found = [self._index.get(word, _UNKNOWN) for word in _words(text.encode())][: self._max_length]
            row[: len(found)] = found
        return {"ids": ids, "mask": (ids != 0).astype(np.int64), "segments": np.zeros_like(ids)}

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self._words[token] for token in tokens if 0 < token < len(self._words))


def _words(text: bytes) -> list[bytes]:
    # Of bytes, so that ASCII alone is lowered, stripped and split at: TensorFlow's string functions do it so.
    return text.lower().translate(None, _PUNCTUATION).split()


def _check_words(words: list[bytes], index: Mapping[bytes, int], where: str) -> None:
    for number, word in enumerate(words):
        shown = repr(word.decode(errors="replace"))
        if _words(word) != [word]:
            raise ManifestError(
                f"{where} is taken for a vocabulary, and has {shown}, which no text gives once it is in lower case, "
                "without punctuation and split into words: it was made with other settings, or is another kind of file"
            )
        if index[word] != number + _UNKNOWN + 1:
            raise ManifestError(f"{where} has {shown} twice: a vocabulary has each word once")
    if not words:
        raise ManifestError(f"{where} is empty: a vocabulary has a word on each line")


class _HuggingFace:
    """A ``tokenizer.json``, set to pad and cut to one length."""

    def __init__(self, asset: bytes, max_length: int | None, where: str) -> None:
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - optional: a plain vocabulary does without
        except ImportError:
            remedy = "pip install 'edge-mbm[text]'"
            raise MissingDependencyError("tokenizers", "reading a tokenizer.json", remedy) from None
        self._where = where
        self._max_length = max_length or 0
        self._last: tuple[tuple[str, ...], Mapping[str, NDArray[np.int64]]] | None = None
        self.padding: Mapping[str, int] = {"ids": 0, "mask": 0, "segments": 0}
        with _explained(ManifestError, f"{where} is not a tokenizer.json that this tokenizers library reads"):
            self._tokenizer: Any = Tokenizer.from_buffer(asset)
        if max_length is None:
            return
        with _explained(ManifestError, f"{where} cannot be set to a length"):
            padding = _fit_length(self._tokenizer, max_length, where)
        self.padding = {"ids": padding.get("pad_id", 0), "mask": 0, "segments": padding.get("pad_type_id", 0)}
        if len(self._encoded("").ids) != max_length:
            raise ManifestError(f"{where} adds more special tokens than its max_length of {max_length} has room for")

    def encode(self, texts: tuple[str, ...]) -> Mapping[str, NDArray[np.int64]]:
        # Once for the ids, the mask and the segments of the same text.
        last = self._last
        if last is not None and last[0] == texts:
            return last[1]
        rows = [self._row(text) for text in texts]
        tokens = {key: np.array([row[key] for row in rows], np.int64) for key in self.padding}
        self._last = (texts, tokens)
        return tokens

    def _row(self, text: str) -> Mapping[str, list[int]]:
        encoded = self._encoded(text)
        if len(encoded.ids) != self._max_length:
            raise InputError(f"{self._where} gives {len(encoded.ids)} tokens for a text, not {self._max_length}")
        return {"ids": encoded.ids, "mask": encoded.attention_mask, "segments": encoded.type_ids}

    def decode(self, tokens: Sequence[int]) -> str:
        with _explained(EngineError, f"{self._where} failed on tokens"):
            return str(self._tokenizer.decode(list(tokens)))

    def _encoded(self, text: str) -> Any:
        with _explained(InputError, f"{self._where} failed on a text"):
            return self._tokenizer.encode(text)


def _fit_length(tokenizer: Any, max_length: int, where: str) -> Mapping[str, Any]:
    """Pad and cut to one length, as the file says, but for how long; returns with what it pads."""
    padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    kept = {key: padding[key] for key in ("pad_id", "pad_token", "pad_type_id", "direction") if key in padding}
    chosen = kept or _own_padding(tokenizer, where)
    tokenizer.enable_padding(length=max_length, **chosen)
    tokenizer.enable_truncation(max_length, direction=truncation.get("direction", "right"))
    return chosen


def _own_padding(tokenizer: Any, where: str) -> dict[str, Any]:
    found = ((token, tokenizer.token_to_id(token)) for token in _PADDING_TOKENS)
    for token, index in found:
        if index is not None:
            return {"pad_token": token, "pad_id": index}
    raise ManifestError(
        f"{where} does not say with what it pads, and has none of the tokens {', '.join(_PADDING_TOKENS)}: load it "
        "with the tokenizers library, call enable_padding(pad_id=..., pad_token=...) and save it again"
    )


@contextmanager
def _explained(kind: type[EdgeMbmError], what: str) -> Iterator[None]:
    """The library's own exceptions are bare ``Exception``, or a panic of its Rust code, which is not even that."""
    try:
        yield
    except (EdgeMbmError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise kind(f"{what}: {str(error)[:300]}") from error
