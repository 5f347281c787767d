"""Recipes that build shards, those of the sample data among them, from public packages."""

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task
from datamodules.recipes.build import RECIPES, build, run
from datamodules.recipes.packages import RecipeError

__all__ = ["RECIPES", "Drawn", "Recipe", "RecipeError", "Rejection", "Task", "build", "run"]
