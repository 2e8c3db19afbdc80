"""`musicgen-jax cache`: what lies in the user's folders, and how to remove it."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from musicgen_jax import files
from musicgen_jax.commands import doctor_checks
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.runtime import program_store, user_folders
from musicgen_jax.storage import hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands below `cache`."""
    commands = parser.add_subparsers(required=True, metavar="list|clean")
    listing = commands.add_parser(
        "list",
        help="show what is there",
        description="Shows the compiled programs and the converted models, and their sizes.",
    )
    listing.set_defaults(run=_list)
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    clean = commands.add_parser(
        "clean",
        help="remove compiled programs, or models",
        description="Removes compiled programs, which are then compiled again when they are "
        "needed; or with --model only a converted model.",
    )
    clean.set_defaults(run=_clean)
    clean.add_argument(
        "--damaged", action="store_true", help="only programs that cannot be used any more"
    )
    clean.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="remove this converted model of `cache list` instead; may be given several times",
    )


def _list(args: argparse.Namespace) -> None:
    programs, models = user_folders.compiled_programs(), _models()
    entries = _programs(programs)
    sizes = {name: doctor_checks.size_of(folder)[1] for name, folder in models.items()}
    size = sum(entry.lstat().st_size for entry in entries)
    if args.json:
        document: dict[str, Any] = {
            "programs": {
                "folder": programs and str(programs),
                "count": len(entries),
                "bytes": size,
            },
            "models": [
                {"name": name, "folder": str(models[name]), "bytes": sizes[name]} for name in models
            ],
        }
        print(json.dumps(document, indent=2))
        return
    where = programs or f"off, or this user has no home folder ({user_folders.VARIABLE})"
    print(f"compiled programs: {len(entries)}, {doctor_checks.gigabytes(size)}, {where}")
    for name, folder in models.items():
        print(f"model {name}: {doctor_checks.gigabytes(sizes[name])}, {folder}")


def _clean(args: argparse.Namespace) -> None:
    if args.model:
        if args.damaged:
            raise UserError(
                "--damaged is for compiled programs: it cannot be combined with --model"
            )
        models = _models()
        if unknown := [name for name in args.model if name not in models]:
            known = ", ".join(models) or "none"
            raise UserError(f"no converted model {unknown[0]!r}; there are: {known}")
        for name in dict.fromkeys(args.model):
            size = doctor_checks.size_of(models[name])[1]
            _remove_folder(models[name])
            print(f"removed the model {name}: {doctor_checks.gigabytes(size)}")
        return
    folder = user_folders.compiled_programs()
    entries = _programs(folder)
    if args.damaged and folder is not None:
        entries = program_store.damaged(folder)
    size = 0
    for entry in entries:
        with user_error("delete", entry):
            size += entry.lstat().st_size
            entry.unlink(missing_ok=True)
    print(f"removed {len(entries)} compiled programs: {doctor_checks.gigabytes(size)}")


def _programs(folder: Path | None) -> list[Path]:
    """The entries of the folder of compiled programs, and no other files in it."""
    if folder is None or not folder.is_dir():
        return []
    with user_error("read", folder):
        return program_store.entries(folder)


def _models() -> dict[str, Path]:
    """The converted models in the user's folder, by the names of their folders."""
    try:
        home = hub.models_home()
    except UserError:
        return {}
    if not home.is_dir():
        return {}
    with user_error("read", home):
        found = sorted(entry for entry in home.iterdir() if (entry / "config.json").is_file())
    return {entry.name: entry for entry in found}


def _remove_folder(folder: Path) -> None:
    """Removes a folder, or a link to one. It is gone at once, however long its files take."""
    with user_error("delete", folder):
        if folder.is_symlink():
            folder.unlink()
            return
        aside = files.temporary_name(folder)
        os.rename(folder, aside)
        shutil.rmtree(aside)
