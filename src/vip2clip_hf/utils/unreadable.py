"""Images that cannot be read: one error that lists all of them, or a warning with their number."""

from collections.abc import Mapping

from transformers.utils import logging


logger = logging.get_logger(__name__)
# Most images to list in a message.
MOST_LISTED = 20


def check_unreadable(unreadable: Mapping[str, str], num_images: int, skip: bool) -> None:
    """
    Raise an error that lists the images that could not be read, or say that they are left out.

    Args:
        unreadable (`Mapping[str, str]`): name of each image that could not be read, and the reason.
        num_images (`int`): number of all images.
        skip (`bool`): whether to leave them out.

    Raises:
        OSError: if there are such images and they are not left out, or if no image is left.
    """
    if not unreadable:
        return
    listed = "; ".join(
        reason if name in reason else f"{name}: {reason}" for name, reason in list(unreadable.items())[:MOST_LISTED]
    )
    more = f"; and {len(unreadable) - MOST_LISTED} more" if len(unreadable) > MOST_LISTED else ""
    found = f"{len(unreadable)} of {num_images} images could not be read: {listed}{more}"
    if not skip:
        raise OSError(f"{found} To leave them out, pass skip_unreadable=True (--skip-unreadable on the command line).")
    if len(unreadable) >= num_images:
        raise OSError(found)
    logger.warning(f"Left out: {found}")


__all__ = ["check_unreadable"]
