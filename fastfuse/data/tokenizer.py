"""Tokenizers for captions, trained on the captions themselves with Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<cls>")


class CaptionTokenizer:
    """Text to padded token tensors and back.

    Ids 0 to 4 are `<pad> <bos> <eos> <unk> <cls>` in every vocabulary, also as attributes `pad_id`, `bos_id`, `eos_id`,
    `unk_id`, `cls_id`. Captions are lower-cased and NFKC-normalised.
    """

    pad_id, bos_id, eos_id, unk_id, cls_id = range(len(SPECIAL_TOKENS))

    def __init__(self, tokenizer: Tokenizer):
        for token_id, token in enumerate(SPECIAL_TOKENS):
            if tokenizer.token_to_id(token) != token_id:
                raise ValueError(f"tokenizer: expected {token} at id {token_id}, found {tokenizer.token_to_id(token)}")
        self._tokenizer = tokenizer

    @classmethod
    def train(
        cls, captions: Iterable[str], *, kind: Literal["word", "bpe"] = "word", vocab_size: int = 8192
    ) -> CaptionTokenizer:
        """Learn a vocabulary.

        Args:
            captions: the training captions.
            kind: "word" for closed vocabularies (every word a token), "bpe" for open ones (bytes: nothing is unknown).
            vocab_size: upper limit on the number of tokens, the five special ones included.
        """
        if kind not in _BLANK:
            raise ValueError(f'kind: expected "word" or "bpe", got {kind!r}')
        tokenizer, trainer = _BLANK[kind](vocab_size)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> CaptionTokenizer:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError where the file is no such tokenizer."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"path: {path} is not a tokenizer saved as JSON ({error})") from error
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Write the whole tokenizer as one JSON file."""
        Path(path).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    def __len__(self) -> int:
        """The vocabulary's size, special tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, captions: Sequence[str], *, max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """`<bos> tokens <eos>` for each caption, padded on the right.

        Args:
            captions: B strings.
            max_length: longer captions are cut to this many tokens; `<bos>` and `<eos>` are counted and kept.

        Returns:
            tokens (B, L) int64 padded with `<pad>`, and lengths (B,) int64 that count `<bos>` and `<eos>`.
        """
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length: expected room for <bos> and <eos>, got {max_length}")
        room = None if max_length is None else max_length - 2
        rows = [[self.bos_id, *e.ids[:room], self.eos_id] for e in self._tokenizer.encode_batch(list(captions))]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tokens = torch.full((len(rows), max(map(len, rows), default=0)), self.pad_id, dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        return tokens, lengths

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one row up to its first `<eos>`, special tokens left out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def decode_batch(self, tokens: Tensor) -> list[str]:
        """`decode` of every row of (B, L)."""
        return [self.decode(row) for row in tokens]

    def words(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """Each token as text, special ones by name; as long as `tokens`, for labels beside attention maps."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return [self._label(token_id) for token_id in ids]

    def _label(self, token_id: int) -> str:
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id]
        return str(self._tokenizer.decode([token_id])).strip()


def _blank_word(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    """Every word between blanks is a token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def _blank_bpe(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    """Byte-level byte-pair encoding, with all 256 bytes in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


_BLANK = {"word": _blank_word, "bpe": _blank_bpe}
