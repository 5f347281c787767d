"""Recipes that rebuild the sample shards from public packages."""

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task
from datamodules.recipes.build import build, run
from datamodules.recipes.packages import RecipeError

__all__ = ["Drawn", "Recipe", "RecipeError", "Rejection", "Task", "build", "run"]
