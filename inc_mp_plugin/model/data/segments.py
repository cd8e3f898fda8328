"""Segments of a sample's text: what was asked, and what was answered."""

from __future__ import annotations

from typing import Any, NamedTuple

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.literals import Labels
from inc_mp_plugin.model.data.samples import Completion, Conversation, Labelled, Sample


class Segment(NamedTuple):
    """A part of a text, if the loss is of it, and the number of images in it."""

    text: str
    counts: bool
    images: int = 0


def segments(renderer: Any, place: str, sample: Sample, labels: Labels) -> list[Segment]:
    """Cut a sample into its segments; a conversation is rendered by a chat template.

    A conversation that ends without the assistant's answer ends with the start of one.

    Args:
        renderer: tokenizer or processor of transformers.
        place: of the sample, for errors.
        sample: the sample.
        labels: "all": the loss is of everything; "answers": of the assistant's messages, or of completions.

    Raises:
        InputError: a conversation without a chat template, or one that the template refuses, or a sample
            without an answer where the loss is of answers.
    """
    everything = labels == "all"
    sample = sample.text if isinstance(sample, Labelled) else sample
    if isinstance(sample, Completion):
        return [Segment(sample.prompt, everything), Segment(sample.answer, True)]
    if isinstance(sample, Conversation):
        whole = _rendered(renderer, place, sample)
        return [Segment(whole, True)] if everything else _turns(renderer, place, sample, whole)
    if everything:
        return [Segment(sample, True)]
    message = f"{place}: a plain text has no answer; give messages, prompt and completion, or labels: all"
    raise InputError(message)


def _turns(renderer: Any, place: str, conversation: Conversation, whole: str) -> list[Segment]:
    """Cut a rendered conversation before and after each message of the assistant."""
    messages, parts, start, images = conversation.messages, list[Segment](), 0, 0
    for number, (role, _) in enumerate(messages):
        if role != "assistant" or number < conversation.prompt:
            continue
        asked = _rendered(renderer, place, Conversation(messages[:number]), asks=True) if number else ""
        answered = _rendered(renderer, place, Conversation(messages[: number + 1]), asks=False)
        if not (whole.startswith(asked) and whole.startswith(answered) and start <= len(asked)):
            message = (
                f"{place}: the chat template does not render message after message, so that answers cannot "
                "be told; give labels: all, or prompt and completion"
            )
            raise InputError(message)
        before = len(Conversation(messages[:number]).images)
        parts.append(Segment(whole[start : len(asked)], False, before - images))
        images = len(Conversation(messages[: number + 1]).images)
        parts.append(Segment(whole[len(asked) : len(answered)], True, images - before))
        start = len(answered)
    if not parts:
        message = f"{place}: the conversation has no message of the assistant; add one, or give labels: all"
        raise InputError(message)
    return [*parts, Segment(whole[start:], False, len(conversation.images) - images)]


def _rendered(renderer: Any, place: str, conversation: Conversation, *, asks: bool | None = None) -> str:
    """Render messages; with `asks`, the start of an answer follows; if None, where the last is no answer.

    Templates of models that read images go through the parts of a content, and leave out a plain text without
    a word; other templates know plain texts alone. What renders more of the texts is right.
    """
    from jinja2 import TemplateError  # comes with transformers

    if not getattr(renderer, "chat_template", None):
        message = (
            "the data holds messages, but the tokenizer has no chat template; "
            'give {"text": ...} lines, or another model.tokenizer'
        )
        raise InputError(message)
    asks = conversation.messages[-1][0] != "assistant" if asks is None else asks
    texts = [part for _, parts in conversation.messages for part in parts if isinstance(part, str)]
    fault, best, most = "", "", 0
    for in_parts in (False, True):
        messages = [{"role": r, "content": _content(parts, in_parts)} for r, parts in conversation.messages]
        try:
            text: str = renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except (TemplateError, TypeError) as error:
            fault = fault or str(error)
            continue
        held = sum(part.strip() in text for part in texts)
        if held > most:
            best, most = text, held
        if most == len(texts):
            break
    if not most:
        message = f"{place}: the chat template refuses the conversation: {fault or 'it leaves out all texts'}"
        raise InputError(message)
    return best


def _content(parts: tuple[Any, ...], in_parts: bool) -> str | list[dict[str, str]]:
    if not in_parts and len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
