"""Make the documents of the tasks `prose_cloze` and `prose_endings` from held-out prose, the same every time.

`prose_cloze` is in the form of LAMBADA: a text up to a word that is to be guessed. LAMBADA keeps what
people can guess; here the guesser counts: a document is kept if its last word is what most often followed
the two pieces before it (words, signs, line ends), in the calibration passages and in the passage so far,
at least twice.

`prose_endings` is in the form of HellaSwag: the beginning of a sentence or more, and four continuations of
as many tokens: its own, and three from other places of the same passage. The right one is in each place as
often.

No model chooses. The first 64 held-out passages are left out: recipes validate with them.

Run (seconds):

    pip install -e ".[hf]"
    python recipes/smollm2-135m/prepare.py
    python recipes/smollm2-135m/make_documents.py
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parent
MODEL = Path("runs/models/smollm2-135m")
VALIDATION = 64  # passages
DOCUMENTS = 300  # of each task
MOST, LEAST = 64, 24  # tokens of a document of the cloze
PER_WORD = 20
BEGINNING, ENDING = 26, 10  # tokens
PIECE = re.compile(r"\w+|[^\w\s]|\n")
WORD = re.compile(r"[A-Za-z]{3,}")

Counts = dict[tuple[str, str], Counter[str]]
Document = dict[str, Any]


def passages(name: str) -> list[str]:
    """Read the passages of a file of samples of the recipe."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def followers(texts: list[str]) -> Counts:
    """Count what follows each two pieces: {two pieces: {next piece: times}}."""
    counts: Counts = {}
    for text in texts:
        pieces = PIECE.findall(text)
        for first, second, third in zip(pieces, pieces[1:], pieces[2:], strict=False):
            counts.setdefault((first, second), Counter())[third] += 1
    return counts


def guessable(text: str, known: Counts) -> list[tuple[int, int]]:
    """List the words, (start, end), that counting guesses from what stands before them."""
    words: list[tuple[int, int]] = []
    here: Counts = {}
    pieces = list(PIECE.finditer(text))
    for i in range(2, len(pieces)):
        word = pieces[i].group()
        before = (pieces[i - 2].group(), pieces[i - 1].group())
        counts = known.get(before, Counter()) + here.setdefault(before, Counter())
        guess, times = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if guess == word and times >= 2 and WORD.fullmatch(word) and text[pieces[i].start() - 1] == " ":
            words.append(pieces[i].span())
        here[before][word] += 1
    return words


def cut(text: str, span: tuple[int, int], tokenizer: PreTrainedTokenizerBase) -> Document | None:
    """Cut a text before a word, and to the longest that fits.

    None where what is left is too short, or its tokens are others without the word.
    """
    before = tokenizer(text[: span[0] - 1]).input_ids[2 - MOST :]
    beginning = tokenizer.decode(before).partition(" ")[2]  # from a whole word on
    word = text[span[0] - 1 : span[1]]  # with the space before it, which belongs to its first token
    whole, first = tokenizer(beginning + word).input_ids, tokenizer(beginning).input_ids
    fits = LEAST <= len(first) < len(whole) <= MOST
    if not fits or whole[: len(first)] != first or beginning[-1].isspace():
        return None
    return {"context": beginning, "word": word}


def cloze(tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Choose the documents of the cloze: from all passages in turn, of each word not too many."""
    known = followers([*passages("prose-calibration"), *passages("long-calibration")])
    texts = passages("prose-heldout")[VALIDATION:]
    rows = [[(text, span) for span in reversed(guessable(text, known))] for text in texts]
    chosen, uses = list[Document](), Counter[str]()
    for turn in range(max(map(len, rows))):
        for text, span in (row[turn] for row in rows if turn < len(row)):
            word = text[slice(*span)]
            document = cut(text, span, tokenizer) if uses[word] < PER_WORD else None
            if document is not None and len(chosen) < DOCUMENTS:
                chosen.append(document)
                uses[word] += 1
    return chosen


def stretches(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Cut a passage into beginnings and endings of whole words, of so many tokens each, without overlap."""
    pairs = []
    for paragraph in text.split("\n\n"):
        ids = tokenizer(paragraph).input_ids
        tokens = tokenizer.convert_ids_to_tokens(ids)
        starts = {i for i, token in enumerate(tokens) if token.startswith("Ġ")} | {0}
        place = 0
        while place + BEGINNING + ENDING < len(ids):
            middle, end = place + BEGINNING, place + BEGINNING + ENDING
            if {place, middle, end} <= starts:
                pairs.append((tokenizer.decode(ids[place:middle]), tokenizer.decode(ids[middle:end])))
                place = end
            else:
                place += 1
    return pairs


def endings(tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Choose the documents of the endings: from all passages in turn."""
    draw = random.Random(0)
    rows = [stretches(text, tokenizer) for text in passages("prose-heldout")[VALIDATION:]]
    rows = [row for row in rows if len(row) >= 4]
    chosen: list[Document] = []
    for turn in range(max(map(len, rows))):
        for row in rows:
            if turn < len(row) and len(chosen) < DOCUMENTS:
                beginning, right = row[turn]
                wrong = draw.sample([end for place, (_, end) in enumerate(row) if place != turn], 3)
                label = len(chosen) % 4
                choices = [end.strip() for end in (*wrong[:label], right, *wrong[label:])]
                chosen.append({"context": beginning.strip(), "endings": choices, "label": label})
    return chosen


def main() -> None:
    """Write the documents."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for name, documents in (("cloze", cloze(tokenizer)), ("endings", endings(tokenizer))):
        lines = [json.dumps(document) + "\n" for document in documents]
        (FOLDER / "tasks" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(lines)} documents")


if __name__ == "__main__":
    main()
