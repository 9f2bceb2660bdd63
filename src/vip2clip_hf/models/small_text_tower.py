"""A small text tower for backbones that are vision transformers: its configuration and its tokenizer."""

from transformers import PreTrainedTokenizerFast

from .vip2clip.state_words_vip2clip import STATE_WORD_TOKEN_IDS


# Tokens of the text tower. Not 2 for the last token: CLIP treats this id differently.
SPECIAL_TOKENS = {"<start>": 0, "<end>": 1, "<unknown>": 2}
VOCABULARY = {**SPECIAL_TOKENS, **{word: 3 + number for number, word in enumerate(STATE_WORD_TOKEN_IDS)}}
TEXT = {
    "vocab_size": len(VOCABULARY), "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def state_word_tokenizer() -> PreTrainedTokenizerFast:
    """
    Create the tokenizer of the small text tower. It knows the state words of the package only.

    Returns:
        `PreTrainedTokenizerFast`: the tokenizer.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel(dict(VOCABULARY), unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unknown>", pad_token="<end>"
    )


__all__ = ["TEXT", "VOCABULARY", "state_word_tokenizer"]
