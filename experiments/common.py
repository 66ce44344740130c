"""The start-up of JAX and the one-line errors that all programs share."""

import ast
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from . import processes, usage
from .commands import again, spoken

flags.adopt_module_key_flags(processes)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
flags.DEFINE_string(
    "cache",
    None,
    "Folder of compiled programs, or 'off'. By default $JAX_COMPILATION_CACHE_DIR, or ensdiff/jax in the user's cache.",
)


def start_jax(preemptible: bool = False) -> None:
    """Use every CPU core as a device (unless JAX_NUM_CPU_DEVICES is set), and cache compilations.

    If the program is one of several processes, it uses its share of the cores and connects to the others. This function
    must run before any other JAX operation.
    """
    import jax

    logging.set_verbosity(logging.WARNING)  # Orbax logs a lot
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", processes.cpu_devices())
    cache = flags.FLAGS.cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        cache = str(pathlib.Path(base) / "ensdiff" / "jax")
    if cache != "off":
        jax.config.update("jax_compilation_cache_dir", cache)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if processes.wanted():
        processes.start(preemptible)


def run(
    main: Callable[..., None],
    description: str,
    commands: Sequence[str] = (),
    *,
    optional: str | None = None,
    preemptible: bool = False,
) -> None:
    """Run a program: parse flags, start JAX, and turn user errors into one line and exit code 1.

    Exit codes: 0 success, 1 an error that the message explains, 2 a bad command line, 75 a checkpoint was written after
    a signal, 130 interrupted.

    Args:
        main: the program, called with the command if there are ``commands``.
        description: the description in --help.
        commands: the commands, of which the command line must contain one.
        optional: meaning of one optional argument without a flag; if None, no such argument is allowed.
        preemptible: with several processes, whether a SIGTERM to one makes all save at the same step
            (`ensdiff.training.preemption.on_signals`); otherwise the signal ends the process.
    """
    sys.modules["__main__"].__doc__ = description
    warnings.formatwarning = _one_line
    flags.FLAGS.set_gnu_getopt(True)  # options may follow the command

    def parse(argv: list[str]) -> list[str]:
        if usage.wanted(argv):
            print(usage.usage(argv[0], description), end="")
            raise SystemExit(0)
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _fail(2, str(error), "--help lists the options")
        except Exception as error:  # a config is a Python program, which may raise anything
            if "--debug" in argv:
                traceback.print_exc()
            _fail(2, _config_error(error), "fields of a config are set with --config.section.field=value")
        words = rest[1:]
        if commands and (not words or words[0] not in commands):
            given = f"unknown command {words[0]!r}" if words else "no command given"
            _fail(2, f"{given}: expected one of {', '.join(commands)}", "--help explains them")
        known = bool(commands) + (optional is not None)
        if len(words) > known:
            extra = words[known]
            _fail(2, f"unexpected argument {extra!r}", "options are written --name=value; --help lists them")
        return rest

    def guarded(rest: list[str]) -> None:
        try:
            start_jax(preemptible)
            main(*rest[1:])
            processes.end()
        except KeyboardInterrupt:
            _fail(130, "interrupted", "")
        except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
            if isinstance(error, RuntimeError):
                _end_if_asked(error)
            if flags.FLAGS.debug:
                traceback.print_exc()
            text = f"out of memory: {error}" if isinstance(error, MemoryError) else str(error) or repr(error)
            _fail(1, text, processes.hint(error) or _how_to_resume(text))
        except BaseException:
            traceback.print_exc()
            processes.abandon(1)
            raise

    app.run(guarded, flags_parser=parse)


def _end_if_asked(error: RuntimeError) -> None:
    """If a signal stopped training, print this and exit with the exit code for it."""
    from ensdiff.training.preemption import EXIT_CODE, Preempted

    if isinstance(error, Preempted):
        print(f"stopped: {error}", file=sys.stderr)
        if how := _how_to_resume(str(error)):
            print(how, file=sys.stderr)
        processes.end()
        raise SystemExit(EXIT_CODE)


def _how_to_resume(message: str) -> str:
    """Return the command that resumes the run, if the message says that it can be resumed and a config can say so."""
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    possible = "set resume" in message and config is not None and "resume" in config
    return f"to continue: {again('--config.resume=True')}" if possible else ""


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """Return a warning as one line of text, without the line of code that issued it."""
    from ensdiff.files.reading import printable  # as in `_fail`

    return f"warning: {printable(spoken(' '.join(str(message).split())))}\n"


def _fail(code: int, message: str, hint: str) -> None:
    from ensdiff.files.reading import printable  # names in files may hold escape sequences

    message = printable(spoken(" ".join(message.split())))
    print(f"error: {message}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    processes.abandon(code)
    raise SystemExit(code)


def _config_error(error: Exception) -> str:
    """Return the message of an error by ml_collections, without the errors that it is wrapped in."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    while text[:1] in ("'", '"') and text[-1:] == text[:1]:  # quoted once per wrapping error
        try:
            text = str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            break
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    known = (AttributeError, KeyError, TypeError, ValueError, OSError)
    kind = "" if isinstance(error, known) and lines else f"{type(error).__name__}: "
    return kind + (" ".join(lines[:2]) if lines else repr(error))
