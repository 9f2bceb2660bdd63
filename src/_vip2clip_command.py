"""Entry point of the `vip2clip` command. It imports the command only, and the command imports what it needs."""


def main() -> None:
    """Run the `vip2clip` command."""
    from vip2clip_hf.cli import main as run

    run()
