"""Make the documents of the task `stdlib_cloze` from the held-out text, the same every time.

A document is the beginning of a held-out text, up to a word that is to be guessed, in the manner of
LAMBADA: the word occurs earlier in the text. LAMBADA keeps what people can guess; here the guesser
counts. A document is kept if its last word is what most often followed the two pieces before it (words,
signs, line ends), in the calibration samples and in the document so far, at least twice. No model chooses.

The first 128 held-out texts are left out: recipes validate with them. The task
`stdlib_perplexity` needs no file of its own: it reads the other 384.

Run (seconds):

    pip install -e ".[hf,inc]"
    python recipes/tiny-llama/tasks/make_tasks.py
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parent
VALIDATION = 128
CONTEXT = 256  # tokens of the shipped model
EARLIEST = 85  # tokens: the word is in the last two thirds of what fits
PER_TEXT = 2
PER_WORD = 40  # self would be half of all documents
PIECE = re.compile(r"\w+|[^\w\s]|\n")
WORD = re.compile(r"[A-Za-z_]\w\w+")

Counts = dict[tuple[str, str], Counter[str]]


def texts(name: str) -> list[str]:
    """Read the texts of a file of samples beside the model."""
    lines = (FOLDER.parent / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def followers(samples: list[str]) -> Counts:
    """Count what follows each two pieces: {two pieces: {next piece: times}}."""
    counts: Counts = {}
    for text in samples:
        pieces = PIECE.findall(text)
        for first, second, third in zip(pieces, pieces[1:], pieces[2:], strict=False):
            counts.setdefault((first, second), Counter())[third] += 1
    return counts


def guessable(text: str, known: Counts) -> list[tuple[int, int]]:
    """Find the words, (start, end), that counting guesses from what stands before them."""
    found: list[tuple[int, int]] = []
    here: Counts = {}
    pieces = list(PIECE.finditer(text))
    for i in range(2, len(pieces)):
        word = pieces[i].group()
        before = (pieces[i - 2].group(), pieces[i - 1].group())
        counts = known.get(before, Counter()) + here.setdefault(before, Counter())
        guess, times = max(counts.items(), key=lambda item: item[1], default=("", 0))
        occurred = any(piece.group() == word for piece in pieces[:i])
        if guess == word and times >= 2 and occurred and WORD.fullmatch(word):
            found.append(pieces[i].span())
        here[before][word] += 1
    return found


def split(text: str, span: tuple[int, int], tokenizer: PreTrainedTokenizerBase) -> dict[str, str] | None:
    """Split a text before a word; None where that would change the tokens or they do not fit."""
    start, end = span
    start -= text[start - 1] == " "  # the space belongs to the word's first token
    context, word = text[:start], text[start:end]
    if context[-1].isspace():
        return None  # lm-eval would move this white space to the word
    first, last = tokenizer(context).input_ids, tokenizer(word).input_ids
    if len(first) < EARLIEST or len(first) + len(last) > CONTEXT:
        return None
    whole = tokenizer(text[:end]).input_ids
    return {"context": context, "word": word} if whole == first + last else None


def documents() -> list[dict[str, str]]:
    """Choose the documents, [{context, word}, ...]: of each text the last ones, of each word not too many."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER.parent)
    tokenizer.model_max_length = 10**6  # whole texts are tokenized here, the model is not run
    known = followers(texts("calibration.jsonl"))
    chosen, uses = [], Counter[str]()
    for text in texts("heldout.jsonl")[VALIDATION:]:
        taken: set[str] = set()
        for span in reversed(guessable(text, known)):
            word = text[slice(*span)]
            if len(taken) == PER_TEXT or word in taken or uses[word] == PER_WORD:
                continue
            document = split(text, span, tokenizer)
            if document is not None:
                chosen.append(document)
                taken.add(word)
                uses[word] += 1
    return chosen


def main() -> None:
    """Write the documents."""
    lines = [json.dumps(document) + "\n" for document in documents()]
    (FOLDER / "cloze.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} documents")


if __name__ == "__main__":
    main()
