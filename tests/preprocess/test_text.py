"""Text to token ids, by a vocabulary and by a tokenizer.json."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import InputError, ManifestError, MissingDependencyError
from edge_mbm.preprocess import TextPreprocessor, as_lines, build_preprocessor
from edge_mbm.preprocess.text import MAX_CHARACTERS, MAX_TOKENIZER_BYTES, is_tokenizer_json
from edge_mbm.spec import TensorSpec, TokenSteps

WORDS = ["a", "red", "mug", "it's".replace("'", ""), "naïve", "2"]
VOCABULARY = "\n".join(["", "[UNK]", *WORDS]).encode() + b"\n"
huggingface = pytest.mark.needs("tokenizers")


def tokens(asset: bytes, text: object, max_length: int = 6, gives: Any = "ids") -> list[int]:
    prepare = TextPreprocessor(TokenSteps(asset="words", max_length=max_length, gives=gives), asset)
    row = prepare(text)
    assert (row.shape, row.dtype) == ((1, max_length), np.int64)
    found: list[int] = row[0].tolist()
    return found


# --- a vocabulary ----------------------------------------------------------------------------------------------------


def test_words_are_counted_from_two() -> None:
    """0 is padding and 1 unknown; case and punctuation do not matter, what is too long is cut at its end."""
    assert tokens(VOCABULARY, "A RED, (mug)!") == [2, 3, 4, 0, 0, 0]
    assert tokens(VOCABULARY, "it's\ta\n\rblue mug") == [5, 2, 1, 4, 0, 0]
    assert tokens(VOCABULARY, "mug " * 9) == [4] * 6
    assert tokens(VOCABULARY, "") == tokens(VOCABULARY, " ,. \n") == [0] * 6


def test_mask_and_segments_go_with_the_ids() -> None:
    """The mask is 1 for known and unknown words alike; a single text is of segment 0."""
    assert tokens(VOCABULARY, "a blue mug", gives="mask") == [1, 1, 1, 0, 0, 0]
    assert tokens(VOCABULARY, "a blue mug", gives="segments") == [0] * 6


ALPHABET = st.sampled_from(
    [*WORDS, "RED", "É", "naÏve", "don't", "_", " ", "\t", "\x0b", "\u00a0", "\x00", "\x1b[31m", "{", "~"]
)


@given(st.one_of(st.text(), st.lists(ALPHABET).map("".join), st.lists(ALPHABET).map(" ".join)))
def test_it_is_what_text_vectorization_does(text: str) -> None:
    """Against the steps that Keras documents: ASCII is lowered, its punctuation goes, its white space splits."""
    upper = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
    plain = re.sub(r'[!"#$%&()\*\+,-\./:;<=>?@\[\\\]^_`{|}~\']', "", text.translate(upper))
    words = [word for word in re.split(r"[ \t\n\r\x0b\x0c]+", plain) if word]
    listed = ["", "[UNK]", *WORDS]
    expected = [listed.index(word) if word in WORDS else 1 for word in words][:6]
    assert tokens(VOCABULARY, text) == expected + [0] * (6 - len(expected))


@pytest.mark.parametrize(
    "asset",
    [
        "\n".join(WORDS).encode(),
        "\r\n".join(["", "[UNK]", *WORDS, ""]).encode(),
        b"\xef\xbb\xbf" + VOCABULARY,
        b"\xef\xbb\xbf" + "\n".join(WORDS).encode(),
    ],
    ids=["without the special ones", "from Windows", "with a byte order mark", "with a mark and without them"],
)
def test_a_vocabulary_is_read_however_it_was_written(asset: bytes) -> None:
    """The words have the same numbers."""
    assert tokens(asset, "a naïve red mug") == tokens(VOCABULARY, "a naïve red mug") == [2, 6, 3, 4, 0, 0]


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        (b"", "empty"),
        (b"\n[UNK]\n", "empty"),
        (b"a\nRed\n", "'Red', which no text gives"),
        (b"a\ndon't\n", "other settings"),
        (b"a\nred mug\n", "'red mug'"),
        (b"a\n\nmug\n", "''"),
        (b"a\nmug\na\n", "'a' twice"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "taken for a vocabulary"),
    ],
)
def test_what_is_no_vocabulary_is_refused(asset: bytes, message: str) -> None:
    """A word that no text could give would be unknown for ever, without a word."""
    with pytest.raises(ManifestError, match=rf"the tokenizer 'words'.*{re.escape(message)}"):
        tokens(asset, "a")


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"red", 3, None, ["red"], np.zeros(3, np.uint8), "red\ud800", "a" * (MAX_CHARACTERS + 1)]
)
def test_what_is_no_text_is_refused(data: object) -> None:
    """Another type, half a character, or a document, with what came in the message."""
    with pytest.raises(InputError, match=r"a text|the text"):
        tokens(VOCABULARY, data)


def test_the_longest_text_is_taken() -> None:
    """Exactly the limit, control characters included, and a numpy string."""
    assert tokens(VOCABULARY, "\x00" * MAX_CHARACTERS)[:2] == [1, 0]
    assert tokens(VOCABULARY, np.array("red")[()])[:2] == [3, 0]


def test_the_engines_buffer_is_written() -> None:
    """Into it, all of it, and it is what comes back; without one, the caller may keep what it gets."""
    prepare = TextPreprocessor(TokenSteps(asset="words", max_length=3), VOCABULARY)
    buffer = np.full((1, 3), 99, np.int64)
    assert prepare("mug", buffer) is buffer
    assert buffer.tolist() == [[4, 0, 0]]
    first, second = prepare("red"), prepare("red")
    second[...] = 7
    assert first.tolist() == [[3, 0, 0]]


def test_the_asset_must_be_there_and_fit_the_input() -> None:
    """Its name is in the message; the graph's input is int64 of the same length."""
    steps, tensor = TokenSteps(asset="words", max_length=3), TensorSpec(dtype="int64", shape=("batch", 3))
    assert build_preprocessor(steps, tensor, {"words": VOCABULARY})("mug").tolist() == [[4, 0, 0]]
    with pytest.raises(ManifestError, match=r"'words'; there is \['others'\]"):
        build_preprocessor(steps, tensor, {"others": VOCABULARY})
    for wrong in (TensorSpec(dtype="int32", shape=("batch", 3)), TensorSpec(dtype="int64", shape=("batch", 4))):
        with pytest.raises(ManifestError, match=r"TokenSteps give int64\[1, 3\]"):
            build_preprocessor(steps, wrong, {"words": VOCABULARY})


def test_a_file_without_end_is_not_read() -> None:
    """Beyond the limit it is refused before anything is made of it."""
    with pytest.raises(ManifestError, match=str(MAX_TOKENIZER_BYTES)):
        tokens(b"a" * (MAX_TOKENIZER_BYTES + 1), "a")


# --- a tokenizer.json ------------------------------------------------------------------------------------------------

VOCAB = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "red": 5, "mug": 6, "##s": 7}


def wordpiece(vocab: dict[str, int] | None = None, **changes: Any) -> bytes:
    """As BERT's: lower case, pieces of words, [CLS] before and [SEP] after."""
    special = {name: {"id": name, "ids": [VOCAB[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single = [*pieces, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, *second],
            "special_tokens": special,
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab or VOCAB,
        },
    }
    return json.dumps(whole | changes).encode()


@huggingface
def test_a_tokenizer_json_says_how() -> None:
    """Special tokens, pieces and case are the file's; cutting leaves room for the special ones."""
    assert tokens(wordpiece(), "A RED mugs blue", 8) == [2, 4, 5, 6, 7, 1, 3, 0]
    assert tokens(wordpiece(), "A RED mugs blue", 8, "mask") == [1, 1, 1, 1, 1, 1, 1, 0]
    assert tokens(wordpiece(), "A RED mugs blue", 8, "segments") == [0] * 8
    assert tokens(wordpiece(), "A RED mugs blue", 4) == [2, 4, 5, 3]
    assert tokens(wordpiece(), "", 4) == [2, 3, 0, 0]
    assert tokens(wordpiece(), "\x00\x1b[2J", 4)[0] == 2
    assert len(tokens(wordpiece(), "a" * MAX_CHARACTERS, 4)) == 4


@huggingface
def test_the_side_and_the_number_of_padding_are_the_files() -> None:
    """And the side that is cut, but not the file's own lengths."""
    padding = {
        "strategy": {"Fixed": 128},
        "direction": "Left",
        "pad_to_multiple_of": 8,
        "pad_id": 1,
        "pad_type_id": 1,
        "pad_token": "[UNK]",
    }
    truncation = {"direction": "Left", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    asset = wordpiece(padding=padding, truncation=truncation)
    assert tokens(asset, "red", 5) == [1, 1, 2, 5, 3]
    assert tokens(asset, "red", 5, "mask") == [0, 0, 1, 1, 1]
    assert tokens(asset, "red", 5, "segments") == [1, 1, 0, 0, 0]
    assert tokens(asset, "red a mug mug", 4) == [2, 6, 6, 3]


@huggingface
def test_padding_that_nobody_names_is_asked_for() -> None:
    """By the usual names of the token, whatever its number; where there is none, it is not guessed."""
    renamed = {("<pad>" if key == "[PAD]" else key): (9 if key == "[PAD]" else index) for key, index in VOCAB.items()}
    assert tokens(wordpiece(renamed), "red", 4) == [2, 5, 3, 9]
    without = {key: index for key, index in VOCAB.items() if key != "[PAD]"}
    with pytest.raises(ManifestError, match=r"does not say with what it pads.*enable_padding"):
        tokens(wordpiece(without), "red", 4)


@huggingface
def test_special_tokens_need_room() -> None:
    """Two of them do not fit in one; the library would give two."""
    assert tokens(wordpiece(), "red", 2) == [2, 3]
    with pytest.raises(ManifestError, match=r"more special tokens than its max_length of 1"):
        tokens(wordpiece(), "red", 1)


@huggingface
@pytest.mark.parametrize(
    "asset",
    [
        b"{",
        b"{}",
        b" \n{}",
        b'{"a": ' * 100_000,
        b'{"model": {"type": "BPE"}}',
        b"{\xff\xfe}",
        wordpiece(model={"type": "WordPiece", "vocab": {"a": -1}}),
        wordpiece(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed", "invert": False}),
    ],
    ids=["cut off", "empty", "blank before it", "deep", "without words", "not UTF-8", "negative ids", "bad pattern"],
)
def test_a_hostile_tokenizer_json_is_refused(asset: bytes) -> None:
    """One message that names the asset, whatever the library makes of it."""
    with pytest.raises(ManifestError, match=r"the tokenizer 'words' is not a tokenizer\.json"):
        tokens(asset, "red")


@huggingface
def test_ids_that_no_word_has_are_an_error_of_the_text() -> None:
    """A file whose unknown token is missing fails on a word that it lacks, not on the others."""
    vocab = {key: index for key, index in VOCAB.items() if key != "[UNK]"}
    asset = wordpiece(vocab)
    assert tokens(asset, "red", 4) == [2, 5, 3, 0]
    with pytest.raises(InputError, match="the tokenizer 'words' failed on a text"):
        tokens(asset, "blue", 4)


def test_the_kinds_are_told_apart_by_their_first_character() -> None:
    """A brace is punctuation, which no word of a vocabulary has."""
    assert is_tokenizer_json(wordpiece())
    assert is_tokenizer_json(b" \n\t{}")
    assert not is_tokenizer_json(VOCABULARY)
    assert not is_tokenizer_json(b"")


def test_without_the_library_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary needs none."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"edge-mbm\[text\]"):
        tokens(wordpiece(), "red", 7)
    assert tokens(VOCABULARY, "red")[0] == 3


class FakeLibrary(ModuleType):
    """In place of tokenizers: counts what it encodes, and may panic."""

    def __init__(self, fault: BaseException | None = None) -> None:
        super().__init__("tokenizers")
        self.texts: list[str] = []
        self.fault = fault
        self.Tokenizer = SimpleNamespace(from_buffer=lambda _: self)
        self.padding = self.truncation = None

    def enable_padding(self, **_: Any) -> None: ...

    def enable_truncation(self, *_: Any, **__: Any) -> None: ...

    def token_to_id(self, _: str) -> int:
        return 0

    def encode(self, text: str) -> Any:
        self.texts.append(text)
        if self.fault is not None and text == "panic":
            raise self.fault
        return SimpleNamespace(ids=[1, 2], attention_mask=[1, 1], type_ids=[0, 1])


def test_one_text_is_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many inputs of an encoder, and whichever session, want something of it."""
    library = FakeLibrary()
    monkeypatch.setitem(sys.modules, "tokenizers", library)
    steps = [TokenSteps(asset="words", max_length=2, gives=gives) for gives in ("ids", "mask", "segments")]  # type: ignore[arg-type]
    prepared = [TextPreprocessor(step, b'{"one": 1}') for step in steps]
    rows = [prepare(text)[0].tolist() for text in ("red", "blue", "red") for prepare in prepared]
    assert rows == [[1, 2], [1, 1], [0, 1]] * 3
    assert library.texts == ["", "red", "blue", "red"]


def test_a_panic_of_the_library_is_an_error_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust's panics are not even an ``Exception``; Ctrl-C stays what it is."""

    class Panic(BaseException):
        pass

    for fault, seen in ((Panic("index out of bounds"), InputError), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setitem(sys.modules, "tokenizers", FakeLibrary(fault))
        asset = json.dumps({"fault": repr(fault)}).encode()
        prepare = TextPreprocessor(TokenSteps(asset="words", max_length=2), asset)
        with pytest.raises(seen):
            prepare("panic")


# --- several prompts in one text -------------------------------------------------------------------------------------

LISTS = st.lists(st.sampled_from(["a red mug", "mug", "blue", "a " * 9, "тест", "{", "don't"]), min_size=1, max_size=4)
ASSETS = [VOCABULARY, pytest.param("wordpiece", marks=huggingface)]


@pytest.mark.parametrize("asset", ASSETS)
@pytest.mark.parametrize("gives", ["ids", "mask", "segments"])
@given(prompts=LISTS, between=st.sampled_from(["\n", "\r\n", "\n\n", " \n\t", "\u2028"]))
def test_each_line_is_prepared_as_a_text_by_itself(
    asset: bytes | str, gives: Any, prompts: list[str], between: str
) -> None:
    """Row by row what one text gives; rows without a line are padding, whatever was in the buffer."""
    found = wordpiece() if isinstance(asset, str) else asset
    prepare = TextPreprocessor(TokenSteps(asset="words", max_length=6, gives=gives, lines=4), found)
    rows = prepare(between.join(prompts), np.full((1, 4, 6), 99, np.int64))
    assert prepare.shape == rows.shape == (1, 4, 6)
    assert rows[0, : len(prompts)].tolist() == [tokens(found, prompt, gives=gives) for prompt in prompts]
    assert (rows[0, len(prompts) :] == 0).all()


@huggingface
def test_a_row_without_a_line_has_the_files_own_padding() -> None:
    """Its number for padding, and a mask of zeros: no special token says that a text begins there."""
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 7,
        "pad_type_id": 0,
        "pad_token": "blue",
    }
    asset = wordpiece(padding=padding)
    rows = {
        gives: TextPreprocessor(TokenSteps(asset="words", max_length=3, gives=gives, lines=2), asset)("red")[0].tolist()
        for gives in ("ids", "mask", "segments")
    }
    assert rows == {"ids": [[2, 5, 3], [7, 7, 7]], "mask": [[1, 1, 1], [0, 0, 0]], "segments": [[0, 0, 0], [0, 0, 0]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("\r\n \t", "empty"), ("a\nb\nc", "has 3 prompts, one a line, and the bundle has room for 2")],
)
def test_a_text_that_is_no_list_of_prompts_is_refused(text: str, message: str) -> None:
    """With how many there are and how many there may be."""
    prepare = TextPreprocessor(TokenSteps(asset="words", max_length=3, lines=2), VOCABULARY)
    with pytest.raises(InputError, match=message):
        prepare(text)


def test_one_prompt_keeps_its_line_breaks() -> None:
    """Where a text is not taken line by line it is one, and an empty one is a text too."""
    assert as_lines("a\nred mug\n", 1) == ("a\nred mug\n",)
    assert as_lines("", 1) == ("",)
    assert as_lines(" a \n\n red mug\n", 2) == ("a", "red mug")
