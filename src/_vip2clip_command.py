"""
Entry point of the `vip2clip` command.

This module is outside the package because `import vip2clip_hf` registers the model with transformers, which imports
torch. If this module is loaded, the package skips the registration. This keeps `vip2clip --help` fast; commands import
what they need.
"""


def main() -> None:
    """Run the `vip2clip` command."""
    from vip2clip_hf.cli import main as run

    run()
