"""`python -m vip2clip_hf` is the `vip2clip` command: `accelerate launch --module vip2clip_hf predict ...`."""

from .cli import main


if __name__ == "__main__":
    main()
