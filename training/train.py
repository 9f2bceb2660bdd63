"""Run the `vip2clip train` command with accelerate, on one or more processes.

accelerate launch training/train.py --recipe tiny --clip CLIP --train_data A --eval_data B C
"""

import sys

from vip2clip_hf.cli import main


if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
