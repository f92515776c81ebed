"""The options of every command, for the command line and its completion.

Nothing heavy is imported here: `--help` answers at once.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from onmetal import __version__, costs
from onmetal.errors import UsageError
from onmetal.texts.suggest import did_you_mean

DESCRIPTION = """\
Convert a trained model for a target, measure every candidate on the device, choose the best that
meets the budget, and write a bundle that anyone can verify.

  deploy MODEL.onnx --target x86-64 --data DATA.npz

Other commands:
  deploy targets [NAME]     the targets, or one of them in full
  deploy devices            what is attached and ready, and what each lacks
  deploy inspect MODEL      inputs, operators, parameters, multiply-accumulates; with --data, which
                            operators lose most accuracy in 8 bits
  deploy bench ARTIFACT …   measure artifacts against each other, interleaved
  deploy convert M -o FILE  conversion alone, to .onnx, .tflite or .xml, with the same checks
  deploy verify BUNDLE      check a bundle's files, and that its model still gives the same outputs
  deploy runner build       build the program that measures on phones and boards without Python
  deploy doctor             what of this installation works, and how to repair the rest
  deploy completion SHELL   completion of commands, options and names for bash, zsh and fish

`deploy COMMAND --help` describes one of them.
"""

EPILOG = """\
budgets: of accuracy, 1% means 0.01 of a metric that lies in [0, 1] (top1, f1, auc, …: one point),
and one percent of the float model's value of any other (rmse, MODULE:FUNCTION); a plain number is
in the metric's own units. 50% of --max-size is of the model's file, 70% of --max-macs of its
multiply-accumulates. kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024, in any case.

exit codes: 0 done; 2 bad usage or input; 3 not supported by the target; 4 device missing or failed;
5 no candidate meets the budget; 6 verification failed; 129 ended by SIGHUP; 130 interrupted; 143
ended by SIGTERM; 1 a defect of onmetal
"""

CONVERSION = """\
int8 is a family: of the recipes whose names begin with it (`deploy targets x86-64` lists them) the
first is taken whose outputs are the model's.
"""

COMPLETION = """\
switch it on in the shell's start-up file:
  bash, ~/.bashrc:   eval "$(deploy completion bash)"
  zsh, ~/.zshrc:     eval "$(deploy completion zsh)"     (after compinit)
  fish, ~/.config/fish/config.fish:   deploy completion fish | source
"""

METRICS = ("top1", "top5", "accuracy", "precision", "recall", "f1", "auc", "rmse", "map", "miou")
OBJECTIVES = tuple(cost.name for cost in costs.GOALS)
TRANSPORTS = ("local", "none", "adb", "ssh://", "serial:///dev/", "socket://", "qemu:")
GOLDEN = ("real", "random", "none")
SHELLS = ("bash", "zsh", "fish")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageError, so that `--json` and exit codes apply to them, too."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(
            prog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **keywords,
        )
        self.add_argument("--version", action="version", version=f"onmetal {__version__}")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Options and names in any order. An empty value is an error: an unset shell variable
        would quietly mean the default."""
        self._refuse_unknown(words)
        arguments = self.parse_intermixed_args(words)
        for name, value in vars(arguments).items():
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"{name.replace('_', '-')} was given an empty value")
        return arguments

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Raises UsageError for an unknown option. It runs first, because argparse would report a
        missing argument instead."""
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if not re.match(r"-[^\d\s.]", name) or " " in name:
                continue
            if name not in self._option_string_actions:
                likely = did_you_mean(name, self._option_string_actions)
                self.error(f"unrecognized arguments: {name}{likely}")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def one_of(*known: str) -> Callable[[str], str]:
    """Reads one of the words, in any case."""

    def read(text: str) -> str:
        if text.casefold() in known:
            return text.casefold()
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(known)}{did_you_mean(text, known)}"
        )

    return read


MODELS = "an ONNX, TFLite, Keras, PyTorch (.pt2) or OpenVINO (.xml) file, or a SavedModel"


def deploy() -> Parser:
    parser = Parser(
        "deploy",
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="deploy MODEL [MODEL …] --target T …",
    )
    add = parser.add_argument
    # What must be given is checked in cli.py, whose messages say what there is to give.
    add("models", nargs="*", metavar="MODEL", help=f"{MODELS}; several compete")
    _add_trust(parser)
    _add_cut_at(parser)
    add("--target", help="a target's name (`deploy targets` lists them), or a .toml file")
    add(
        "--data",
        help="labelled samples: an .npz file, a folder of images (with classes, boxes or "
        "masks), or MODULE:FUNCTION",
    )
    add("--calibration-data", help="samples without labels, in the same forms")
    _add_follow_links(parser)
    add("--metric", help=f"{', '.join(METRICS)} or MODULE:FUNCTION; default: by the labels")
    add("--output", help="the output that is judged; default: the first")
    add(
        "--device",
        help="where to measure: local, adb[:SERIAL], ssh://user@host[:port], serial:///dev/tty…, "
        "socket://host:port, qemu:IMAGE; none",
    )
    add("--no-device", action="store_true", help="the same as --device none")
    add(
        "--max-accuracy-drop",
        metavar="1%|none",
        help="against the float model: 1%% is one point of a metric in [0, 1], else one percent of "
        "the float model's value; default: 1%%",
    )
    add("--min-accuracy", metavar="70%", help="of the metric itself; of rmse it is the most")
    for _, limit in costs.LIMITS:
        add(limit.option, metavar=limit.metavar, help=limit.help)
    add(
        "--minimize",
        default=costs.LATENCY.name,
        type=one_of(*OBJECTIVES),
        metavar="|".join(OBJECTIVES),
        help="default: latency (the median)",
    )
    add(
        "--recipes",
        metavar="fp32,int8,…",
        help="recipes to choose from, or what their names begin with",
    )
    add("--batch", type=int, metavar="N", help="for a free batch axis; default: 1")
    add("--threads", type=int, metavar="N", help="default: the physical cores")
    add("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    add("--out", metavar="DIR", help="the bundle; default: MODEL-TARGET/")
    add("--force", action="store_true", help="replace what is there")
    add(
        "--golden",
        default="real",
        type=one_of(*GOLDEN),
        metavar="|".join(GOLDEN),
        help="what the bundle's golden vectors are made of: up to four samples of DATA (default), "
        "random inputs, or none",
    )
    add(
        "--keep-paths",
        action="store_true",
        help="keep paths and the device's address in the bundle, which has names and a digest else",
    )
    add("--time-limit", metavar="30min", help="after it, the best so far is taken")
    _add_modes(parser)
    add(
        "--dry-run",
        action="store_true",
        help="print the plan, with all that is not tried, and stop",
    )
    _add_json(parser)
    return parser


def _add_modes(parser: Parser) -> None:
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--quick", action="store_true", help="measure for about a minute")
    speed.add_argument("--thorough", action="store_true", help="five windows of ten seconds each")


def _add_trust(parser: Parser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run Python code that a Keras file holds (Lambda layers): you know who wrote it",
    )


def _add_cut_at(parser: Parser) -> None:
    parser.add_argument(
        "--cut-at",
        action="append",
        default=[],
        metavar="NAME,…",
        help="make these tensors (or what these operators give) the model's outputs, and leave out "
        "what follows, such as NonMaxSuppression",
    )


def _add_follow_links(parser: Parser) -> None:
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="read what links in a folder of data lead to outside of it",
    )


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def targets() -> Parser:
    parser = Parser("deploy targets", description="The targets, or one of them in full.")
    parser.add_argument("name", nargs="?", help="a target's name or .toml file")
    _add_json(parser)
    return parser


def devices() -> Parser:
    parser = Parser("deploy devices", description="What is attached and ready; what each lacks.")
    parser.add_argument(
        "addresses",
        nargs="*",
        metavar="ADDRESS",
        help="others to look at, such as ssh://user@host: boards are not found by themselves",
    )
    _add_json(parser)
    return parser


def inspect() -> Parser:
    parser = Parser(
        "deploy inspect",
        description="Inputs, outputs, operators, parameters and multiply-accumulates of a model.",
    )
    parser.add_argument("model", metavar="MODEL|ARTIFACT")
    _add_trust(parser)
    _add_cut_at(parser)
    parser.add_argument("--target", help="also say what this target cannot run, and why")
    parser.add_argument(
        "--data", help="samples: which operators lose most accuracy in the target's 8 bits"
    )
    _add_follow_links(parser)
    parser.add_argument(
        "--against",
        metavar="FLOAT",
        help="the float model that ARTIFACT (.onnx, .xml or a bundle) was made from: "
        "names the first tensor whose values differ",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="draw the arena over time (microcontrollers)"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    _add_json(parser)
    return parser


def bench() -> Parser:
    parser = Parser(
        "deploy bench", description="Measure artifacts against each other, interleaved."
    )
    parser.add_argument("artifacts", nargs="+", metavar="MODEL|ARTIFACT|BUNDLE")
    parser.add_argument("--target", help="default: x86-64; for a microcontroller's board, tflm")
    parser.add_argument("--device", default="local")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    parser.add_argument(
        "--seed", type=int, default=0, help="for the random order of the rounds; default: 0"
    )
    parser.add_argument(
        "--benchmark-model",
        metavar="PATH",
        help="a copy of Google's benchmark_model for the device, which times .tflite files as well",
    )
    _add_modes(parser)
    _add_json(parser)
    return parser


def convert() -> Parser:
    parser = Parser(
        "deploy convert",
        description="Convert a model to one file, and compare its outputs with the model's own.",
        epilog=CONVERSION,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODELS)
    _add_cut_at(parser)
    _add_trust(parser)
    add(
        "-o",
        dest="file",
        metavar="FILE",
        help="what to write: .onnx, .tflite or .xml (OpenVINO, with a .bin beside it)",
    )
    add("--recipe", metavar="int8", help="default: fp32; int8 where there are calibration data")
    add("--calibration-data", help="samples: an .npz file, a folder of images, or MODULE:FUNCTION")
    _add_follow_links(parser)
    add("--target", help="the recipes and the layout of this target; default: all recipes")
    add("--batch", type=int, metavar="N", help="for a free batch axis; default: 1")
    add("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    add("--force", action="store_true", help="replace FILE where it exists; never the model")
    _add_json(parser)
    return parser


def verify() -> Parser:
    parser = Parser(
        "deploy verify",
        description="Check a bundle's files, and that its model still gives the same outputs.",
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--device", default="local")
    parser.add_argument("--run", action="store_true", help="also execute the bundle's run.py")
    _add_json(parser)
    return parser


def runner() -> Parser:
    parser = Parser(
        "deploy runner", description="The program that measures on devices without Python."
    )
    parser.add_argument("what", choices=("build",), help="build it, for 64-bit ARM")
    _add_json(parser)
    return parser


def doctor() -> Parser:
    parser = Parser(
        "deploy doctor", description="What of this installation works, and how to repair the rest."
    )
    _add_json(parser)
    return parser


def completion() -> Parser:
    parser = Parser(
        "deploy completion",
        description="Print the shell's code that completes commands, options and names.",
        epilog=COMPLETION,
    )
    parser.add_argument("shell", type=one_of(*SHELLS), metavar="|".join(SHELLS))
    return parser


COMMANDS: dict[str, Callable[[], Parser]] = {
    "targets": targets,
    "devices": devices,
    "inspect": inspect,
    "bench": bench,
    "convert": convert,
    "verify": verify,
    "runner": runner,
    "doctor": doctor,
    "completion": completion,
}
"""Name of a command -> its parser; the main command, a deployment, has no name."""
