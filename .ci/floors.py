"""Print the lowest versions that setup.cfg allows, as constraints; torch aside, whose build is chosen."""

import configparser
import re
from pathlib import Path

config = configparser.ConfigParser()
config.read(Path(__file__).parent.parent / "setup.cfg")
listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
floors = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(listed), re.MULTILINE))
del floors["torch"]
print("\n".join(f"{name}=={version}" for name, version in floors.items()))
