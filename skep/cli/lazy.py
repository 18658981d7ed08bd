"""Commands that are imported when they are asked for, and Docker's way with flags on top of click's.

Must not import any command module, nor anything else that takes time: `skep --help` runs through here.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
from click import core

from skep.cli.overriding import override

TRUE_WORDS = ("true", "1", "t")
FALSE_WORDS = ("false", "0", "f")


class Entry(NamedTuple):
    """Where a command lives, and the one line that --help shows without importing it."""

    module: str
    attribute: str
    help: str
    hidden: bool = False
    optional: bool = False  # may be missing from an installation; then it is not offered


class LazyGroup(click.Group):
    """A group whose members are named by an `Entry` and imported on first use."""

    def __init__(
        self, *args: Any, entries: Mapping[str, Entry], aliases: Mapping[str, str] | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.entries = dict(entries)
        self.aliases = dict(aliases or {})

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in self.entries.items() if not entry.hidden and _present(entry)]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(self.aliases.get(cmd_name, cmd_name))
        if entry is None or not _present(entry):
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command if isinstance(command, click.Command) else None

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.entries[name].help) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = [other for other in self.list_commands(ctx) if other[:2] == name[:2]]
            guess = f" Did you mean {' or '.join(repr(other) for other in near)}?" if near else ""
            ctx.fail(f"{name!r} is not a command of '{ctx.command_path}'.{guess}")
        return super().resolve_command(ctx, args)

    @override
    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click import shell_completion

        return [
            shell_completion.CompletionItem(name, help=self.entries[name].help)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]


def _present(entry: Entry) -> bool:
    return not entry.optional or importlib.util.find_spec(entry.module) is not None


class Command(click.Command):
    """A command whose switches also take Docker's `--switch=false`, and may be followed by examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        kept, off = self._split_switches(ctx, args)
        rest = super().parse_args(ctx, kept)
        for option in off:
            name = option.name or ""
            ctx.params[name] = False
            ctx.set_parameter_source(name, core.ParameterSource.COMMANDLINE)
        return rest

    def _split_switches(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[click.Option]]:
        """The arguments with `--switch=true` written as `--switch`, and the options that were switched off."""
        options = {
            name: param for param in self.get_params(ctx) if isinstance(param, click.Option) for name in param.opts
        }
        kept: list[str] = []
        off: list[click.Option] = []
        index = 0
        while index < len(args):
            word = args[index]
            if word == "--" or (not word.startswith("-") and not ctx.allow_interspersed_args):
                break
            name, equals, value = word.partition("=")
            option = options.get(name)
            if option is not None and option.is_flag and equals:
                if value.lower() in FALSE_WORDS:
                    off.append(option)
                elif value.lower() in TRUE_WORDS:
                    kept.append(name)
                else:
                    raise click.BadParameter(f"{value!r} is neither true nor false", ctx=ctx, param=option)
            else:
                kept.append(word)
                if option is not None and not option.is_flag and not equals and index + 1 < len(args):
                    index += 1
                    kept.append(args[index])
            index += 1
        return kept + args[index:], off

    @override
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)
