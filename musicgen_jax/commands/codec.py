"""`musicgen-jax codec`: audio to a small file of codes, and back."""

import argparse
from pathlib import Path

from musicgen_jax import console
from musicgen_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the two sub-commands to a parser."""
    commands = parser.add_subparsers(required=True, metavar="ENCODE|DECODE")
    encode = commands.add_parser("encode", help="audio to codes", description=_encode.__doc__)
    encode.add_argument("input", metavar="IN.wav", help="an audio file")
    encode.add_argument("output", metavar="OUT.npz", help="the file of codes to make")
    encode.add_argument(
        "--bandwidth", type=float, metavar="KBPS", help="kilobits per second (default: the highest)"
    )
    encode.set_defaults(run=_encode)
    decode = commands.add_parser("decode", help="codes to audio", description=_decode.__doc__)
    decode.add_argument("input", metavar="IN.npz", help="a file of codes")
    decode.add_argument("output", metavar="OUT.wav", help="the .wav or .flac file to make")
    decode.set_defaults(run=_decode)
    for command in (encode, decode):
        command.add_argument(
            "--model",
            default="nano",
            metavar="FOLDER",
            help="nano, the folder of a converted codec or model, or encodec_24khz, "
            "encodec_32khz, encodec_48khz",
        )
        console.add_arguments(command)


def _encode(args: argparse.Namespace) -> None:
    """Encodes an audio file, at the codec's own rate and channels."""
    if Path(args.output).suffix.lower() != ".npz":
        raise UserError(f"the output must end in .npz, got {args.output!r}")

    from musicgen_jax import audio
    from musicgen_jax.codec import Codec
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.storage import codec_file

    compile_cache.enable()
    wav, rate = audio.read(args.input)
    out = console.Console.of(args)
    encoded = Codec.from_pretrained(args.model).encode(wav, rate, args.bandwidth, bar=out.bar)
    path = codec_file.write(args.output, encoded)
    seconds = encoded.length / encoded.sample_rate
    out.made(
        f"wrote {path} ({seconds:.2f} s, {encoded.bandwidth:g} kb/s)",
        file=str(path),
        seconds=seconds,
        kilobits_per_second=encoded.bandwidth,
    )


def _decode(args: argparse.Namespace) -> None:
    """Decodes a file of codes with its codec, to an audio file of the original length."""
    if Path(args.output).suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"the output must end in .wav or .flac, got {args.output!r}")

    from musicgen_jax import audio
    from musicgen_jax.codec import Codec
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.storage import codec_file

    compile_cache.enable()
    encoded = codec_file.read(args.input)
    if len(encoded.codes) != 1:
        raise UserError(f"{args.input} holds {len(encoded.codes)} clips, but a .wav holds one")
    out = console.Console.of(args)
    (wav,) = Codec.from_pretrained(args.model).decode(encoded, bar=out.bar)
    # At the original level; only samples beyond full scale are clipped.
    path = audio.write(args.output, wav, encoded.sample_rate, "clip", peak_clip_headroom_db=0)
    seconds = wav.shape[1] / encoded.sample_rate
    out.made(f"wrote {path} ({seconds:.2f} s)", file=str(path), seconds=seconds)
