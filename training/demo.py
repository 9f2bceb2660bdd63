"""Run the `vip2clip demo` command from a clone of the repository."""

import sys

from vip2clip_hf.cli import main


if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
