"""Canvas's own CLIP tokenizer: byte-pair merges under which every word of its captions is one token."""

from __future__ import annotations

from itertools import pairwise

from transformers import CLIPTokenizer

from metaunlearn.canvas.catalog import BACKGROUNDS, OBJECTS, STYLES

MAX_TOKENS = 24
WORD_END = "</w>"
TEMPLATE_WORDS = (
    "a an the of in on at with and or by to for style styled background backdrop photo picture image drawing painting "
    "emoji icon sticker sketch artwork illustration cartoon artist made one some small big plain colour color"
)


def _words() -> list[str]:
    text = " ".join([item.name.replace("-", " ") for item in OBJECTS])
    return list(dict.fromkeys(f"{TEMPLATE_WORDS} {text} {' '.join(STYLES)} {' '.join(BACKGROUNDS)}".split()))


def build_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE as CLIP's; unknown words fall apart into letters, as they do there."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = letters + [letter + WORD_END for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in _words():
        _add_word(word, merges, vocabulary)
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def _add_word(word: str, merges: list[tuple[str, str]], vocabulary: list[str]) -> None:
    """Apply the merges that exist to ``word``; add the ones that make what is left of it a single token."""
    parts = [*word[:-1], word[-1] + WORD_END]
    rank = {pair: index for index, pair in enumerate(merges)}
    while len(parts) > 1:
        known = [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]
        if known:
            _, at = min(known)
        else:
            at = 0
            merges.append((parts[0], parts[1]))
            rank[merges[-1]] = len(merges) - 1
            vocabulary.append(parts[0] + parts[1])
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
