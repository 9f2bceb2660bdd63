"""A dataset on the Hub. Never recognised in a folder; read by [`vip2clip_hf.data.hub_datasets`]."""

from .base import Layout


HUB = Layout(
    name="hub",
    title="data set of the Hub",
    matches=lambda listing, benchmark: False,
    read=None,
    expected="org/name",
)


__all__ = ["HUB"]
