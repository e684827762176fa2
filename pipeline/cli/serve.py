"""`classify serve`: the local endpoint in the foreground, with fault options for rehearsals."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

import click

# Only what --help needs is imported here: aiohttp and the models wait until they are served.
from pipeline.endpoint.faults import ColdStart, FaultOptions, Hint
from pipeline.endpoint.models import DEFAULT_MODEL, KNOWN_MODELS, load_model
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

_Function: TypeAlias = "Callable[..., Any]"

_TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the name of a variable

_EPILOG = """\
\b
Examples:
  classify serve --model sentiment --model ./my-model --port 0
  classify serve --cold-start 20 --rate-limit 50 --share-500 0.02 --seed 7

\b
Then, in another terminal:
  curl http://127.0.0.1:8080 -d '{"inputs": ["I love it"], "parameters": {"top_k": 1}}'
  classify try "I love it" --endpoint http://127.0.0.1:8080

A model answers at /models/NAME, a saved one by the name of its directory, the first one also at /.
GET /stats counts requests, texts, statuses and faults. Once it listens, it prints one line of JSON
with its address.
"""


class _Refusal(click.ClickException):
    exit_code = SettingsError.exit_code


def _fault_options(command: _Function) -> _Function:
    """Add a flag for each field of FaultOptions."""
    for name, hint in reversed(get_type_hints(FaultOptions, include_extras=True).items()):
        kind, metavar, meaning = get_args(hint)
        default = getattr(FaultOptions, name)
        is_choice = isinstance(default, StrEnum)
        command = click.option(
            "--" + name.removesuffix("_s").replace("_", "-"),
            name,
            metavar=metavar,
            type=click.Choice([each.value for each in kind])
            if is_choice
            else next(iter(get_args(kind)), kind),
            default=default.value if is_choice else default,
            # Nothing goes wrong where the default is 0.0.
            show_default=not isinstance(default, float),
            help=meaning,
        )(command)
    return command


@click.command(epilog=_EPILOG)
@click.option(
    "--model",
    "models",
    metavar="NAME|PATH",
    multiple=True,
    default=(DEFAULT_MODEL,),
    show_default=True,
    help=f"Model to serve: {', '.join(KNOWN_MODELS)} or the directory of a saved transformers "
    "model. Repeatable; the first is the default.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--require-token",
    is_flag=True,
    help=f"Answer 401 to requests without the bearer token in {_TOKEN_VARIABLE}.",
)
@_fault_options
@click.option(
    "--until-stdin-closes",
    is_flag=True,
    help="End when standard input closes, so that it cannot outlive its parent.",
)
def serve(
    *,
    models: tuple[str, ...],
    host: str,
    port: int,
    require_token: bool,
    until_stdin_closes: bool,
    cold_start_from: str,
    rate_hint: str,
    **faults: Any,
) -> None:
    """Serve local models as the Hugging Face Inference API would, and misbehave on demand.

    For trying a job and rehearsing cold starts, rate limits and failures. Nothing leaves this
    machine. Ctrl-C ends it.
    """
    try:
        options = FaultOptions(
            cold_start_from=ColdStart(cold_start_from), rate_hint=Hint(rate_hint), **faults
        )
        token = _required_token() if require_token else None

        from pipeline.endpoint.server import Endpoint, serve_forever

        loaded = [load_model(name) for name in dict.fromkeys(models)]
        serve_forever(
            lambda: Endpoint(loaded, faults=options, token=token),
            host=host,
            port=port,
            on_listening=lambda url: _announce(url, [model.name for model in loaded]),
            until_stdin_closes=until_stdin_closes,
        )
    except SettingsError as error:
        raise _Refusal(str(error)) from error


def _announce(url: str, models: list[str]) -> None:
    click.echo(json.dumps({"url": url, "pid": os.getpid(), "models": models}))
    click.echo(f"Serving {' and '.join(models)} at {url}; Ctrl-C ends it.", err=True)


def _required_token() -> str:
    token = os.environ.get(_TOKEN_VARIABLE, "")
    if not token:
        raise SettingsError(
            f"--require-token needs the token in the environment variable {_TOKEN_VARIABLE}.",
            f"Run {_TOKEN_VARIABLE}=anything classify serve --require-token.",
        )
    return token
