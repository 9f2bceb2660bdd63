"""A Hugging Face Space with the page of `vip2clip app`; see docs/app.md.

The checkpoint is the variable VIP2CLIP_MODEL of the Space (a Hub id), or the small one of the package.
"""

import os

from vip2clip_hf import launch


if __name__ == "__main__":
    launch(
        os.environ.get("VIP2CLIP_MODEL") or None,
        # Spaces name the address that their proxy asks.
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        max_images=20,
    )
