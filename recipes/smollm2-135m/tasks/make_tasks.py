"""Make the documents of the tasks `prose_cloze` and `prose_endings` from held-out prose, the same every time.

`prose_cloze` is in the form of LAMBADA: the beginning of a sentence, with what stands before it, up to a word
that is to be guessed and that occurred before. LAMBADA keeps what people can guess; here a word is kept if it
is written with a capital letter, a name, and is the only name that occurred before in this place: after the
same word, or twice. No model chooses.

`prose_endings` is in the form of HellaSwag: the beginning of a passage, and four continuations of one length in
tokens: that of the passage, and three that continue other passages. The right one is in each place as often.

The first 64 held-out passages are left out: recipes validate with them.

Run (seconds):

    pip install -e ".[hf]"
    python recipes/smollm2-135m/prepare.py
    python recipes/smollm2-135m/tasks/make_tasks.py
"""
