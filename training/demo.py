"""The demo of the package from a clone: the `vip2clip demo` command."""

import sys

from vip2clip_hf.cli import main


if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
