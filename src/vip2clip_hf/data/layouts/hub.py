"""Datasets on the Hub. Never detected in a folder; read by [`vip2clip_hf.data.hub_datasets`]."""

from .base import Layout, Reading


def read_hub(reading: Reading) -> None:
    raise ValueError("A folder cannot be read with layout 'hub'; expected a Hub id such as 'org/name'.")


HUB = Layout(
    name="hub",
    title="Hub dataset",
    matches=lambda reading: False,
    read=read_hub,
    expected="org/name",
)


__all__ = ["HUB"]
