"""`pystreamlog groups`: list, describe and delete consumer groups, their members and offsets."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pystreamlog.backend.admin import Admin
from pystreamlog.cli import reset_offsets
from pystreamlog.cli.group_description import (
    NUMBERS,
    committed_offsets,
    member_rows,
    offset_rows,
    state_row,
    table,
)
from pystreamlog.cli.options import (
    AllGroupsOption,
    ExecuteOption,
    GroupOption,
    JsonOption,
    LogOption,
    complete_groups,
    complete_topics,
)
from pystreamlog.cli.output import escaped, print_json, print_line, print_table, warn
from pystreamlog.cli.running import Commands, Trials, confirm, opened
from pystreamlog.cli.selecting import chosen_groups, places_of, readable_groups
from pystreamlog.errors import CorruptLogError, UnknownGroupError

__all__ = ["app"]

app = typer.Typer(
    name="groups",
    cls=Commands,
    help="List, describe and delete consumer groups, and reset their offsets.",
    no_args_is_help=True,
)
app.command("reset-offsets")(reset_offsets.reset_offsets)

GroupArgument = Annotated[
    list[str] | None, typer.Argument(metavar="GROUP", help="Their ids.", autocompletion=complete_groups)
]
_STATES = ("Empty", "Assigning", "Reconciling", "Stable")


@app.command("list")
def list_(
    *,
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="STATES", help="Only groups in these: empty, assigning, reconciling, stable."),
    ] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """List the consumer groups and how they stand."""
    wanted = None if state is None else [_parse_state(each.strip()) for each in state.split(",")]
    with opened(log, read_only=True) as stream_log, Trials() as trials:
        found = readable_groups(stream_log, trials)
        rows = [listing for listing in found if wanted is None or listing.state in wanted]
        if json:
            print_json([listing._asdict() for listing in rows])
        elif rows:
            print_table(("GROUP", "STATE"), rows)


def _parse_state(text: str) -> str:
    if text.capitalize() not in _STATES:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_STATES)}", param_hint="--state")
    return text.capitalize()


@app.command()
def describe(
    *,
    groups: GroupArgument = None,
    group: GroupOption = None,
    all_groups: AllGroupsOption = False,
    members: Annotated[bool, typer.Option("--members", help="Tell the members, with their processes.")] = False,
    state: Annotated[bool, typer.Option("--state", help="Tell how the groups stand.")] = False,
    offsets: Annotated[
        bool, typer.Option("--offsets", help="Tell offsets and lag per partition, which is what it does anyway.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tell more: what members own, static members' ids, offsets' metadata.")
    ] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Tell how far groups came: offsets, ends and lag per partition, and who reads it; or members, or states.

    LAG is what lies between the committed offset and the end. CLIENT-ID is the host and the process of a member.
    """
    if members + state + offsets > 1:
        raise typer.BadParameter("choose one of --members, --state and --offsets")
    view = "members" if members else "state" if state else "offsets"
    with opened(log, read_only=True) as stream_log, Trials() as trials:
        admin = stream_log.admin
        chosen = chosen_groups(stream_log, trials, groups, group, all_groups=all_groups)
        committed = committed_offsets(admin, chosen, trials) if view == "offsets" else {key: {} for key in chosen}
        rows: list[dict[str, Any]] = []
        for name, offsets_of in committed.items():
            with trials.trying(but=UnknownGroupError if all_groups else ()):
                found = admin.describe_consumer_groups(name)[name]
                if not found.members and view != "state":
                    warn(f"group {name!r} has no active members")
                if view == "offsets":
                    rows += offset_rows(admin, found, offsets_of)
                else:
                    rows += member_rows(found) if members else [state_row(found)]
        if json:
            print_json(rows)
        elif rows:
            heads, cells = table(view, rows, verbose=verbose)
            print_table(heads, cells, right=NUMBERS)


@app.command()
def delete(
    *,
    groups: GroupArgument = None,
    group: GroupOption = None,
    all_groups: AllGroupsOption = False,
    execute: ExecuteOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Delete groups without members, with all that they committed. One that fails keeps no other from it."""
    with opened(log) as stream_log, Trials() as trials:
        admin = stream_log.admin
        there: list[str] = []
        for name in chosen_groups(stream_log, trials, groups, group, all_groups=all_groups):
            with trials.trying():
                there += _is_there(admin, name)
        if there:
            confirm(f"group {', '.join(there)} with all committed offsets will be deleted", execute=execute)
        deleted: list[str] = []
        for name in there:
            with trials.trying():
                admin.delete_consumer_groups(name)
                deleted.append(name)
                if not json:
                    print_line(f"deleted group {escaped(name)}")
        if json:
            print_json(deleted)


def _is_there(admin: Admin, name: str) -> list[str]:
    """The group, if there is one; also one that is damaged, as deleting it may be the way out."""
    try:
        return list(admin.describe_consumer_groups(name))
    except ExceptionGroup as group:
        if group.subgroup(CorruptLogError) is None:
            raise
        return [name]


@app.command("delete-offsets")
def delete_offsets(
    *,
    group: Annotated[str, typer.Option("--group", metavar="GROUP", help="The group.", autocompletion=complete_groups)],
    topic: Annotated[
        list[str],
        typer.Option(
            "--topic",
            metavar="TOPIC[:LIST]",
            help="A topic, or some of its partitions, as orders:0,2; may be repeated.",
            autocompletion=complete_topics,
        ),
    ],
    execute: ExecuteOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Delete what a group committed in topics to which none of its members subscribes."""
    with opened(log) as stream_log:
        admin = stream_log.admin
        admin.describe_consumer_groups(group)
        places = sorted(admin.list_consumer_group_offsets(group, partitions=places_of(admin, topic))[group])
        if places:
            named = ", ".join(f"{place.topic}:{place.partition}" for place in places)
            confirm(f"offsets that group {group} committed will be deleted ({named})", execute=execute)
        rows: list[tuple[str, str, int]] = []
        with Trials() as trials:
            for place in places:
                with trials.trying():
                    admin.delete_consumer_group_offsets(group, [place])
                    rows.append((group, *place))
            if json:
                keys = ("group_id", "topic", "partition")
                print_json([dict(zip(keys, row, strict=True)) for row in rows])
            elif rows:
                print_table(("GROUP", "TOPIC", "PARTITION"), rows, right=("PARTITION",))


@app.command("remove-members")
def remove_members(
    *,
    group: Annotated[str, typer.Option("--group", metavar="GROUP", help="The group.", autocompletion=complete_groups)],
    group_instance_id: Annotated[
        list[str] | None,
        typer.Option(
            "--group-instance-id", metavar="ID", help="A static member; may be repeated. All members without."
        ),
    ] = None,
    execute: ExecuteOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Take members out of a group; one whose process lives joins again. End it first to be rid of it."""
    with opened(log) as stream_log:
        admin = stream_log.admin
        admin.describe_consumer_groups(group)
        whom = "all members" if group_instance_id is None else f"members {', '.join(group_instance_id)}"
        confirm(f"{whom} of group {group} will be taken out of it", execute=execute)
        before = admin.describe_consumer_groups(group)[group].members
        admin.remove_members_from_consumer_group(group, group_instance_id)
        gone = [
            each.member_id
            for each in before
            if group_instance_id is None or each.group_instance_id in group_instance_id
        ]
        if json:
            print_json(gone)
        else:
            for member_id in gone:
                print_line(f"removed {escaped(member_id)}")
