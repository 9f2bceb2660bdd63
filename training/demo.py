"""The demo of the package, `vip2clip demo`, from a clone."""

import sys

from vip2clip_hf.cli import main


if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
