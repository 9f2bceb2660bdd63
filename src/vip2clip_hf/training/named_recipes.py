"""The recipes of the package: configuration files for `vip2clip train --recipe NAME`."""

import difflib
from pathlib import Path


_FOLDER = Path(__file__).with_name("recipes")
RECIPES = {
    "mvtec": "the paper: train on MVTec AD, evaluate on VisA; CLIP ViT-L/14@336px, 518 pixels",
    "visa": "the paper: train on VisA, evaluate on MVTec AD; CLIP ViT-L/14@336px, 518 pixels",
    "tiny": "the bundled checkpoint: a small backbone (ViT-Tiny/16), 320 pixels, few steps, averaged weights",
    "april-gan": "APRIL-GAN as published, trained on MVTec AD (on VisA, --num_train_epochs 15), without mosaics",
    "anomalyclip": "AnomalyCLIP as published",
    "adaclip": "AdaCLIP as published, without mosaics and without the choice of the best epoch",
}


def recipe_path(name: str) -> Path:
    """
    Return the configuration file of a recipe.

    Args:
        name (`str`): name of the recipe, one of `RECIPES`.

    Returns:
        `pathlib.Path`: the JSON file.

    Raises:
        ValueError: if the recipe is unknown.
    """
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"recipe is {name!r}; expected {', '.join(RECIPES)}{hint}")
    return _FOLDER / f"{name}.json"


__all__ = ["RECIPES", "recipe_path"]
