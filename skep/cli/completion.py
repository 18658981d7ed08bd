"""The completion scripts of bash, zsh and fish."""

import click

from skep.cli import app, lazy


@click.command(
    cls=lazy.Command,
    examples=(
        "skep completion bash > /etc/bash_completion.d/skep",
        'skep completion zsh > "${fpath[1]}/_skep"',
        "skep completion fish > ~/.config/fish/completions/skep.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print a script that makes your shell complete commands, flags, and names of services and nodes."""
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    variable = f"_{app.PROGRAM.upper()}_COMPLETE"
    maker = kind(context.find_root().command, {}, app.PROGRAM, variable)
    # Not maker.source(): that runs the shell to check its version, and this may be another machine's script.
    click.echo(maker.source_template % maker.source_vars())
