"""The API key, and where it is needed."""

import hashlib
import hmac
import os
import re


# Environment variable with the API key.
API_KEY = "VIP2CLIP_API_KEY"
# Fewest characters of an API key. Shorter ones can be guessed.
MIN_KEY_LENGTH = 16


def check_api_key(key: str) -> str:
    """
    Check an API key.

    Args:
        key (`str`): the key.

    Returns:
        `str`: the key.

    Raises:
        ValueError: if it is too short, or contains characters that a header cannot contain. The message does not
            contain the key.
    """
    if len(key) < MIN_KEY_LENGTH or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError(
            f"The API key has {len(key)} characters; expected at least {MIN_KEY_LENGTH}, all ASCII and without "
            "spaces. To create one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key


def api_key_from_environment() -> str | None:
    """
    Read the API key from the environment variable `VIP2CLIP_API_KEY`.

    Returns:
        `str`, *optional*: the key, or `None` if the variable is not set.

    Raises:
        ValueError: if the variable is empty, or the key is too short.
    """
    found = os.environ.get(API_KEY)
    if found is None:
        return None
    try:
        return check_api_key(found.strip())
    except ValueError as error:
        raise ValueError(f"{API_KEY}: {error}") from error


def same_key(given: str | None, expected: str) -> bool:
    """
    Compare keys in a time that depends on neither of them.

    Args:
        given (`str`, *optional*): key of a request.
        expected (`str`): key of the server.

    Returns:
        `bool`: whether they are equal.
    """
    one, two = (hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in (given or "", expected))
    return hmac.compare_digest(one, two)


__all__ = ["API_KEY", "api_key_from_environment", "check_api_key", "same_key"]
