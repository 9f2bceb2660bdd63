"""Token ids of the state words in CLIP's vocabulary."""

from collections.abc import Sequence


# Size of CLIP's byte-pair vocabulary. The ids below are only valid for this vocabulary.
CLIP_VOCAB_SIZE = 49408
# The state words of the paper's Table 6. With their ids, a model can be built without a tokenizer.
STATE_WORD_TOKEN_IDS: dict[str, tuple[int, ...]] = {
    "good": (886,),
    "damaged": (13568,),
    "damage": (6822,),
    "normal": (5967,),
    "abnormal": (40934,),
    "perfect": (1878,),
    "flawed": (35136,),
    "flawless": (15531,),
    "imperfect": (46034,),
}


def known_token_ids(vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the known token ids by word: none unless the vocabulary has the size of CLIP's."""
    return STATE_WORD_TOKEN_IDS if vocab_size == CLIP_VOCAB_SIZE else {}


def check_token_ids(kind: str, word: str | None, ids: Sequence[int] | None, vocab_size: int) -> None:
    """
    Check the state word of a prompt and its token ids.

    Args:
        kind (`str`): `"normal"` or `"anomalous"`, for the message.
        word (`str`, *optional*): the state word.
        ids (`Sequence[int]`, *optional*): its token ids.
        vocab_size (`int`): size of the backbone's vocabulary.

    Raises:
        ValueError: if there are no ids, an id is outside the vocabulary, or the ids belong to another word.
    """
    if not ids:
        raise ValueError(
            f"{kind}_token_ids is {ids!r} and {kind}_word is {word!r}; expected at least one token id. In CLIP's "
            f"vocabulary, the ids of these words are known: {', '.join(STATE_WORD_TOKEN_IDS)}. For other words, set "
            f"{kind}_token_ids, or pass a tokenizer to ViP2ClipForAnomalyDetection.from_clip."
        )
    if not all(0 <= i < vocab_size for i in ids):
        raise ValueError(
            f"{kind}_token_ids is {ids!r}; expected token ids between 0 and {vocab_size - 1}, from the vocabulary of "
            "the backbone."
        )
    known = None if word is None else known_token_ids(vocab_size).get(word)
    if known is not None and tuple(ids) != known:
        raise ValueError(
            f"{kind}_word is {word!r} and {kind}_token_ids is {tuple(ids)!r}; expected {known}, the ids of this word "
            f"in CLIP's vocabulary. Change both together, or set {kind}_word to None."
        )


__all__ = ["CLIP_VOCAB_SIZE", "STATE_WORD_TOKEN_IDS", "check_token_ids", "known_token_ids"]
