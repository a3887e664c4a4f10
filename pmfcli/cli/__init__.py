"""The command line: parse, call, render. Everything a person can do wrong ends here as one line and an exit code."""

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from pmfcli import __version__
from pmfcli.cli import (
    blend,
    cache,
    compare,
    demo,
    download,
    evaluate,
    forget,
    info,
    predict,
    recommend,
    similar,
    train,
    tune,
    update,
)
from pmfcli.config import settings_of
from pmfcli.console import say
from pmfcli.errors import PmfError, UsageError
from pmfcli.memory import ran_out
from pmfcli.text import clean, short

app = typer.Typer(
    name="pmf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Probabilistic matrix factorization: how would a user rate a movie, what should they watch next, what is similar. "
    "A flag overrides PMF_* in the environment, and that overrides --config FILE or ./pmf.toml.",
    epilog="Start with: pmf demo",
)
for module in (download, train, predict, recommend, similar, evaluate, compare, blend, update, forget, tune, info, cache, demo):
    name = module.__name__.rpartition(".")[2]
    app.command(name, epilog=f"Example: {module.EXAMPLE}")(getattr(module, name))
_NAMES = [command.name for command in app.registered_commands]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pmf {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. May also follow the command.")
    ] = False,
) -> None:
    try:
        os.getcwd()  # which torch, among others, cannot do without
    except FileNotFoundError:
        raise UsageError("the current folder no longer exists; change to one that does") from None
    settings_of(os.environ)


_UNHEARD = 2.0  # seconds, after which a signal to end that Python dropped is raised again


class _Terminated(BaseException):
    """SIGTERM or SIGHUP, whose number this has, came: what is open is closed, what is half done removed."""


def _terminate(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    if hasattr(signal, "setitimer"):  # Python drops what is raised while it works for itself, such as on its import locks
        signal.signal(signal.SIGALRM, lambda *_: _terminate(number, None))
        signal.setitimer(signal.ITIMER_REAL, _UNHEARD)
    raise _Terminated(number)


def main() -> NoReturn:
    """Run ``pmf`` and exit."""
    # Threads that spin while they wait make training 20 times slower on a busy machine; not to spin at all makes it 1.4 times
    # slower on an idle one. A short spin costs neither. (GNU OpenMP, as in torch's Linux builds; read when torch is imported.)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")  # a closed one takes nothing
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # pipes are UTF-8 in every locale
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors=errors)
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # under torchrun it may be waiting for others that are gone: it ends at once
        signal.signal(signal.SIGTERM, _terminate)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup makes it
            signal.signal(signal.SIGHUP, _terminate)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code = run([argument for argument in arguments if argument != "--debug"], debug)
    if code:  # Arrow's threads may still be reading a file that was refused, and abort when they find no interpreter
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # else Python looks through all of torch for garbage before it ends, which takes a third of a second
    sys.exit(0)


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command line in this process; the exit code."""
    try:
        code = app(arguments, prog_name="pmf", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit) as end:  # typer turns the one into the other
        if isinstance(end, SystemExit) and not end.code:  # what completes commands ends so
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is said to the closed pipe
        return 141
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug)
    except _Terminated as end:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        return _fail("terminated", 128 + end.args[0], debug)
    except PmfError as error:
        return _fail(str(error), error.exit_code, debug)
    except (MemoryError, RuntimeError, OSError) as error:
        if ran_out(error):
            return _fail("not enough memory for this; try a smaller --latent or fewer ratings", 1, debug)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(f"{short(str(error.filename))}: {error.strerror}; give a shorter one", 2, debug)
        if isinstance(error, PermissionError):  # such as of a folder that is on the way to a file
            return _fail(f"{short(str(error.filename))}: {error.strerror}; give one that you can read and write", 2, debug)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _fail(f"{error.filename or 'standard output'}: {error.strerror}", 1, debug)
        return _unexpected(error, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command-line parser
            named = next((f"pmf {name}" for name in arguments[:1] if name in _NAMES), "pmf")
            command = getattr(getattr(error, "ctx", None), "command_path", named)  # a flag without its value has no context
            message = " ".join(error.format_message().replace("Value error, ", "").split())
            if not message:  # no arguments: the help was asked for
                return 2
            return _fail(f"{message.rstrip('.')}; see {command} --help", 2, debug)
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    text = " ".join(str(error).split())
    return _fail(f"unexpected {type(error).__name__}: {text[:200]}; --debug shows where", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(f"pmf: {clean(message)}")
    return code
