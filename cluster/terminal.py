"""What the subcommands of `pliant` share: the console, the configuration argument, errors as one line, pairs."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

from deployments.config import ConfigError

# Piped output has no width of its own, and tables need some.
console = Console(width=None if sys.stdout.isatty() else 150)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CONFIG = click.argument("config", type=FILE)
PNG = click.Path(dir_okay=False, path_type=Path)


def known_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show errors that a person can act on as one line, without a traceback; Ctrl-C ends with 130."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            console.print("[yellow]interrupted; what this command started has been stopped")
            sys.exit(130)
        except httpx.HTTPError as error:
            raise click.ClickException(f"the cluster does not answer: {error}; is it up? see `pliant up`") from error
        except (ValueError, RuntimeError, OSError) as error:  # the error trees of all storeys
            if type(error) in (ValueError, RuntimeError, KeyError):  # none of ours: show where it comes from
                raise
            raise click.ClickException(str(error)) from error

    return run


def pairs(values: Sequence[str], known: list[str], option: str) -> dict[str, float]:
    """`app=rps` pairs, checked; ConfigError says what was wrong."""
    rates: dict[str, float] = {}
    for value in values:
        name, _, number = value.partition("=")
        if name not in known:
            raise ConfigError(f"{option} {value}: unknown application '{name}'; known are {', '.join(known)}")
        try:
            rates[name] = float(number)
        except ValueError:
            raise ConfigError(f"{option} {value}: write it as {name}=50, in requests/s") from None
        if not 0 <= rates[name] < float("inf"):
            raise ConfigError(f"{option} {value}: the rate must be 0 or more, and finite")
    if not any(rates.values()):
        raise ConfigError(
            f"{option} is missing or 0: write {option} {known[0]}=50, once for each application with load"
        )
    return rates
