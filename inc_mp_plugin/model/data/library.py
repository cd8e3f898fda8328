"""Rows that the library `datasets` reads: Parquet, CSV, text, folders, and datasets of a hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.source import Row
from inc_mp_plugin.model.load_errors import loading

if TYPE_CHECKING:
    from inc_mp_plugin.model.data.source import DataSource

_SAVED = ("dataset_dict.json", "state.json")  # one of them is in a folder of `save_to_disk`


def library_rows(source: DataSource, kind: str) -> Iterator[Row]:
    """Read rows as a stream: of a dataset of any size, only the part that is asked for is fetched.

    Args:
        source: the place of the samples.
        kind: of a file, such as "parquet"; "" for a folder or a name on a hub.

    Raises:
        InputError: the library is missing, or cannot read them, or the split is not clear.
    """
    name = str(source.path)
    with loading("dataset", name, missing=source.is_on_a_hub):
        rows = _split(_loaded(source, kind), source)
        for number, content in enumerate(rows, 1):
            values = {key: "" if value is None else value for key, value in content.items()}
            yield Row(f"{name}, row {number}", values)


def _loaded(source: DataSource, kind: str) -> Any:
    try:
        import datasets
    except ImportError:
        message = (
            f"{source.path} is read by the library datasets, which is not installed; "
            "run pip install 'inc_mp_plugin[data]', or give JSON lines"
        )
        raise InputError(message) from None
    path = str(source.path.resolve() if source.path.exists() else source.path)
    if kind:
        options = {"sep": "\t"} if ".tsv" in source.path.suffixes else {}
        return datasets.load_dataset(kind, data_files=path, streaming=True, **options)
    if any((source.path / file).exists() for file in _SAVED):
        return datasets.load_from_disk(path)
    try:
        return datasets.load_dataset(path, source.subset, streaming=True)
    except ValueError as error:
        if source.subset is not None or "config name is missing" not in str(error).lower():
            raise
        subsets = ", ".join(datasets.get_dataset_config_names(path))
        message = f"the dataset {path!r} has several subsets; give subset: one of {subsets}"
        raise InputError(message) from error


def _split(data: Any, source: DataSource) -> Any:
    """Return the split of a dataset that is named, or its only one."""
    if not isinstance(data, dict):
        if source.split is None:
            return data
        data = {str(data.split): data}
    if source.split is None and len(data) == 1:
        return next(iter(data.values()))
    if source.split in data:
        return data[source.split]
    given = "split is not given" if source.split is None else f"split is {source.split!r}"
    message = f"{given}, and the dataset {str(source.path)!r} has {', '.join(data)}; give one of these"
    raise InputError(message)
