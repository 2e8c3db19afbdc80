"""`musicgen-jax completion`: the words of the command line for a shell, made from the parser."""

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_musicgen_jax() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local words="{commands}" place=""
  local word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$place/$word" in
      {places}) place="$place/$word" ;;
    esac
  done
  case "$place $before" in
{choices}
  esac
  case "$place" in
{options}
  esac
  if [[ "$current" == -* || -z "$place" ]] || [[ "$words" != -* && -n "$words" ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
}}
complete -o default -F _musicgen_jax musicgen-jax
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help='bash: eval "$(musicgen-jax completion bash)" in ~/.bashrc; zsh: the same in '
        "~/.zshrc after compinit; fish: musicgen-jax completion fish | source",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the script."""
    from musicgen_jax.commands import cli  # which imports this file

    places = dict(_places(cli._parser(), ()))
    print(_fish(places) if args.shell == "fish" else _bash(places, zsh=args.shell == "zsh"), end="")


Place = tuple[str, ...]  # the commands typed so far


def _places(parser: argparse.ArgumentParser, place: Place) -> Iterator[tuple[Place, list]]:
    """Each command and its actions, that of the whole program first."""
    yield place, parser._actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _places(command, (*place, name))


def _words(actions: list) -> list[str]:
    """What may follow: commands, and long options."""
    words: list[str] = []
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            words = [*action.choices, *words]
        words += [option for option in action.option_strings if option.startswith("--")]
    return words


def _choices(actions: list) -> Iterator[tuple[list[str], list[str]]]:
    """Options and the values that they take, if these are a few words."""
    for action in actions:
        if action.option_strings and action.choices:
            yield action.option_strings, [str(choice) for choice in action.choices]


def _bash(places: dict[Place, list], *, zsh: bool) -> str:
    known = ["/" + "/".join(place) for place in places if place]
    options, choices = [], []
    for place, actions in places.items():
        path = "".join(f"/{name}" for name in place)
        options.append(f'    "{path}") words="{" ".join(_words(actions))}" ;;')
        for names, values in _choices(actions):
            pattern = "|".join(f'"{path} {name}"' for name in names)
            reply = f'COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$current"))'
            choices.append(f"    {pattern}) {reply}; return ;;")
    script = _BASH.format(
        commands=" ".join(_words(places[()])),
        places="|".join(f'"{path}"' for path in known),
        choices="\n".join(choices),
        options="\n".join(options),
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish(places: dict[Place, list]) -> str:
    lines = []
    for place, actions in places.items():
        here = "__fish_use_subcommand"
        if place:
            here = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in place)
        start = f"complete -c musicgen-jax -n '{here}'"
        for word in _words(actions):
            if word.startswith("--"):
                values = {n: v for names, v in _choices(actions) for n in names}.get(word)
                takes = f" -x -a '{' '.join(values)}'" if values else ""
                lines.append(f"{start} -l {word[2:]}{takes}")
            else:
                lines.append(f"{start} -f -a {word}")
    return "\n".join(lines) + "\n"
