"""Measure the defaults against `auto` on a model that is served on a GPU.

A random model of a realistic size is saved, without the hub, and served by hf_server.py: once as
Hugging Face's toolkit does, which works through a list unless `parameters.batch_size` is sent, and
once with each list as one padded batch. What is measured, and how, is that of servers.py.

    python gpu.py --baseline CHECKOUT
    python gpu.py --device cpu --layers 2 --hidden 64 --heads 2 --quick   # does it work at all?

`--python` names an interpreter with torch and transformers, where this one has none. It writes its
own parts of RESULTS.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from endpoints import ON_CPU, Endpoint
from measuring import HERE, write_results
from runs import Code, end_on_sigterm
from servers import BOTH, QUICK, Bench, Pace, Server, estimate

PACE = Pace(sizes=(32, 128, 512), concurrencies=(4, 16))


def serve(options: argparse.Namespace, model: Path, *flags: str) -> Endpoint:
    """Return a server of the saved model."""
    return Endpoint(
        [
            options.python,
            str(HERE / "hf_server.py"),
            str(model),
            "--device",
            options.device,
            *flags,
        ],
        by_token=True,
        environment=ON_CPU if options.device == "cpu" else {"HF_HUB_OFFLINE": "1"},
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", default="6")
    parser.add_argument("--hidden", default="768")
    parser.add_argument("--heads", default="12")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--baseline", type=Path, help="a checkout whose defaults are measured")
    parser.add_argument("--auto", default="--batch-size auto", help="the settings of `auto`")
    parser.add_argument("--most", type=int, default=10_000, help="texts/s that no model here does")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    return parser.parse_args()


def main() -> None:
    end_on_sigterm()
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="classify-gpu-") as directory:
        model = Path(directory, "model")
        subprocess.run(
            [options.python, HERE / "random_model.py", model, "--layers", options.layers,
             "--hidden", options.hidden, "--heads", options.heads], check=True,
        )  # fmt: skip
        size = f"{options.layers} layers of {options.hidden}, on {options.device}"
        servers = [
            Server(
                f"{options.device}-{name}", f"transformers, {what}; {size}",
                lambda _options, _directory, flags=flags: serve(options, model, *flags),
                options.most, orders=BOTH, known_answers=False,
            )
            for name, what, flags in (
                ("list", "a list is worked through unless batch_size is sent", ()),
                ("padded", "a list is one padded batch", ("--padded",)),
            )
        ]  # fmt: skip
        bench = Bench(
            options, QUICK if options.quick else PACE, Path(directory),
            Code("this checkout", HERE.parent),
            options.baseline and Code("baseline", options.baseline),
        )  # fmt: skip
        print(f"about {estimate(bench, servers) / 60:.0f} min, and the start of two servers")
        for server in servers:
            lines = bench.measure(server)
            if not options.quick:
                write_results(f"gpu.py {server.name}", "\n".join(lines))


if __name__ == "__main__":
    main()
