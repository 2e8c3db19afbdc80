"""What the bundled model understands of a prompt, and which words it does not know.

The model has learnt only from the captions of `musicgen_jax.nano.captions`. So it knows what these
say, and the lists there are the vocabulary here. The model is not run: this module reads the prompt
by the rules that make the captions.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from musicgen_jax.nano import captions, composer

_WORD = re.compile(r"\d+/\d+|[^\W_]+(?:['\u2019][^\W_]+)*")
# The function words of a request. None of them says what the music should be like.
_GRAMMAR = frozenset(
    _WORD.findall(
        "a about accompaniment all also am an and any are as at be been behind but by can could "
        "create do does featuring feel feeling feels for from gave generate get give go goes had "
        "has have hear here i if in into is it its itself just kind led let like make me more "
        "most music musical my need of on one or our performed performing play played player "
        "playing plays please should so solo some something sort sound sounding sounds starring "
        "such than that the their them then there these they this to us very want was we were "
        "what when where which while who will with would write you your "
    )
)
_NOT = frozenset(("no", "not", "non", "never", "without"))
_BPM = re.compile(r"(\d{2,3})\s*(?:bpm|beats? per minute)|tempo (\d{2,3})\b", re.I)
_HINTS = 2  # if this many names of one thing share a word, that word hints at the thing


@dataclass(frozen=True)
class Heard:
    """What nano understands of a prompt.

    Attributes:
      understood: plain names of what it knows, such as "piano", "slow" or "minor", in the order of
        the prompt.
      unknown: the parts of the prompt that it does not know, in the prompt's own words.
    """

    understood: tuple[str, ...]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        """For example "piano, slow; it does not know: death metal"."""
        known = ", ".join(self.understood) or "nothing that it knows"
        return known + (f"; it does not know: {_some(self.unknown)}" if self.unknown else "")

    @property
    def whole(self) -> bool:
        """Whether it understands something and knows every part of the prompt."""
        return bool(self.understood) and not self.unknown


def hear(prompt: str) -> Heard:
    """Reads a prompt by the rules of the captions that nano was trained on.

    A word that is in two or more names of one thing stands for that thing, unless another thing's
    name has it too ("celtic" stands for a jig). A misspelt word counts if the captions misspell
    words in the same way. Words after "no" or "without" are not understood, because captions never
    say what is absent.
    """
    words = [(match.group(), match.span()) for match in _WORD.finditer(prompt)]
    keys = [_spelt(word.casefold()) for word, _ in words]
    tempi = {m.start(): (m.end(), _nearest_tempo(int(m[1] or m[2]))) for m in _BPM.finditer(prompt)}
    understood: list[str] = []
    unknown: list[tuple[int, int]] = []  # words from, to
    at = 0
    while at < len(words):
        size, names = _match(keys, at)
        start = words[at][1][0]
        if start in tempi:
            end, tempo = tempi[start]
            size, names = sum(start <= span[0] < end for _, span in words), (tempo,)
        elif keys[at] in _NOT and not size:
            after = at + 1
            while after < len(words) and keys[after] in _GRAMMAR:
                after += 1
            size = after - at + (max(1, _match(keys, after)[0]) if after < len(words) else 0)
            unknown.append((at, at + size))
        elif not size:
            size = 1
            if keys[at] not in _grammar():
                if unknown and unknown[-1][1] == at:
                    unknown[-1] = (unknown[-1][0], at + 1)
                else:
                    unknown.append((at, at + 1))
        understood += names
        at += size
    spans = [(words[first][1][0], words[end - 1][1][1]) for first, end in unknown]
    return Heard(
        tuple(dict.fromkeys(understood)),
        tuple(dict.fromkeys(" ".join(prompt[first:end].split()) for first, end in spans)),
    )


def _some(parts: tuple[str, ...], most: int = 6, length: int = 40) -> str:
    """The first parts, each cut to a length, and how many more there are."""
    shown = [part if len(part) <= length else f"{part[: length - 3]}..." for part in parts[:most]]
    return ", ".join(shown) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def _match(keys: list[str], at: int) -> tuple[int, tuple[str, ...]]:
    """The number of words from `at` on that form a name of the captions, and its meaning."""
    names, longest = _vocabulary()
    for size in range(min(longest, len(keys) - at), 0, -1):
        if (found := names.get("".join(keys[at : at + size]))) is not None:
            return size, found
    return 0, ()


def _nearest_tempo(bpm: int) -> str:
    def ratio(tempo: str) -> float:
        quarter = 60 * composer.FRAME_RATE / (2 * composer.FRAMES_PER_EIGHTH[tempo][0])
        return max(bpm / quarter, quarter / bpm)

    return captions.TEMPO_WORDS[min(composer.TEMPOS, key=ratio)][0]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _phrases() -> Iterator[tuple[tuple[str, ...], Iterable[str]]]:
    """Everything that the captions can say: plain names, and all phrases for them."""
    for names in (captions.INSTRUMENTS, captions.NOUNS, captions.TEMPO_WORDS):
        for plain, *others in names.values():
            yield (plain,), (plain, *others)
    tempo = {key: words[0] for key, words in captions.TEMPO_WORDS.items()}
    for by_tempo in (captions.TEMPO_PHRASES, captions.TEMPO_MOODS):
        for key, phrases in by_tempo.items():
            yield (tempo[key],), (key, *phrases)
    for by_mode in (captions.MODE_MOODS, captions.KEYS):
        for mode, phrases in by_mode.items():
            yield (mode,), (mode, *phrases)
    for (key, mode), phrases in captions.BOTH_MOODS.items():
        yield (tempo[key], mode), phrases
    for metre, phrases in captions.METRES.items():
        yield (metre,), phrases
    yield ("drums",), captions.DRUM_WORDS
    yield ("bass",), captions.BASS_WORDS
    yield (), (*captions.ANY_NOUN, *captions.OPENERS, *captions.CLOSERS)


@cache
def _vocabulary() -> tuple[dict[str, tuple[str, ...]], int]:
    """The meaning of each phrase, written without spaces; and the most words of a phrase."""
    exact: dict[str, tuple[str, ...]] = {}
    hints: dict[str, dict[tuple[str, ...], int]] = defaultdict(lambda: defaultdict(int))
    longest = 0
    for names, phrases in _phrases():
        for words in {tuple(_words(phrase)) for phrase in phrases}:
            for said in (words, words[1:] if words[0] == "a" else words):
                exact.setdefault("".join(said), names)
            longest = max(longest, len(words))
            for word in set(words):
                hints[word][names] += 1
    for word, names in hints.items():
        if len(names) == 1 and word not in _GRAMMAR and max(names.values()) >= _HINTS:
            exact.setdefault(word, *names)
    return exact, longest


@cache
def _grammar() -> frozenset[str]:
    forms = (*captions.SAYS, *captions.HELD_OUT)
    return _GRAMMAR.union(*(_words(re.sub(r"{\w*}", " ", form)) for form in forms))


@cache
def _misspelt() -> dict[str, str]:
    """The word that each misspelling of the captions stands for."""
    right = {word for _, phrases in _phrases() for phrase in phrases for word in _words(phrase)}
    wrong: dict[str, str] = {}
    for word in sorted(right):
        if len(word) > 3 and word.isalpha():
            for at in range(1, len(word) - 1):
                for kind in range(3):
                    wrong.setdefault(captions.misspelling(word, at, kind), word)
    return {w: word for w, word in wrong.items() if w not in right | _grammar() and len(w) > 3}


def _spelt(word: str) -> str:
    """A word of the captions for one that is misspelt or in the plural, else the word itself."""
    if word in _vocabulary()[0]:
        return word
    for end in ("s", "es"):
        if word.endswith(end) and word.removesuffix(end) in _vocabulary()[0]:
            return word.removesuffix(end)
    return _misspelt().get(word, word)
