"""What users see of a consumer group: committed offsets, and who a member is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GroupMetadata", "OffsetAndMetadata"]


class OffsetAndMetadata(NamedTuple):
    """A committed offset: that of the next record to read, with a text that the application keeps beside it.

    Attributes:
        offset: The offset.
        metadata: At most 4,096 bytes of UTF-8.
    """

    offset: int
    metadata: str = ""


class GroupMetadata(NamedTuple):
    """Who a consumer is in its group, for `send_offsets_to_transaction`.

    Attributes:
        group_id: The group.
        generation_id: The group's generation when the consumer joined; -1 while it is no member.
        member_id: The consumer's id in it; empty while it is no member.
        group_instance_id: The id of a static member.
    """

    group_id: str
    generation_id: int = -1
    member_id: str = ""
    group_instance_id: str | None = None
