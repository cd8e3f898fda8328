"""The file of a recipe: YAML to its content, unchecked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from inc_mp_plugin.core.errors import InputError


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the content of a recipe, unchecked.

    Raises:
        InputError: the file is missing, or holds no keys in YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"recipe {path} does not exist"
        raise InputError(message) from None
    except IsADirectoryError:
        message = f"recipe {path} is a folder; give its YAML file"
        raise InputError(message) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"recipe {path} cannot be read: {' '.join(str(error).split())}"
        raise InputError(message) from error
    if not isinstance(content, dict):
        message = f"recipe {path} is not a mapping of keys to values"
        raise InputError(message)
    return content
