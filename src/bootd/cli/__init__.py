"""The command line: ``bootd serve`` and what operators type.

Commands are imported when they are called: `bootd status` in a loop must not pay for the daemon's
libraries. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

if "serve" in sys.argv[1:4]:
    # A reload signal that comes while Python is still importing must not kill the daemon: the
    # default action of SIGHUP is death (SECURITY.md R9). app.py installs the real handler.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import click

from bootd.cli.common import config_option

COMMANDS: Final = {
    "serve": ("bootd.cli.serve:serve", "Run the daemon (what the systemd unit runs)."),
    "check": ("bootd.cli.check:check", "Check all configuration files; show every fault."),
    "explain": ("bootd.cli.explain:explain", "Show what a node would get, and why."),
    "status": ("bootd.cli.status:status", "Show where each node's boot is."),
    "watch": ("bootd.cli.status:watch", "Show the boots live."),
    "nodes": ("bootd.cli.nodes:nodes", "List the nodes of the running daemon."),
    "timeline": ("bootd.cli.nodes:timeline", "Show what a node's boots did, step by step."),
    "unknown": ("bootd.cli.nodes:unknown", "List machines that asked but no node names."),
    "claim": ("bootd.cli.nodes:claim", "Give an unknown machine's MAC address to a node."),
    "reload": ("bootd.cli.serve:reload", "Make the daemon read its files again, and wait."),
    "image": ("bootd.cli.image:image", "Import, list, activate and delete images."),
    "overlay": ("bootd.cli.overlay:overlay", "List overlays, and render them for a node."),
    "tls": ("bootd.cli.tls:tls", "Make the certificates and the iPXE that HTTPS needs."),
    "doctor": ("bootd.cli.doctor:doctor", "Look for what keeps machines from booting."),
    "import": ("bootd.cli.imports:imports", "Take over the files of another boot server."),
    "inventory": ("bootd.cli.inventory:inventory", "Print the nodes as an inventory for Ansible."),
    "schema": ("bootd.cli.check:schema", "Print the JSON Schema of the files, for editors."),
    "version": ("bootd.cli.serve:version", "Print the versions of command and daemon."),
}
"""Command name to where it is and its line of help."""


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All commands, in the order an operator meets them."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(__import__(module, fromlist=[name]), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but that a misspelt command is told its likely name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from bootd.config.faults import nearest

            raise click.UsageError(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from bootd import __version__

        click.echo(f"bootd {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, config: str) -> None:
    """Boots racks of stateless machines: ProxyDHCP, TFTP and HTTP in one daemon."""
    ctx.obj = config


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs the command and ends the process with 0, 1 or 2."""
    try:
        result = cli.main(args=argv, prog_name="bootd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
