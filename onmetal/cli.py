"""The `deploy` command: words on the command line -> one call; errors -> exit codes.

Nothing heavy is imported before it is known what is wanted: `--help` answers at once.
"""

import argparse
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from onmetal import __version__
from onmetal.errors import Interrupted, OnmetalError, UsageError
from onmetal.progress import silence

DESCRIPTION = """\
Convert a trained model for a target, measure every candidate on the device, choose the best that
meets the budget, and write a bundle that anyone can verify.

  deploy MODEL.onnx --target x86-64 --data DATA.npz

Beside it:
  deploy targets [NAME]     the targets, or one of them in full
  deploy devices            what is attached and ready, and what each lacks
  deploy inspect MODEL      inputs, operators, parameters, multiply-accumulates; where 8 bits hurt
  deploy bench ARTIFACT …   measure artifacts against each other, interleaved
  deploy verify BUNDLE      is a bundle whole, and does it still give what it gave?
  deploy runner build       the program that measures on phones and boards which have nothing
  deploy doctor             this installation: what works, and what mends the rest
"""

EPILOG = """\
exit codes: 0 done; 2 bad usage or input; 3 not supported by the target; 4 device missing or failed;
5 no candidate meets the budget; 6 verification failed; 130 interrupted; 1 a defect of onmetal
"""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ours: `--json` and exit codes hold for them too."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(
            prog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **keywords,
        )

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Options and names in any order. An empty value is an error: an unset shell variable
        would quietly mean the default."""
        asked = self.parse_intermixed_args(words)
        for name, value in vars(asked).items():
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"{name.replace('_', '-')} was given an empty value")
        return asked

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _main_parser() -> Parser:
    parser = Parser(
        "deploy",
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="deploy MODEL [MODEL …] --target T …",
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="an ONNX file; several compete")
    add("--target", required=True, help="a target's name, or a .toml file of your own")
    add("--data", help="labelled samples: an .npz file, a folder of images, or MODULE:FUNCTION")
    add("--calibration-data", help="samples without labels, in the same forms")
    add(
        "--metric", help="top1, top5, accuracy, precision, recall, f1, auc, rmse or MODULE:FUNCTION"
    )
    add("--output", help="the output that is judged; default: the first")
    add(
        "--device",
        help="where to measure: local, adb[:SERIAL], ssh://user@host[:port], serial:///dev/tty…, "
        "socket://host:port, qemu:IMAGE; none",
    )
    add("--no-device", action="store_true", help="the same as --device none")
    add("--max-accuracy-drop", metavar="1%|none", help="default: 1%%")
    add("--min-accuracy", metavar="70%")
    add("--max-latency", metavar="20ms", help="of the p90")
    add("--max-size", metavar="4MB|50%")
    add("--max-macs", metavar="70%")
    add("--max-memory", metavar="64MB")
    add("--max-energy", metavar="5mJ")
    add(
        "--minimize",
        default="latency",
        choices=("latency", "throughput", "size", "memory", "energy", "accuracy-drop"),
        help="default: latency (p50)",
    )
    add("--recipes", metavar="fp32,int8,…", help="families of candidates to choose from")
    add("--batch", type=int, metavar="N", help="for a free batch axis; default: 1")
    add("--threads", type=int, metavar="N", help="default: the physical cores")
    add("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    add("--out", metavar="DIR", help="the bundle; default: MODEL-TARGET/")
    add("--force", action="store_true", help="replace what is there")
    add("--time-limit", metavar="30min", help="after it, the best so far is taken")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--quick", action="store_true", help="measure for a minute")
    speed.add_argument("--thorough", action="store_true", help="windows of ten seconds, five times")
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--version", action="version", version=f"onmetal {__version__}")
    return parser


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise UsageError(f"{option} {value}: must be 1 or more")
    return value


def _run_deploy(words: Sequence[str]) -> int:
    asked = _main_parser().read(words)
    from onmetal import budget, pipeline
    from onmetal.progress import Progress
    from onmetal.task import Request

    given = [
        option
        for option in (
            "--max-accuracy-drop",
            "--min-accuracy",
            "--max-latency",
            "--max-size",
            "--max-macs",
            "--max-memory",
            "--max-energy",
        )
        if getattr(asked, option[2:].replace("-", "_")) is not None
    ]
    recipes = None
    if asked.recipes is not None:
        recipes = tuple(part.strip() for part in asked.recipes.split(","))
    if asked.no_device and asked.device not in (None, "none"):
        raise UsageError("--no-device and --device say opposite things; leave one out")
    request = Request(
        models=tuple(Path(word) for word in asked.models),
        target=asked.target,
        data=asked.data,
        calibration_data=asked.calibration_data,
        metric=asked.metric,
        output=asked.output,
        device="none" if asked.no_device else asked.device,
        budget=_budget(asked),
        budget_given=tuple(given),
        minimize=asked.minimize,
        recipes=recipes,
        batch=_positive(asked.batch, "--batch"),
        threads=_positive(asked.threads, "--threads"),
        input_shapes=tuple(asked.input_shape),
        out=Path(asked.out) if asked.out else None,
        force=asked.force,
        time_limit_s=(
            budget.parse_ms(asked.time_limit, "--time-limit") / 1e3 if asked.time_limit else None
        ),
        mode="quick" if asked.quick else "thorough" if asked.thorough else "default",
        dry_run=asked.dry_run,
    )
    progress = Progress(steps=5 if request.device == "none" else 7)
    document = pipeline.deploy(request, progress)
    progress.clear()
    for warning in document["data"]["warnings"]:
        progress.say(f"warning: {warning}")
    table = document.pop("table")
    _print(document, asked.json, table)
    if document["chosen"] and not asked.json:
        print(f"\nChosen: {document['chosen']}; the bundle is in {document['bundle']}")
    return 0


def _budget(asked: argparse.Namespace) -> Any:
    from onmetal import budget

    def parsed(option: str, parse: Callable[[str, str], Any]) -> Any:
        text = getattr(asked, option[2:].replace("-", "_"))
        return None if text is None else parse(text, option)

    drop: Any = budget.Share(0.01)
    if asked.max_accuracy_drop == "none":
        drop = None
    elif asked.max_accuracy_drop is not None:
        drop = budget.parse_share_or_number(asked.max_accuracy_drop, "--max-accuracy-drop")
    return budget.Asked(
        max_accuracy_drop=drop,
        min_accuracy=parsed("--min-accuracy", budget.parse_share_or_number),
        max_latency_ms=parsed("--max-latency", budget.parse_ms),
        max_size=parsed("--max-size", budget.parse_share_or_bytes),
        max_macs=parsed("--max-macs", budget.parse_share),
        max_memory_bytes=parsed("--max-memory", budget.parse_bytes),
        max_energy_mj=parsed("--max-energy", budget.parse_mj),
    )


def _print(document: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        from onmetal.bundle import encode

        sys.stdout.write(encode(document).decode())
    else:
        print(text)


def _run_targets(words: Sequence[str]) -> int:
    parser = Parser("deploy targets", description="The targets, or one of them in full.")
    parser.add_argument("name", nargs="?", help="a target's name or .toml file")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import beside

    document, text = beside.show_targets(asked.name)
    _print(document, asked.json, text)
    return 0


def _run_devices(words: Sequence[str]) -> int:
    parser = Parser("deploy devices", description="What is attached and ready; what each lacks.")
    parser.add_argument(
        "addresses",
        nargs="*",
        metavar="ADDRESS",
        help="others to ask, such as ssh://user@host: boards are in no list",
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import attached

    document, text = attached.show(asked.addresses)
    _print(document, asked.json, text)
    return 0


def _run_inspect(words: Sequence[str]) -> int:
    parser = Parser("deploy inspect", description="What a model takes, gives and costs.")
    parser.add_argument("model", metavar="MODEL|ARTIFACT")
    parser.add_argument("--target", help="also tell what this target cannot run, and why")
    parser.add_argument("--data", help="samples: which operators bear the target's 8 bits badly")
    parser.add_argument(
        "--against",
        metavar="FLOAT",
        help="the float model that ARTIFACT (.onnx, .xml or a bundle) was made from: "
        "name the first tensor that went wrong",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="draw the arena over time (microcontrollers)"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import inspecting
    from onmetal.progress import Progress

    progress = Progress(steps=1)
    batch = _positive(asked.batch, "--batch")
    if asked.against:
        if asked.target:
            raise UsageError("--against compares two files: leave --target out")
        document, text = inspecting.compare(
            Path(asked.model), Path(asked.against), batch, asked.input_shape, asked.data, progress
        )
    else:
        document, text = inspecting.inspect(
            Path(asked.model),
            asked.target,
            batch,
            asked.input_shape,
            asked.data,
            Path(asked.plot) if asked.plot else None,
            progress,
        )
    progress.clear()
    _print(document, asked.json, text)
    return 0


def _run_bench(words: Sequence[str]) -> int:
    parser = Parser(
        "deploy bench", description="Measure artifacts against each other, interleaved."
    )
    parser.add_argument("artifacts", nargs="+", metavar="MODEL|ARTIFACT|BUNDLE")
    parser.add_argument("--target", help="default: x86-64; of a microcontroller's board, tflm")
    parser.add_argument("--device", default="local")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1,3,224,224")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rounds")
    parser.add_argument(
        "--benchmark-model",
        metavar="PATH",
        help="a copy of Google's benchmark_model for the device: its word on .tflite files too",
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--quick", action="store_true")
    speed.add_argument("--thorough", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import beside
    from onmetal.progress import Progress

    progress = Progress(steps=2)
    document, text = beside.bench(
        [Path(word) for word in asked.artifacts],
        asked.target,
        asked.device,
        _positive(asked.threads, "--threads"),
        _positive(asked.batch, "--batch"),
        asked.input_shape,
        "quick" if asked.quick else "thorough" if asked.thorough else "default",
        asked.seed,
        Path(asked.benchmark_model) if asked.benchmark_model else None,
        progress,
    )
    progress.clear()
    _print(document, asked.json, text)
    return 0


def _run_verify(words: Sequence[str]) -> int:
    parser = Parser(
        "deploy verify", description="Is a bundle whole, and does it give what it gave?"
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--device", default="local")
    parser.add_argument("--run", action="store_true", help="also execute the bundle's run.py")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import beside

    document, text = beside.verify(Path(asked.bundle), asked.device, run=asked.run)
    _print(document, asked.json, text)
    return 0


def _run_runner(words: Sequence[str]) -> int:
    parser = Parser(
        "deploy runner", description="The program that measures on devices which have nothing."
    )
    parser.add_argument("what", choices=("build",), help="build it, for 64-bit ARM")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import beside

    document, text = beside.build_runner()
    _print(document, asked.json, text)
    return 0


def _run_doctor(words: Sequence[str]) -> int:
    parser = Parser("deploy doctor", description="What of this installation works.")
    parser.add_argument("--json", action="store_true")
    asked = parser.read(words)
    from onmetal import doctor

    document, text = doctor.show()
    _print(document, asked.json, text)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "targets": _run_targets,
    "devices": _run_devices,
    "inspect": _run_inspect,
    "bench": _run_bench,
    "verify": _run_verify,
    "runner": _run_runner,
    "doctor": _run_doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding, odd file names
            stream.reconfigure(errors="backslashreplace")
    try:
        if words and words[0] in COMMANDS:
            return _flushed(COMMANDS[words[0]], words[1:])
        if words and words[0].isalpha() and not Path(words[0]).exists():
            raise UsageError(
                f"{words[0]}: neither a command nor a file; the commands: {', '.join(COMMANDS)}"
            )
        return _flushed(_run_deploy, words)
    except OnmetalError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        return _fail(
            Interrupted("interrupted; conversions and accuracies are kept, run it again to go on"),
            as_json,
        )
    except BrokenPipeError:  # `deploy targets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            return _fail(OnmetalError(_log_defect(words)), as_json)
        return _fail(UsageError(f"{error.filename}: {error.strerror}"), as_json)
    except Exception:
        return _fail(OnmetalError(_log_defect(words)), as_json)


def _flushed(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """Run it, and write out what it printed while a reader that went away can still be met."""
    try:
        return command(words)
    finally:
        sys.stdout.flush()


def _fail(error: OnmetalError, as_json: bool) -> int:
    try:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        for warning in (error.document or {}).get("data", {}).get("warnings", []):
            print(f"warning: {warning}", file=sys.stderr)
        print(f"deploy: {error}", file=sys.stderr, flush=True)
    except OSError:  # a reader that went away
        silence(sys.stderr)
    if as_json:
        document = {k: v for k, v in (error.document or {}).items() if k != "table"}
        document["error"] = {"code": error.exit_code, "message": str(error)}
        if error.document:
            from onmetal.bundle import encode

            sys.stdout.write(encode(document).decode())
        else:
            print(json.dumps(document))
    return error.exit_code


def _log_defect(words: Sequence[str]) -> str:
    """Keep the traceback where it can be sent to us. -> one line about it."""
    from onmetal.cache import home

    kind, value, _ = sys.exc_info()
    what = f"a defect of onmetal: {kind.__name__ if kind else ''}: {value}"
    what = " ".join(what.split())[:300]
    try:
        folder = home() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime("defect-%Y%m%d-%H%M%S.log")
        path.write_text(
            f"onmetal {__version__}, Python {sys.version}\ndeploy {words}\n"
            + traceback.format_exc(),
            "utf-8",
        )
    except OSError:
        return what
    return f"{what}; please report it with {path}"


if __name__ == "__main__":
    sys.exit(main())
