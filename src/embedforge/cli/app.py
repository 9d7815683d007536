"""The application that all verbs belong to, and the options that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from embedforge import __version__
from embedforge.errors import EmbedforgeError
from embedforge.stopping import exit_code, sigterm_like_ctrl_c

Function = TypeVar("Function", bound=Callable[..., Any])
_KEPT = {
    "adapt": "The same command goes on from there.",
    "compress": "The same command goes on from there.",
    "distill": "The same command goes on from there.",
    "encode": "The same command goes on from there.",
    "index": "The same command goes on from there.",
    "evaluate": "Finished tasks are kept: the same command goes on from there.",
    "mine": "The same command goes on from there.",
    "quickstart": "The same command goes on from there.",
    "sweep": "The same command goes on from there.",
    "synthesize": "What was answered is kept: the same command goes on from there.",
    "train": "With --resume the same command goes on from the last checkpoint, if there was one.",
    **dict.fromkeys(("base", "convert", "curate", "export", "merge", "prune"), "Nothing was changed."),
}
"""What is left of a verb that was stopped."""


class _Verb(TyperCommand):
    """Refuses an option that takes one value and has two, of which the last would count in silence."""

    def make_parser(self, ctx: Any) -> Any:
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, rest, order = parse(args=args)
            if ctx.resilient_parsing or any(option.is_eager for option in order):  # completion, --help
                return values, rest, order
            for number, option in enumerate(order):
                if option in order[:number] and not option.multiple and not _is_plain_flag(option):
                    raise EmbedforgeError(f"{option.opts[0]} is given twice; only one can count")
            return values, rest, order

        parser.parse_args = parse_once
        return parser


def _is_plain_flag(option: Any) -> bool:
    """Tell whether an option has no value and no opposite, so that nothing is lost where it stands twice."""
    return bool(option.is_flag) and not option.secondary_opts


class Verbs(typer.Typer):
    """Verbs, each of which takes an option once."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Make a function a verb, as Typer does."""
        return super().command(name, cls=_Verb, **options)


class _StoppableVerbs(TyperGroup):
    """Says what is left when Ctrl-C or SIGTERM ends a verb, and exits with 130 or 143."""

    def invoke(self, ctx: Any) -> Any:
        with sigterm_like_ctrl_c():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stop:
                if kept := _KEPT.get(ctx.invoked_subcommand or ""):
                    typer.echo(f"\nStopped. {kept}", err=True)
                raise typer.Exit(exit_code(stop)) from None


app = Verbs(
    name="embedforge",
    cls=_StoppableVerbs,
    help="Turn a decoder-only language model into a text-embedding model, and prove that it got better.",
    epilog="Start with: embedforge quickstart",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; CUDA where there is one by default.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything that is drawn.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as saved by default.")]
MaxTokens = Annotated[int | None, typer.Option(min=4, help="Cut texts shorter than the model does.")]


def set_option(example: str) -> Any:
    """Return the option --set, shown with a key that the verb's own recipe has."""
    return typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_refuse_repeated,
        help=f"Change a key: --set {example}; may be repeated.",
    )


def _refuse_repeated(overrides: list[str] | None) -> list[str] | None:
    """Refuse a key that is set twice: only one of the values could count."""
    keys = [override.partition("=")[0].strip() for override in overrides or ()]
    for key in keys:
        if keys.count(key) > 1:
            raise EmbedforgeError(f"--set {key}: it is set twice; say which value you mean")
    return overrides


Overrides = Annotated[list[str] | None, set_option("stages.retrieval.steps=100")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"embedforge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def source_folder(recipe: str | None, data: Path | None) -> Path | None:
    """Relative sources start at --data, else at the recipe file, else (a shipped recipe) here."""
    if data is not None:
        return data
    return Path(recipe).parent if recipe is not None and Path(recipe).exists() else Path.cwd()


class FirstWordOptional(TyperGroup):
    """Verbs of which one need not be named: `embedforge index FOLDER` is `embedforge index files FOLDER`."""

    default: str

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the default verb before what is none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def pairs_of(option: str, form: str, items: list[str]) -> dict[str, str]:
    """Read an option's NAME=VALUE, repeated; `form` is what an error calls that."""
    pairs: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise EmbedforgeError(f"{option} takes {form}, got '{item}'")
        if pairs.get(key, value) != value:
            raise EmbedforgeError(f"{option}: '{key}' is given twice, and only one can count; remove one")
        pairs[key] = value
    return pairs
