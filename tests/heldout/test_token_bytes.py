"""Bytes of tokens, against the text that they were made of."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from lightning_lscore.heldout.token_bytes import make_count_bytes

TEXT = (
    Path(sysconfig.get_paths()["stdlib"], "this.py").read_text()
    + "naïve 😀 Übergrößenträger 语言模型\n\ttabs  and   spaces\r\n"
)


def byte_level() -> Tokenizer:
    """As GPT-2's: each token is a string of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama's: pieces of text with spaces in them, and bytes for what is in no piece."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in [*"\u2581abcdefghijklmnopqrstuvwxyzüöß", "\u2581\u2581", "语"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("\u2581", "\u2581")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def ids_of(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("text", [TEXT, "a", " ", "", "😀"])
def test_the_bytes_of_all_tokens_are_the_bytes_of_the_text(make, text):
    """No token counts a byte twice, and none is lost."""
    tokenizer = make()
    count = make_count_bytes(tokenizer)(ids_of(tokenizer, text))
    assert count == len(text.encode())


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_special_tokens_have_no_bytes_and_added_ones_have_theirs(make):
    """An end of text is not text; an added word is."""
    tokenizer = make()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("größer")])
    count = make_count_bytes(tokenizer)
    assert count(ids_of(tokenizer, "a<|end|>größer")) == 1 + 0 + len("größer".encode())


def test_the_real_tokenizer_of_a_real_model(smollm2):
    """SmolLM2's, as transformers loads it."""
    _, tokenizer = smollm2
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    count = make_count_bytes(tokenizer)
    assert count(ids) == len(TEXT.encode())
    assert count(torch.tensor([tokenizer.eos_token_id])) == 0


def test_an_encoding_of_tiktoken_knows_its_bytes():
    """Numbers that no token has are passed over."""

    def token(i):
        return {0: b"ab", 1: "ü".encode(), 3: b"<|end|>"}[i]

    encoding = SimpleNamespace(
        n_vocab=4, special_tokens_set={"<|end|>"}, decode_single_token_bytes=token
    )
    assert make_count_bytes(encoding)(torch.tensor([0, 1, 0, 3])) == 6


def test_a_function_counts_itself():
    """len is that of a model that reads bytes."""
    assert make_count_bytes(len)(torch.tensor([3, 4, 5])) == 3


@pytest.mark.parametrize("ids", [[400], [-1]])
def test_a_token_of_another_vocabulary_is_an_error(ids):
    """Not an index from the end."""
    with pytest.raises(
        ValueError, match=r"expected token ids from 0 to 399, got .*Is this the tok"
    ):
        make_count_bytes(byte_level())(torch.tensor(ids))


class Slow:
    """A tokenizer in Python, whose tokens do not tell their bytes."""

    def __call__(self, text):
        return []

    def convert_ids_to_tokens(self, ids):
        return ids


def word_piece() -> Tokenizer:
    """As BERT's: it drops the spaces."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.mark.parametrize("given", [Slow(), word_piece(), "gpt2", 3])
def test_what_does_not_tell_its_bytes_is_refused(given):
    """With the way out."""
    with pytest.raises(ValueError, match=r"count_bytes: expected a byte-level .*count_bytes=len"):
        make_count_bytes(given)
