"""Run the `vip2clip` command with `python -m vip2clip_hf` or `accelerate launch --module vip2clip_hf`."""

from .cli import main


if __name__ == "__main__":
    main()
