"""`classify serve`: the local endpoint in the foreground, with fault options for rehearsals."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TypeAlias

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
  classify serve
  classify serve --model sentiment --model language --port 0
  classify serve --model ./my-model
  classify serve --cold-start 20 --rate-limit 50 --rate-hint ratelimit
  classify serve --share-500 0.02 --share-reset 0.01 --seed 7

\b
Then, in another terminal:
  curl http://127.0.0.1:8080 -d '{"inputs": ["I love it"], "parameters": {"top_k": 1}}'
  classify run data/sample/reviews.csv --text review -o out.parquet \\
    --endpoint http://127.0.0.1:8080

A model answers at /models/NAME, the first one also at /; the name of a directory's model is the
directory's. GET /stats counts requests, texts, statuses and faults. Once it listens, one line of
JSON with the address goes to stdout.
"""


class _Refusal(click.ClickException):
    exit_code = SettingsError.exit_code


def _share(name: str, what: str) -> Callable[[_Function], _Function]:
    return click.option(
        f"--share-{name}", metavar="SHARE", type=float, default=0.0, help=f"{what} (0 to 1)."
    )


@click.command(epilog=_EPILOG)
@click.option(
    "--model",
    "models",
    metavar="NAME|PATH",
    multiple=True,
    default=(DEFAULT_MODEL,),
    show_default=True,
    help=f"A model to serve: {', '.join(KNOWN_MODELS)} or the directory of a saved transformers "
    "model. Repeatable; the first is the default.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port to listen on; 0 takes any free one.",
)
@click.option(
    "--require-token",
    is_flag=True,
    help=f"Answer 401 to requests without the bearer token that {_TOKEN_VARIABLE} holds here.",
)
@click.option(
    "--cold-start",
    "cold_start_s",
    metavar="SECONDS",
    type=float,
    default=0.0,
    help="Answer 503 with an estimated_time for so long, or hold the request where it carries "
    "x-wait-for-model: true.",
)
@click.option(
    "--cold-start-from",
    type=click.Choice([each.value for each in ColdStart]),
    default=ColdStart.FIRST_REQUEST.value,
    show_default=True,
    help="When loading begins: with each model's first request, as on the serverless API, or "
    "with the server.",
)
@click.option(
    "--rate-limit",
    metavar="N",
    type=int,
    help="Let N requests through in any one second, and answer 429 to the others.",
)
@click.option(
    "--rate-hint",
    type=click.Choice([each.value for each in Hint]),
    default=Hint.RETRY_AFTER.value,
    show_default=True,
    help="What a 429 tells: Retry-After, RateLimit and RateLimit-Policy, or nothing.",
)
@_share("500", "Share of requests answered with 500")
@_share("502", "Share of requests answered with 502 and a page of HTML")
@_share("reset", "Share of connections reset instead of an answer")
@_share("hang", "Share of requests taken and never answered")
@_share("truncated", "Share of answers that break off halfway")
@_share("wrong", "Share of wrong answers with status 200: by turns one list too few and not JSON")
@click.option(
    "--latency-ms",
    metavar="MS",
    type=float,
    default=0.0,
    help="Milliseconds added to every request.",
)
@click.option(
    "--poison",
    metavar="WORD",
    help="Answer 400 to any request with a text that contains WORD, as a model does to a text "
    "that is too long for it.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the shares: the same seed and order of requests fail in the same places.",
)
@click.option(
    "--until-stdin-closes",
    is_flag=True,
    help="End when standard input closes: with a pipe from its parent, it never outlives it.",
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

    Nothing leaves this machine. Use it to try a job before paying for one, and to rehearse what
    it does through cold starts, rate limits and failures. Ctrl-C ends it.
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
