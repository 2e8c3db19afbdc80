"""`musicgen-jax doctor`: what is here, what fits, and what is wrong."""

import argparse
import dataclasses
import json

from musicgen_jax.commands import doctor_checks
from musicgen_jax.errors import UserError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for a program or a report"
    )
    parser.add_argument(
        "--no-music", action="store_true", help="skip the second of music, which takes longest"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the findings.

    Raises:
      UserError: something is wrong.
    """
    findings = []
    for finding in doctor_checks.examine(music=not args.no_music):
        findings.append(finding)
        if not args.json:
            print(f"{finding.state:<5} {finding.check}: {one_line(finding.text)}", flush=True)
    wrong = [finding.check for finding in findings if finding.state == doctor_checks.WRONG]
    if args.json:
        document = {"ok": not wrong, "findings": [dataclasses.asdict(f) for f in findings]}
        print(json.dumps(document, indent=2))
    if wrong:
        raise UserError(f"something is wrong with {', '.join(wrong)}: see the findings above")
