"""`vip2clip build-backbone`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json, shows_progress
from .streams import say


def build_backbone(
    vit: Annotated[str, typer.Argument(help="Vision transformer: folder or Hub id, of timm or transformers.")],
    output: Annotated[Path, typer.Option(help="New folder to write.")],
    float16: Annotated[bool, typer.Option("--float16", help="Store the weights in float16: half the size.")] = False,
    num_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of attention heads.", show_default="from the configuration or the width"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the text tower.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a CLIP backbone from a vision transformer.

    The backbone computes the same features as the vision transformer, and is accepted by vip2clip train --clip. Its
    features are compared with those of the original; if they differ by more than 1e-4, nothing is written.

    Works: timm vit_* and deit*, transformers vit and dinov2, each with a class token and learned positions. Refused:
    normalization before the blocks (CLIP), register or distillation tokens, SwiGLU, rotary or relative positions,
    normalized queries and keys.

    \b
    Examples:
      vip2clip build-backbone timm/vit_small_patch16_224.augreg_in21k --output backbone
      vip2clip build-backbone facebook/dinov2-small --output backbone --float16
    """
    from ..models.backbone_building import build_backbone
    from ..utils.outputs import check_output

    check_output("--output", output, [vit])
    shows_progress()
    report = build_backbone(vit, output, num_heads=num_heads, revision=revision, float16=float16, seed=seed)
    if as_json:
        print_json(report)
        return
    say(f"Wrote {output}")
    say(
        f"  {report['num_layers']} blocks of width {report['width']}, patches of {report['patch_size']} pixels, "
        f"images of {report['image_size']} pixels"
    )
    say(f"  largest relative deviation from the original: {report['deviation']:.1e} (allowed: 1e-4)")
    if float16:
        say(f"  with weights in float16: {report['stored_deviation']:.1e}")
    layers = " ".join(map(str, report["feature_layers"]))
    say(
        f"Train adapters: vip2clip train --clip {output} --image_size {report['image_size']} "
        f"--feature_layers {layers} --train_data ROOT"
    )


__all__ = ["build_backbone"]
