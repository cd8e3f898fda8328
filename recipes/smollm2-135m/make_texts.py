"""Make the prose and the chats of this folder from the six novels of a Debian package, the same every time.

Calibration and held-out text are of different novels. Long passages are for sequences of 1,024 tokens.
A chat is a passage that the user breaks off and the assistant continues, or code of Python's standard
library (of the samples of recipes/tiny-llama) that the assistant completes.

Run (seconds):

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb runs/novels
    pip install rdata
    python recipes/smollm2-135m/make_texts.py runs/novels
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
DATA = "usr/lib/R/site-library/janeaustenr/data"
NOVELS = {
    "calibration": ("emma", "mansfieldpark", "sensesensibility"),
    "heldout": ("northangerabbey", "persuasion", "prideprejudice"),
}
PASSAGE, LONG = 1250, 4900  # characters: more than 256 and 1,024 tokens of SmolLM2
PASSAGES = {"calibration": 128, "heldout": 192}
LONG_PASSAGES = 12
CHATS = 64
PROSE, CODE = "Continue this story:", "Complete this Python code:"

Row = dict[str, Any]


def read_novel(folder: Path, name: str) -> list[str]:
    """Read the paragraphs of a novel, without headings.

    Args:
        folder: of the unpacked package.
        name: of the novel's object in the package's database.
    """
    import rdata

    places = rdata.read_rds(folder / DATA / "Rdata.rdx", default_encoding="utf-8")["variables"]
    start, length = (int(number) for number in places[name])
    # A record of R's database: four bytes that count what is compressed, then the object.
    record = (folder / DATA / "Rdata.rdb").read_bytes()[start + 4 : start + length]
    lines = rdata.conversion.convert(
        rdata.parser.parse_data(zlib.decompress(record)), default_encoding="utf-8"
    )
    return paragraphs([str(line) for line in lines])


def paragraphs(lines: list[str]) -> list[str]:
    """Join the lines of paragraphs; those without a small letter and a full stop are headings.

    Example:
        >>> paragraphs(["CHAPTER I", "", "It was", "late.", ""])
        ['It was late.']
    """
    blocks = [" ".join(block.split()) for block in "\n".join(lines).split("\n\n")]
    return [block for block in blocks if re.search(r"[a-z].*[.!?]", block)]


def passages(blocks: list[str], characters: int) -> list[str]:
    """Cut a text into passages that begin at a paragraph and have at least so many characters.

    A passage ends at the end of a word; what is left of its last paragraph is left out.
    """
    cut, open_blocks = [], list[str]()
    for block in blocks:
        open_blocks.append(block)
        text = "\n\n".join(open_blocks)
        if len(text) >= characters:
            cut.append(text[: text.find(" ", characters)] if " " in text[characters:] else text)
            open_blocks = []
    return cut


def spread(items: list[str], count: int) -> list[str]:
    """Take so many items, evenly over all of them."""
    return [items[i * len(items) // count] for i in range(count)]


def chat(request: str, text: str) -> Row:
    """Make a chat of a text: the user gives its first half, the assistant the second."""
    middle = text.index("\n" if request == CODE else " ", len(text) // 2)
    messages = [("user", f"{request}\n\n{text[:middle]}"), ("assistant", text[middle:].lstrip("\n"))]
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def write(name: str, rows: list[Row]) -> None:
    """Write a file of samples in random order: whoever takes the first few takes them from all texts."""
    random.Random(0).shuffle(rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (FOLDER / name).write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(rows)} samples, {sum(map(len, lines)):,} characters")


def code_samples(part: str) -> list[str]:
    """Read the samples of code beside the small Llama; its parts are of different files, too."""
    lines = (FOLDER.parent / "tiny-llama" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the unpacked package r-cran-janeaustenr")
    folder = parser.parse_args().folder
    for part, names in NOVELS.items():
        novels = [read_novel(folder, name) for name in names]
        short = [text for novel in novels for text in passages(novel, PASSAGE)]
        long = [text for novel in novels for text in passages(novel, LONG)]
        write(f"prose-{part}.jsonl", [{"text": text} for text in spread(short, PASSAGES[part])])
        write(f"long-{part}.jsonl", [{"text": text} for text in spread(long, LONG_PASSAGES)])
        # From the second passage on: mostly others than those of the prose.
        chats = [chat(PROSE, text) for text in spread(short[1:], CHATS // 2)]
        chats += [chat(CODE, text) for text in spread(code_samples(part), CHATS // 2)]
        write(f"chat-{part}.jsonl", chats)


if __name__ == "__main__":
    main()
