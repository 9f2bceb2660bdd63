"""Find the text tokenizer of a CLIP backbone, check that it fits, and tokenize prompts."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPTextConfig


# A tokenizer knows the words of one of these. That of the bundled backbone knows the state words only.
_KNOWN = ("a photo", "good")
_EXPECTED = "expected a CLIP with a text tokenizer, such as openai/clip-vit-large-patch14-336"


def find_tokenizer(source: str | os.PathLike, **hub_kwargs: Any) -> Any:
    """
    Load the tokenizer of a folder or Hub id.

    Args:
        source (`str` or `os.PathLike`): folder or Hub id.
        hub_kwargs: options of `from_pretrained`, such as `revision`, `token` and `cache_dir`.

    Returns:
        The tokenizer, or `None` if there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub_kwargs)
    except (OSError, ValueError, TypeError):  # the class depends on which file is missing
        return None
    # From a folder without tokenizer files, the library may create a tokenizer with special tokens only.
    return tokenizer if _word_ids(tokenizer) else None


def _word_ids(tokenizer: Any) -> list[int]:
    """Return the ids of a text, empty if the tokenizer does not know its words."""
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id}
    for text in _KNOWN:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids and not special & set(ids):
            return ids
    return []


def check_tokenizer(tokenizer: Any, config: CLIPTextConfig) -> None:
    """
    Check that a tokenizer belongs to a text tower.

    Args:
        tokenizer: the tokenizer, or `None`.
        config (`CLIPTextConfig`): configuration of the text tower.

    Raises:
        ValueError: if there is no tokenizer, it does not know words, or its ids are not those of the text tower.
    """
    if tokenizer is None:
        raise ValueError(f"The backbone has no text tokenizer; {_EXPECTED}, or pass tokenizer=.")
    ids, size, eos = _word_ids(tokenizer), config.vocab_size, tokenizer.eos_token_id
    if not ids:
        raise ValueError(f"The tokenizer has no words; {_EXPECTED}.")
    # CLIPTextModel pools at eos_token_id. With 2, a value in old configurations, it pools at the largest id.
    fits = eos == config.eos_token_id or (config.eos_token_id == 2 and eos == size - 1)
    if max(ids) >= size or not fits:
        raise ValueError(
            f"The text tower of the backbone has {size} tokens and the end token {config.eos_token_id}, the tokenizer "
            f"has the end token {eos} and ids up to {max(ids)} for {_KNOWN[0]!r}; {_EXPECTED} that belong together."
        )


def tokenize(tokenizer: Any, texts: Sequence[str], config: CLIPTextConfig) -> torch.Tensor:
    """
    Tokenize texts for a text tower.

    Args:
        tokenizer: the tokenizer.
        texts (`Sequence[str]`): the texts.
        config (`CLIPTextConfig`): configuration of the text tower.

    Returns:
        `torch.LongTensor` of shape `(num_texts, longest)`: token ids with start and end token, padded with end tokens.

    Raises:
        ValueError: if the tokenizer does not fit or does not know a word, a text is too long, or it has a token that
            the tower does not know.
    """
    check_tokenizer(tokenizer, config)
    # Not all tokenizers add start and end token, such as that of the small text tower.
    start, end, unknown = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    rows = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    for text, row in zip(texts, rows):
        if unknown in row and unknown != end:  # the same token in CLIP's own tokenizer
            raise ValueError(
                f"The tokenizer does not know all words of the prompt {text!r}; {_EXPECTED}, or prompts of words that "
                'it knows, such as prompt_ensemble="state_words" for the bundled backbone.'
            )
        if len(row) > config.max_position_embeddings:
            raise ValueError(
                f"The prompt {text!r} has {len(row)} tokens; expected at most {config.max_position_embeddings}. Use a "
                "shorter class name."
            )
        if max(row) >= config.vocab_size:
            raise ValueError(
                f"The prompt {text!r} has the token {max(row)}; expected ids below {config.vocab_size}, the number of "
                "tokens of the text tower."
            )
    longest = max(map(len, rows))
    # Attention in the text tower is causal, so tokens after the end token change nothing.
    return torch.tensor([row + [end] * (longest - len(row)) for row in rows])  # (N, longest)


__all__ = ["check_tokenizer", "find_tokenizer", "tokenize"]
