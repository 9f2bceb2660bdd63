"""Run the `vip2clip evaluate` command with accelerate, on one or more processes.

accelerate launch training/evaluate.py mvtec=MVTec visa=VisA --model CHECKPOINT --output results
"""

import sys

from vip2clip_hf.cli import main


if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
