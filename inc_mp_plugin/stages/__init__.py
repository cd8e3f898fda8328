"""One file per artefact: what it depends on, and how it is made."""
