"""From a recipe to a folder of artefacts."""
