"""`pystreamlog transactions`: the transactional ids that were used, and how they stand."""

from __future__ import annotations

from typing import Annotated

import typer

from pystreamlog.backend.administration import TransactionDescription
from pystreamlog.cli.options import JsonOption, LogOption
from pystreamlog.cli.output import print_json, print_table
from pystreamlog.cli.running import Commands, Trials, opened

__all__ = ["app"]

app = typer.Typer(name="transactions", cls=Commands, help="Look at transactional ids.", no_args_is_help=True)


@app.command("list")
def list_(*, log: LogOption = None, json: JsonOption = False) -> None:
    """List the transactional ids that were ever used, and whether somebody commits with one just now."""
    with opened(log, read_only=True) as stream_log:
        found = stream_log.admin.list_transactions()
        if json:
            print_json([listing._asdict() for listing in found])
        elif found:
            print_table(("TRANSACTIONAL-ID", "STATE"), found)


@app.command()
def describe(
    *,
    transactional_ids: Annotated[list[str], typer.Argument(metavar="TRANSACTIONAL-ID", help="The ids.")],
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Tell how transactional ids stand: the newest producer's epoch, and who commits just now."""
    with opened(log, read_only=True) as stream_log, Trials() as trials:
        found: list[TransactionDescription] = []
        for name in dict.fromkeys(transactional_ids):
            with trials.trying():
                found += stream_log.admin.describe_transactions(name).values()
        if json:
            print_json([description._asdict() for description in found])
        elif found:
            rows = [(each.transactional_id, each.state, each.producer_epoch, each.holder or "-") for each in found]
            print_table(("TRANSACTIONAL-ID", "STATE", "EPOCH", "HOLDER"), rows, right=("EPOCH",))
