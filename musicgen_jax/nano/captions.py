"""Captions for composed pieces, as varied as requests by real people.

The bundled model trains on captions of `caption`. They leave out random attributes, vary synonyms,
order and phrasing, and sometimes contain a misspelt word or a word that has nothing to do with
music. `full_caption` names every attribute in a fixed form. `held_out_caption` phrases a request in
ways that no training caption uses. Both are for evaluation.
"""

import math
from collections.abc import Sequence

import numpy as np

from musicgen_jax.nano.composer import PieceSpec, pick

# The first entry of every list is the plain name. It is used about as often as all others together.
INSTRUMENTS = {
    "piano": ("piano", "grand piano", "acoustic piano", "upright piano", "pianoforte",
              "keyboard", "classical piano"),
    "guitar": ("guitar", "acoustic guitar", "nylon-string guitar", "classical guitar",
               "nylon guitar", "spanish guitar", "fingerpicked guitar", "plucked guitar"),
    "organ": ("organ", "church organ", "pipe organ", "cathedral organ", "big organ",
              "chapel organ"),
    "strings": ("strings", "string ensemble", "violins", "orchestra strings", "string orchestra",
                "orchestral strings", "string section", "bowed strings", "violin section",
                "string quartet", "violin"),
    "flute": ("flute", "wooden flute", "concert flute", "woodwind flute", "bamboo flute",
              "silver flute", "whistle"),
    "trumpet": ("trumpet", "brass", "horn", "brass horn", "bright trumpet", "bugle", "cornet"),
    "music_box": ("music box", "musical box", "toy music box", "wind-up music box",
                  "tinkling music box", "little music box"),
    "synth": ("synth", "synthesizer", "synth lead", "electronic lead", "chiptune synth",
              "8-bit synth", "retro synth", "electronic synthesizer", "synthesiser",
              "square wave synth", "video game synth"),
}  # fmt: skip

NOUNS = {
    "waltz": ("waltz", "waltz tune", "ballroom waltz", "viennese waltz", "dance in three",
              "3/4 waltz", "waltzing dance"),
    "march": ("march", "parade march", "marching tune", "military march", "marching song",
              "processional march", "fanfare march"),
    "lullaby": ("lullaby", "cradle song", "bedtime song", "baby lullaby", "sleepy tune",
                "good night song", "berceuse"),
    "ballad": ("ballad", "love song", "romantic ballad", "love ballad", "romantic song",
               "sentimental ballad"),
    "jig": ("jig", "irish jig", "celtic jig", "irish dance", "celtic dance", "6/8 jig",
            "country jig"),
    "pop": ("pop song", "pop tune", "pop track", "dance pop track", "radio pop song", "pop beat",
            "pop music", "80s pop track", "electro pop song", "rock song"),
    "folk": ("folk tune", "folk song", "folk melody", "country tune", "traditional tune",
             "folk music", "traditional song"),
}  # fmt: skip
ANY_NOUN = ("piece", "tune", "melody", "song", "music", "track", "piece of music", "theme",
             "composition", "instrumental")  # fmt: skip

TEMPO_WORDS = {
    "slow": ("slow", "unhurried", "adagio", "slow-paced", "leisurely", "slow and steady",
             "very slow", "largo"),
    "medium": ("medium tempo", "mid-tempo", "moderate", "andante", "steady", "easygoing",
               "walking-pace", "moderately paced", "medium speed", "moderato"),
    "fast": ("fast", "quick", "up-tempo", "allegro", "brisk", "fast-paced", "rapid", "speedy",
             "very fast", "presto"),
}  # fmt: skip
TEMPO_PHRASES = {
    "slow": ("at a slow tempo", "at a slow pace", "played slowly", "taking its time"),
    "medium": ("at a moderate tempo", "at a medium tempo", "at walking pace",
               "not too fast and not too slow"),
    "fast": ("at a fast tempo", "at high speed", "played quickly", "at a quick pace"),
}  # fmt: skip
TEMPO_MOODS = {
    "slow": ("calm", "gentle", "peaceful", "relaxing", "tranquil", "soothing", "relaxed", "quiet",
             "soft", "laid-back", "dreamy", "sleepy", "meditative", "chill",
             "mellow", "ambient", "lo-fi"),
    "medium": ("flowing", "gently moving", "casual", "comfortable", "strolling", "ambling",
               "balanced"),
    "fast": ("energetic", "lively", "upbeat", "driving", "exciting", "vigorous", "bouncy",
             "dynamic", "spirited", "hectic", "busy", "action-packed", "intense", "epic",
             "powerful"),
}  # fmt: skip
MODE_MOODS = {
    "major": ("happy", "cheerful", "bright", "sunny", "joyful", "merry", "warm", "positive",
              "optimistic", "uplifting", "sweet", "light-hearted", "glad", "hopeful", "pleasant"),
    "minor": ("sad", "dark", "melancholic", "gloomy", "melancholy", "mournful", "sorrowful",
              "moody", "wistful", "serious", "bittersweet", "lonely", "haunting", "mysterious",
              "unhappy"),
}  # fmt: skip
BOTH_MOODS = {
    ("slow", "major"): ("tender", "serene", "cosy", "sweet and slow", "heartwarming"),
    ("slow", "minor"): ("sombre", "funereal", "desolate", "heartbroken", "grieving", "tearful"),
    ("medium", "major"): ("good-natured", "contented", "friendly", "carefree"),
    ("medium", "minor"): ("pensive", "brooding", "nostalgic", "thoughtful"),
    ("fast", "major"): ("playful", "festive", "fun", "jolly", "exuberant", "celebratory"),
    ("fast", "minor"): ("dramatic", "stormy", "urgent", "tense", "restless", "agitated"),
}
KEYS = {
    "major": ("in a major key", "in G major", "major key", "in major"),
    "minor": ("in a minor key", "in E minor", "minor key", "in minor"),
}
METRES = {
    "3/4": ("in 3/4", "in 3/4 time", "in three", "in three-four time", "3/4"),
    "4/4": ("in 4/4", "in 4/4 time", "in four-four time", "4/4"),
    "6/8": ("in 6/8", "in 6/8 time", "in six-eight time", "6/8"),
}
DRUM_WORDS = ("drums", "a drum kit", "a drum beat", "drum beat", "percussion")
BASS_WORDS = ("bass", "bass guitar", "a bass line")

OPENERS = ("background music for a video:", "a track featuring", "please play", "play", "make",
            "i want", "i would like", "give me", "generate", "create", "here is", "compose",
            "write", "music:", "some", "please make me", "an instrumental:",
            "soundtrack:")  # fmt: skip
CLOSERS = ("please", "no vocals", "instrumental", "for a video", "for a film", "thanks",
            "background music", "for a game", "high quality", "with a nice melody",
            "that sounds good", "to listen to", "without singing", "for my project",
            "simple", "beautiful")  # fmt: skip
_STRANGE = ("purple", "table", "2024", "banana", "xyz", "window", "really", "kinda", "ocean",
            "robot", "my cat", "something like", "hmm", "tuesday", "mountain")  # fmt: skip


def _name(rng: np.random.Generator, choices: Sequence[str], plain: float = 0.45) -> str:
    """The first name with probability `plain`, otherwise a random one."""
    return choices[0] if rng.random() < plain else pick(rng, choices)


def _article(words: str) -> str:
    first = words.split()[0] if words else ""
    an = first[:1].lower() in "aeio" or first[:2] in ("un", "up", "ur") or first.startswith("8-")
    return f"{'an' if an and not first.startswith('one') else 'a'} {words}"


def _noun_phrase(words: str) -> str:
    """Adds an article if the noun takes one."""
    return words if words.split()[-1] in ("music",) and "piece" not in words else _article(words)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _instrument_article(name: str) -> str:
    plural = name in ("brass", "violins") or name.endswith("strings")
    return name if plural else _article(name)


class _Words:
    """A random choice of the attributes to mention and the words for them."""

    def __init__(self, spec: PieceSpec, rng: np.random.Generator):
        tempo, mode = spec.tempo, spec.mode
        self.adjectives: list[str] = []
        self.tail: list[str] = []
        says_mode = rng.random() < 0.65
        draw = rng.random()
        if draw < 0.36:
            self.adjectives.append(_name(rng, TEMPO_WORDS[tempo]))
        elif draw < 0.7:
            self.adjectives.append(_name(rng, TEMPO_MOODS[tempo], plain=0.2))
        elif draw < 0.8:
            self.tail.append(pick(rng, TEMPO_PHRASES[tempo]))
        elif draw < 0.87:
            self.adjectives.append(pick(rng, BOTH_MOODS[tempo, mode]))
            says_mode = False
        if says_mode:
            if rng.random() < 0.85:
                self.adjectives.append(_name(rng, MODE_MOODS[mode]))
            else:
                self.tail.append(pick(rng, KEYS[mode]))
        rng.shuffle(self.adjectives)
        if spec.metre != "6/8" and rng.random() < 0.12:  # people disagree on the beat of 6/8
            bpm = int(rng.integers(math.ceil(spec.bpm - 5), math.floor(spec.bpm + 5) + 1))
            self.tail.append(pick(rng, (f"{bpm} bpm", f"at {bpm} bpm", f"tempo {bpm}",
                                         f"{bpm} beats per minute")))  # fmt: skip
        if rng.random() < 0.1:
            self.tail.append(pick(rng, METRES[spec.metre]))
        rng.shuffle(self.tail)
        self.noun = _name(rng, NOUNS[spec.style]) if rng.random() < 0.85 else pick(rng, ANY_NOUN)
        self.lead = _name(rng, INSTRUMENTS[spec.lead])
        self.solo = spec.solo
        self.band: list[str] = []
        if spec.accompaniment and rng.random() < 0.7:
            self.band.append(_name(rng, INSTRUMENTS[spec.accompaniment]))
        if spec.bass and rng.random() < 0.45:
            self.band.append(pick(rng, BASS_WORDS))
        if spec.drums and rng.random() < 0.65:
            self.band.append(pick(rng, DRUM_WORDS))

    @property
    def described(self) -> str:
        """The adjectives followed by the noun."""
        return " ".join([*self.adjectives, self.noun])


def _backed(w: _Words, rng: np.random.Generator) -> str:
    """A phrase for the band after the lead, with a leading space; empty without a band."""
    if not w.band:
        return ""
    band = _listed(w.band)
    return pick(rng, (f" with {band}", f" and {band}", f" accompanied by {band}", f" over {band}",
                       f" with {band} accompaniment" if len(w.band) == 1 and " " not in band
                       else f", with {band}", f" backed by {band}"))  # fmt: skip


def _tail(w: _Words) -> str:
    return "".join(f", {t}" if i or len(t) < 9 else f" {t}" for i, t in enumerate(w.tail))


def _for_lead(w: _Words, rng: np.random.Generator) -> str:
    solo = w.solo and rng.random() < 0.6
    lead = f"solo {w.lead}" if solo else w.lead
    place = pick(rng, ("for", "for", "for", "on"))
    words = f"{_noun_phrase(w.described)} {place} {lead}{_backed(w, rng)}{_tail(w)}"
    return words if rng.random() < 0.7 else words.removeprefix("a ").removeprefix("an ")


def _lead_first(w: _Words, rng: np.random.Generator) -> str:
    solo = "solo " if w.solo and rng.random() < 0.5 else ""
    verb = pick(rng, ("playing", "plays", "performing"))
    lead = solo + w.lead
    if rng.random() < 0.5:
        lead = _instrument_article(lead)
    return f"{lead} {verb} {_noun_phrase(w.described)}{_backed(w, rng)}{_tail(w)}"


def _compound(w: _Words, rng: np.random.Generator) -> str:
    solo = "solo " if w.solo and rng.random() < 0.4 else ""
    words = " ".join([*w.adjectives, solo + w.lead, w.noun])
    words = _noun_phrase(words) if rng.random() < 0.5 else words
    return f"{words}{_backed(w, rng)}{_tail(w)}"


def _tags(w: _Words, rng: np.random.Generator) -> str:
    tags = [*w.adjectives, w.noun, *w.tail, *w.band]
    tags.append(f"solo {w.lead}" if w.solo and rng.random() < 0.6 else w.lead)
    rng.shuffle(tags)
    return ", ".join(tags) if rng.random() < 0.8 else " ".join(tags)


def _played_on(w: _Words, rng: np.random.Generator) -> str:
    adjectives = _listed(w.adjectives) if w.adjectives else ""
    verb = pick(rng, ("played on", "performed on", "played by"))
    lead = _instrument_article(w.lead) if rng.random() < 0.6 else f"the {w.lead}"
    words = f"{_noun_phrase(w.noun)} {verb} {lead}{_backed(w, rng)}"
    return f"{words}{', ' if adjectives else ''}{adjectives}{_tail(w)}"


def _sentences(w: _Words, rng: np.random.Generator) -> str:
    words = f"the {w.lead} plays {_noun_phrase(w.described)}"
    if w.lead.endswith(("strings", "violins")):
        words = words.replace(" plays ", " play ", 1)
    if w.band:
        verb = pick(rng, ("in the background", "in support", "behind it"))
        words += f". {_listed(w.band)} {verb}"
    return words + (f". {', '.join(w.tail)}" if w.tail else "")


def _with_feeling(w: _Words, rng: np.random.Generator) -> str:
    feeling = _listed(w.adjectives) if w.adjectives else "nice"
    what = pick(rng, ("that feels", "that is", "that sounds", "with a mood that is"))
    return f"{_noun_phrase(w.noun)} for {w.lead}{_backed(w, rng)} {what} {feeling}{_tail(w)}"


def _featuring(w: _Words, rng: np.random.Generator) -> str:
    verb = pick(rng, ("with", "featuring", "led by", "starring"))
    lead = _instrument_article(w.lead)
    return f"{_noun_phrase(w.described)} {verb} {lead}{_backed(w, rng)}{_tail(w)}"


_SAYS_MOOD = ("{}", "make it {}", "sounding {}", "the mood is {}", "keep it {}")
_SAYS_NOUN = ("{}", "in the style of {}", "think of {}", "let it be {}")
_SAYS_LEAD = ("lead: {}", "melody on {}", "{} in front", "{} on top", "{} for the melody",
              "listen to {}", "{} in the lead", "{} leads")  # fmt: skip
_SAYS_BAND = ("{} below", "accompanied by {}", "backed by {}", "over {}", "{} in support")
SAYS = (*_SAYS_MOOD, *_SAYS_NOUN, *_SAYS_LEAD, *_SAYS_BAND)
_JOINTS = (", ", ", ", ". ", " and ", "; ", ", and ", " - ")


def _clauses(w: _Words, rng: np.random.Generator) -> str:
    """A list of clauses in random order."""
    lead = w.lead if rng.random() < 0.5 else f"the {w.lead}"
    lead = pick(rng, _SAYS_LEAD).format(lead)
    clauses = [pick(rng, _SAYS_MOOD).format(adjective) for adjective in w.adjectives]
    clauses.append(pick(rng, _SAYS_NOUN).format(_noun_phrase(w.noun)))
    if w.band and rng.random() < 0.6:
        lead += f" with {_listed(w.band)}"
    elif w.band:
        clauses.append(pick(rng, _SAYS_BAND).format(_listed(w.band)))
    clauses += [lead, *w.tail]
    rng.shuffle(clauses)
    joint = pick(rng, _JOINTS)
    text = clauses[0]
    for clause in clauses[1:]:
        text += (joint if rng.random() < 0.7 else pick(rng, _JOINTS)) + clause
    return text


def _unnamed(w: _Words, rng: np.random.Generator) -> str:
    """Leaves out the lead instrument."""
    words = w.described if rng.random() < 0.5 else _noun_phrase(w.described)
    return f"{words}{_tail(w)}"


_FORMS = (_for_lead, _lead_first, _compound, _tags, _played_on, _sentences, _with_feeling,
          _featuring, _clauses, _unnamed)  # fmt: skip
_FORM_WEIGHTS = (0.19, 0.06, 0.13, 0.12, 0.06, 0.05, 0.06, 0.07, 0.2, 0.06)


def _misspell(word: str, rng: np.random.Generator) -> str:
    """Swaps, drops or doubles a letter inside a word."""
    at = int(rng.integers(1, len(word) - 1))
    return misspelling(word, at, int(rng.integers(3)))


def misspelling(word: str, at: int, kind: int) -> str:
    """The word with its letter `at` swapped with the next (0), dropped (1) or doubled (2)."""
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == 1 else word[:at] + word[at] + word[at:]


def _roughen(text: str, rng: np.random.Generator) -> str:
    """Varies letter case and full stops, and rarely adds a misspelling or a stray word."""
    if rng.random() < 0.05:
        words = text.split()
        long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        if long:
            at = long[int(rng.integers(len(long)))]
            words[at] = _misspell(words[at], rng)
        text = " ".join(words)
    if rng.random() < 0.04:
        words = text.split()
        words.insert(int(rng.integers(len(words) + 1)), pick(rng, _STRANGE))
        text = " ".join(words)
    if rng.random() < 0.1:
        text += "."
    case = rng.random()
    if case < 0.2:
        return text[:1].upper() + text[1:]
    if case < 0.24:
        return text.upper()
    return text.title() if case < 0.26 else text


def caption(spec: PieceSpec, rng: np.random.Generator) -> str:
    """A random request for a piece; it may leave out any attribute."""
    words = _Words(spec, rng)
    form = _FORMS[int(rng.choice(len(_FORMS), p=_FORM_WEIGHTS))]
    text = form(words, rng)
    draw = rng.random()
    if draw < 0.1:
        text = f"{pick(rng, OPENERS)} {text}"
    elif draw < 0.2:
        text = f"{text}{pick(rng, (', ', ' '))}{pick(rng, CLOSERS)}"
    return _roughen(text, rng)


def _plain_band(spec: PieceSpec) -> str:
    band = [INSTRUMENTS[spec.accompaniment][0]] if spec.accompaniment else []
    band += ["bass"] * spec.bass + ["drums"] * spec.drums
    return _listed(band) if band else ""


def full_caption(spec: PieceSpec) -> str:
    """Names every attribute by its plain word, always in the same form.

    For example "a slow happy waltz for solo piano in 3/4" or "a fast sad pop song for synth with
    bass and drums in 4/4".
    """
    band = _plain_band(spec)
    tempo = {"slow": "slow", "medium": "mid-tempo", "fast": "fast"}[spec.tempo]
    lead = INSTRUMENTS[spec.lead][0]
    who = f"{lead} with {band}" if band else f"solo {lead}" if spec.solo else lead
    mood = MODE_MOODS[spec.mode][0]
    return f"a {tempo} {mood} {NOUNS[spec.style][0]} for {who} in {spec.metre}"


def training_caption(spec: PieceSpec, rng: np.random.Generator) -> str:
    """A random request for a piece, or (about one time in three) its `full_caption`."""
    return full_caption(spec) if rng.random() < 0.35 else caption(spec, rng)


# Phrasings that `caption` never produces. The words that fill them are common there.
HELD_OUT = (
    "could we hear the {lead} in {a_tempo} {style}{band}? it should be {mode}",
    "{mode} and {tempo}: the {style} is carried by {lead}{band}",
    "what about {a_mode} {style}, {tempo}, where {lead} has the tune{band}",
    "my favourite is {lead}, so do {a_tempo} {style} in {a_mode} mood{band}",
    "this one is {tempo}. it is {mode}. it is {a_style} and you hear {lead}{band}",
    "the tune goes to {lead}{band} and the result is {a_mode}, {tempo} {style}",
)


def held_out_caption(spec: PieceSpec, rng: np.random.Generator) -> str:
    """Names lead, tempo, mode and style in a phrasing that training captions never use."""
    tempo = pick(rng, TEMPO_WORDS[spec.tempo][:2] + TEMPO_MOODS[spec.tempo][:4])
    mode = pick(rng, MODE_MOODS[spec.mode][:5])
    style = NOUNS[spec.style][0]
    band = _plain_band(spec)
    return pick(rng, HELD_OUT).format(
        lead=pick(rng, INSTRUMENTS[spec.lead][:3]),
        tempo=tempo,
        a_tempo=_article(tempo),
        mode=mode,
        a_mode=_article(mode),
        style=style,
        a_style=_article(style),
        band=f" with {band}" if band else "",
    )
