"""The command line: parse, load, call one function. Heavy imports happen inside commands."""

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from uncurtail import __version__, deploycli, energycli, fleetcli, flowercli, operatorcli, sitecli

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    add_completion=False,
    help="Train language models on renewable power that would otherwise be thrown away.",
    epilog="Start with: uncurtail run experiments/demo.toml",
)
app.add_typer(sitecli.app, name="site")
data_app = typer.Typer(no_args_is_help=True, help="From text to token shards.")
app.add_typer(data_app, name="data")
tokenizer_app = typer.Typer(no_args_is_help=True, help="From text to a vocabulary.")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(deploycli.app, name="deploy")
app.add_typer(energycli.app, name="energy")
app.add_typer(fleetcli.app, name="fleet")
app.add_typer(flowercli.app, name="flower")
app.add_typer(operatorcli.app, name="operator")

RunFolderPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo-20260601-120000.")
]
ModelPath = Annotated[
    Path,
    typer.Argument(metavar="RUN|CHECKPOINT", help="A run, a baseline, or a file of weights."),
]
CheckpointRun = Annotated[
    Path | None, typer.Option("--run", help="The run a CHECKPOINT outside of it is of.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Run the command line; what the user got wrong is one line and exit 2, no traceback."""
    from uncurtail.errors import UserError

    try:
        app()
    except UserError as error:
        _fail(str(error))


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set clock.speed=60."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this experiment.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    service: Annotated[
        bool,
        typer.Option(
            "--service", help="Go on with the newest run or begin one; stay when it has ended."
        ),
    ] = False,
) -> None:
    """Train across the experiment's sites, each only while its region is curtailed.

    Everything that is needed is started here and is gone afterwards. Ctrl-C drains and says how
    to resume. With --service it may be started again at will, as Kubernetes does.
    """
    from uncurtail.running import run_experiment
    from uncurtail.service import serve

    if service and resume:
        raise typer.BadParameter("--service resumes by itself: leave out --resume")
    if service:
        raise typer.Exit(serve(experiment, set_ or [], runs))
    raise typer.Exit(run_experiment(experiment, set_ or [], runs, resume=resume))


@app.command()
def plan(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one key: --set fleet.max_sites=2."
        ),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these rows, in this order.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KEY=A,B,C", help="Plan once for each value of a key."),
    ] = None,
    plans: Annotated[Path, typer.Option(help="Where plan folders go.")] = Path("plans"),
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, in seconds and without a GPU: policies side by side.

    Every policy does the same work in virtual time: its hours, its CO2, its starts, how much of
    its energy is drawn in windows, and how far it is from the best that anyone could do in that
    time. The work is plan.train_site_h, or what the experiment's own policy gets done in
    run.duration_s. Rows of your own go into the experiment, with a policy and a forecast each:

    [plan.policies.patient]
    policy = { kind = "deadline", deadline_s = 57600 }
    forecast = "noisy"

    Kinds of policy: always, threshold, lookahead, deadline, budget. Forecasts: none, persistence,
    climatology, noisy, perfect. Figures go to PLANS/NAME-TIME/; --json prints and writes nothing.
    """
    from rich.console import Console

    from uncurtail.planning import Request
    from uncurtail.planning import plan as plan_experiment

    request = Request(experiment, set_ or [], sweep, policies, plans)
    said = plan_experiment(request, Console(), as_json=as_json)
    if said is not None:
        typer.echo(said)


@app.command()
def baseline(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set seed=3."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train so many steps instead of the token budget.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many minutes; --resume goes on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; baselines/NAME if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
) -> None:
    """Train the experiment's model on one always-on site, for comparison.

    The same model, data order and loop as `run`, without Flower and Redis. On several GPUs or
    processes: torchrun --nproc-per-node N -m uncurtail baseline EXPERIMENT. Ctrl-C stops at the
    next step, saves, and says how to resume.
    """
    from uncurtail.baseline import Limit, run_baseline

    limit = Limit(steps, minutes)
    raise typer.Exit(run_baseline(experiment, set_ or [], out, limit, resume=resume))


@app.command()
def report(folder: RunFolderPath, as_json: AsJson = False) -> None:
    """Rebuild summary.json, the figures and report.html from a run folder."""
    from uncurtail.running import report_run

    typer.echo(report_run(folder, as_json=as_json))


@app.command()
def verify(folder: RunFolderPath, as_json: AsJson = False) -> None:
    """Check a run folder against the invariants; exit 1 names what is broken."""
    from uncurtail.running import verify_run

    passed, text = verify_run(folder, as_json=as_json)
    typer.echo(text)
    raise typer.Exit(0 if passed else 1)


@app.command("eval")
def evaluate(  # noqa: PLR0913 - each is an option of the command
    what: ModelPath,
    version: Annotated[
        int | None, typer.Option(help="Which model version of the run; the newest by default.")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help='Multiple-choice tasks: NAME.jsonl of {"query", ...}.'),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Prepared data; the run's by default.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Held-out sequences; the run's number by default.")
    ] = None,
    run: CheckpointRun = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="What a file of no run was trained at, in tokens."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: validation loss, bits per byte, and multiple-choice tasks."""
    from uncurtail import evaluating

    request = evaluating.Request(what, version, tasks, data, sequences, run, sequence_length)
    typer.echo(evaluating.evaluate(request, as_json=as_json))


@app.command()
def track(
    folder: RunFolderPath,
    kind: Annotated[Literal["wandb", "tensorboard"], typer.Argument()],
) -> None:
    """Log a run's metrics to W&B or TensorBoard; `tracking.*` does it while a run goes on.

    What was logged before is not logged again.
    """
    from uncurtail.tracking import track

    track(folder, kind)


@app.command()
def export(
    source: ModelPath,
    format_: Annotated[
        Literal["hf", "nanochat"],
        typer.Option("--format", help="hf opens in transformers, nanochat in nanochat."),
    ] = "hf",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder; RUN/export/FORMAT-STEP if not given."),
    ] = None,
    run: CheckpointRun = None,
) -> None:
    """Hand a model on, to transformers or to nanochat; neither is needed here.

    hf: a folder for AutoModelForCausalLM and AutoTokenizer, with equal logits and tokens.

    nanochat: a base directory for nanochat of October 2025. What nanochat reads as pickles is
    written so: the weights (torch.save) and the tokenizer (a tiktoken.Encoding). Nothing else
    that uncurtail writes is a pickle, and it reads none.
    """
    from uncurtail.exporting import export_model
    from uncurtail.modelsource import Source

    typer.echo(export_model(Source(source, run), format_, out))


@app.command()
def sample(
    source: ModelPath,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="At most so many new tokens.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most likely token each time.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds, equal texts.")] = 0,
    run: CheckpointRun = None,
) -> None:
    """Print text that a model writes."""
    from uncurtail.exporting import sample_text
    from uncurtail.modelsource import Source

    request = Source(source, run)
    typer.echo(sample_text(request, prompt, tokens, temperature=temperature, seed=seed))


@app.command()
def doctor(
    as_json: AsJson = False,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask energy sources and clouds what we may use.")
    ] = False,
) -> None:
    """Say what is installed, reachable and misconfigured, each with its remedy."""
    from uncurtail.doctor import examine

    healthy, text = examine(as_json=as_json, online=online)
    typer.echo(text)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@data_app.command("prepare")
def data_prepare(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set data.shards=8."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to; a folder of the user's cache if not given.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Prepare nothing; compare what is there by its hashes.")
    ] = False,
) -> None:
    """Download and tokenize an experiment's text.

    After an interruption, run it again: it goes on where it stopped.
    """
    from rich.console import Console

    from uncurtail import datacommands

    command = datacommands.check_command if check else datacommands.prepare_command
    typer.echo(command(experiment, set_ or [], folder, Console(stderr=True)))


@tokenizer_app.command("train")
def tokenizer_train(
    experiment: Annotated[
        Path | None, typer.Argument(help="The experiment whose text to learn from.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set data.shards=8."),
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Text to learn from instead.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="How many tokens; an experiment says it in model.vocab_size.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
) -> None:
    """Learn a byte-pair vocabulary from an experiment's text, or from files."""
    from rich.console import Console

    from uncurtail import datacommands
    from uncurtail.errors import UserError

    console = Console(stderr=True)
    if experiment is not None and not files and vocab_size is None:
        typer.echo(datacommands.tokenizer_command(experiment, set_ or [], out, console))
    elif experiment is None and files and vocab_size and out is not None and not set_:
        typer.echo(datacommands.tokenizer_of_files_command(files, vocab_size, out, console))
    else:
        raise UserError("name either an EXPERIMENT, or --files GLOB --vocab-size N --out FILE")


@app.command(hidden=True)
def gate(folder: RunFolderPath) -> None:
    """Be the gate of a run: `uncurtail run` starts it where gate.address is set."""
    from uncurtail.gating import serve_gate

    serve_gate(folder)


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"uncurtail: {line}", file=sys.stderr)
    sys.exit(2)
