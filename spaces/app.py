"""Hugging Face Space with the web app of `vip2clip app`. See docs/app.md.

The variable VIP2CLIP_MODEL of the Space is the Hub id of the checkpoint. It defaults to the small bundled checkpoint.
With VIP2CLIP_API=1, the Space has public endpoints for gradio_client.
"""

import os

from vip2clip_hf import launch


if __name__ == "__main__":
    launch(
        os.environ.get("VIP2CLIP_MODEL") or None,
        # Spaces set the address that their proxy connects to.
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        # 50 good photos allow a false-alarm rate of 2 %.
        max_images=50,
        api=os.environ.get("VIP2CLIP_API") == "1",
    )
