"""The `deploy` command: parses the command line, runs the command and turns errors into exit codes.

Nothing heavy is imported before the command is known, so that `--help` answers at once.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onmetal import __version__
from onmetal.commands import options
from onmetal.commands.ending import Terminate, orderly_end
from onmetal.errors import BudgetError, HungUp, Interrupted, OnmetalError, Terminated, UsageError
from onmetal.progress import silence
from onmetal.texts import suggest, terminal


def _check_given(arguments: argparse.Namespace) -> None:
    """Raises UsageError, with examples, where an argument that a deployment needs is missing."""
    if not arguments.models:
        raise UsageError(
            "no MODEL was given: `deploy MODEL.onnx --target x86-64 --data DATA.npz`, or one of "
            f"the commands {', '.join(options.COMMANDS)}; `deploy --help` describes them"
        )
    for word in arguments.models:
        if word in options.COMMANDS and not Path(word).exists():
            raise UsageError(f"{word} is a command, and comes first: `deploy {word} …`")
    if arguments.target is None:
        raise UsageError(
            "no --target was given, which names the hardware that the model will run on; "
            "`deploy targets` lists them, x86-64 is this kind of machine"
        )


def _run_deploy(arguments: argparse.Namespace) -> int:
    _check_given(arguments)
    from onmetal.deploy import from_options, run
    from onmetal.progress import Progress

    request = from_options.deployment([Path(word) for word in arguments.models], vars(arguments))
    progress = Progress(steps=5 if request.device == "none" else 7)
    report = run.deploy(request, progress)
    progress.clear()
    for warning in report.document.data.warnings:
        progress.warn(warning)
    _render(report, arguments.json)
    return 0


def _render(report: Any, as_json: bool) -> None:
    """Print the record of a run in the form that was asked for."""
    from onmetal.reports import Form, text
    from onmetal.reports import json as json_form

    form: Form = json_form if as_json else text
    rendered = form.render(report, terminal.of(sys.stdout))
    if isinstance(rendered, bytes):
        terminal.write_json(sys.stdout, rendered)
    else:
        terminal.write(sys.stdout, rendered)


def _print(document: dict[str, Any], as_json: bool, lines: Sequence[str]) -> None:
    if as_json:
        from onmetal.reports.json import encode

        terminal.write_json(sys.stdout, encode(document))
    else:
        terminal.write(sys.stdout, lines)


def _run_targets(arguments: argparse.Namespace) -> int:
    from onmetal.commands import bench

    document, lines = bench.show_targets(arguments.name)
    _print(document, arguments.json, lines)
    return 0


def _run_devices(arguments: argparse.Namespace) -> int:
    from onmetal.commands import devices

    document, lines = devices.show(arguments.addresses)
    _print(document, arguments.json, lines)
    return 0


def _run_inspect(arguments: argparse.Namespace) -> int:
    from onmetal.commands import inspect
    from onmetal.deploy.from_options import positive
    from onmetal.progress import Progress

    progress = Progress(steps=1)
    batch = positive(arguments.batch, "--batch")
    if arguments.against:
        if arguments.target:
            raise UsageError("--against compares two files: leave --target out")
        if arguments.cut_at:
            raise UsageError("--against compares two files as they are: leave --cut-at out")
        document, lines = inspect.compare(
            Path(arguments.model),
            Path(arguments.against),
            batch,
            arguments.input_shape,
            arguments.data,
            arguments.follow_links,
            progress,
        )
    else:
        document, lines = inspect.inspect(
            Path(arguments.model),
            arguments.target,
            batch,
            arguments.input_shape,
            arguments.data,
            arguments.follow_links,
            Path(arguments.plot) if arguments.plot else None,
            arguments.trust,
            arguments.cut_at,
            progress,
        )
    progress.clear()
    _print(document, arguments.json, lines)
    return 0


def _run_bench(arguments: argparse.Namespace) -> int:
    from onmetal.commands import bench
    from onmetal.deploy.from_options import positive
    from onmetal.progress import Progress

    progress = Progress(steps=2)
    report = bench.bench(
        [Path(word) for word in arguments.artifacts],
        arguments.target,
        arguments.device,
        positive(arguments.threads, "--threads"),
        positive(arguments.batch, "--batch"),
        arguments.input_shape,
        "quick" if arguments.quick else "thorough" if arguments.thorough else "default",
        arguments.seed,
        Path(arguments.benchmark_model) if arguments.benchmark_model else None,
        progress,
    )
    progress.clear()
    _render(report, arguments.json)
    return 0


def _run_convert(arguments: argparse.Namespace) -> int:
    from onmetal.commands import convert
    from onmetal.deploy import from_options
    from onmetal.progress import Progress

    progress = Progress(steps=3)
    document, lines = convert.convert(from_options.conversion(vars(arguments)), progress)
    progress.clear()
    _print(document, arguments.json, lines)
    return 0


def _run_verify(arguments: argparse.Namespace) -> int:
    from onmetal.commands import bench

    document, lines = bench.verify(Path(arguments.bundle), arguments.device, run=arguments.run)
    _print(document, arguments.json, lines)
    return 0


def _run_runner(arguments: argparse.Namespace) -> int:
    from onmetal.commands import bench

    document, lines = bench.build_runner()
    _print(document, arguments.json, lines)
    return 0


def _run_doctor(arguments: argparse.Namespace) -> int:
    from onmetal.commands import doctor

    document, lines = doctor.show()
    _print(document, arguments.json, lines)
    return 0


def _run_completion(arguments: argparse.Namespace) -> int:
    from onmetal.commands import completion

    terminal.write(sys.stdout, completion.code(arguments.shell).splitlines())
    return 0


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    "targets": _run_targets,
    "devices": _run_devices,
    "inspect": _run_inspect,
    "bench": _run_bench,
    "convert": _run_convert,
    "verify": _run_verify,
    "runner": _run_runner,
    "doctor": _run_doctor,
    "completion": _run_completion,
}


def _run(words: list[str]) -> int:
    """Run the command that the first word names, else a deployment."""
    leading = 1 if words[:1] == ["--json"] else 0
    name = words[leading] if len(words) > leading else ""
    if name == "help" and not Path(name).exists():
        return _run(["--help"] if words[leading + 1 :] == [] else [words[leading + 1], "--help"])
    if name in RUNS:
        arguments = options.COMMANDS[name]().read(words[:leading] + words[leading + 1 :])
        return RUNS[name](arguments)
    if name.isalpha() and not Path(name).exists():
        raise UsageError(
            f"{name}: neither a command nor a file{suggest.did_you_mean(name, RUNS)}; "
            f"the commands: {', '.join(RUNS)}"
        )
    return _run_deploy(options.deploy().read(words))


def main(argv: Sequence[str] | None = None) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from onmetal.commands import completion

        completion.complete()
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding, odd file names
            stream.reconfigure(errors="backslashreplace")
    resume_advice = "conversions and accuracies are kept, run it again to go on"
    try:
        with orderly_end():
            return _flushed(words)
    except OnmetalError as error:
        return _fail(error, as_json)
    except Terminate as end:
        error_type = Terminated if end.number == signal.SIGTERM else HungUp
        return _fail(error_type(f"ended by {end.number.name}; {resume_advice}"), as_json)
    except KeyboardInterrupt:
        return _fail(Interrupted(f"interrupted; {resume_advice}"), as_json)
    except BrokenPipeError:  # `deploy targets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            return _fail(OnmetalError(_log_defect(words)), as_json)
        return _fail(UsageError(f"{error.filename}: {error.strerror}"), as_json)
    except Exception:
        return _fail(OnmetalError(_log_defect(words)), as_json)


def _flushed(words: list[str]) -> int:
    """Run the command and flush its output here, where a reader that has closed the pipe is still
    handled."""
    try:
        return _run(words)
    finally:
        sys.stdout.flush()


def _fail(error: OnmetalError, as_json: bool) -> int:
    """Print the error on standard error. Where candidates were judged, their table goes to standard
    output, since it is a result all the same. -> the exit code."""
    document, report = error.document or {}, None
    if not isinstance(document, dict):  # candidates were judged
        document, report = _plain(document), document
    try:
        screen = terminal.of(sys.stderr)
        if terminal.rewrites(sys.stderr):
            terminal.rewrite(sys.stderr, "")
            sys.stderr.flush()
        if report and not as_json and isinstance(error, BudgetError):
            _render(report, as_json)
            sys.stdout.flush()
        warnings = map(_bounded, document.get("data", {}).get("warnings", []))
        mark = screen.paint("warning:", "yellow")
        terminal.write(sys.stderr, [f"{mark} {warning}" for warning in warnings])
        first, *rest = map(_bounded, error.lines)
        terminal.write(sys.stderr, [f"{screen.paint('deploy:', 'red')} {first}", *rest])
        sys.stderr.flush()
    except OSError:  # the reader has closed the pipe
        silence(sys.stderr)
    if as_json:
        failed = {**document, "error": {"code": error.exit_code, "message": _bounded_lines(error)}}
        try:
            terminal.write_json(sys.stdout, _encoded(failed))
            sys.stdout.flush()
        except OSError:
            silence(sys.stdout)
    return error.exit_code


def _plain(report: Any) -> dict[str, Any]:
    """The document of a report."""
    from onmetal.records import plain

    document: dict[str, Any] = plain(report.document)
    return document


LINE_LETTERS = 2000
"""The longest line of an error that is printed: untrusted texts in it may have any length."""


def _bounded(line: str) -> str:
    """The line, shortened in the middle: its beginning says what happened, its end what to do."""
    if len(line) <= LINE_LETTERS:
        return line
    half = LINE_LETTERS // 2 - 20
    return f"{line[:half]} [… {len(line) - 2 * half} letters …] {line[-half:]}"


def _bounded_lines(error: OnmetalError) -> str:
    return "\n".join(map(_bounded, error.lines))


def _encoded(document: dict[str, Any]) -> bytes:
    """The JSON of a document. A document of only an error is encoded without heavy imports."""
    if set(document) != {"error"}:
        from onmetal.reports.json import encode

        return encode(document)
    error = document["error"]
    message = error["message"].encode("utf-8", "backslashreplace").decode()
    text = json.dumps({"error": {**error, "message": message}}, ensure_ascii=False)
    return terminal.spelled(text.encode()) + b"\n"


def _log_defect(words: Sequence[str]) -> str:
    """Write the traceback to a log file that the user can send to the authors. -> one line about
    it."""
    kind, value, _ = sys.exc_info()
    summary = f"a defect of onmetal: {kind.__name__ if kind else ''}"
    with contextlib.suppress(Exception):
        summary = " ".join(f"{summary}: {value}".split())[:300]
    try:
        from onmetal.files.cache import home

        folder = home() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime("defect-%Y%m%d-%H%M%S.log")
        path.write_text(
            f"onmetal {__version__}, Python {sys.version}\ndeploy {words}\n"
            + traceback.format_exc(),
            "utf-8",
            "backslashreplace",
        )
    except Exception:  # whatever it is, the line about the defect matters more
        return summary
    return f"{summary}; please report it with {path}"


if __name__ == "__main__":
    sys.exit(main())
