"""What a member of a group holds: reading exactly what it owns, and having the callbacks told of each change once."""

from __future__ import annotations

from collections.abc import Iterable

from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.coordination.group_state import GroupState, PartitionKey
from pystreamlog.coordination.topics import Topics
from pystreamlog.embedded.assignment import Assignment
from pystreamlog.embedded.commits import Commits, Offsets
from pystreamlog.embedded.interest import Interest
from pystreamlog.errors import UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["Holdings"]


class Holdings:
    """The partitions of one member. One user at a time.

    Args:
        topics: The log's topics.
        interest: Says how a topic is deserialised.
        assignment: What is read; knows what the callbacks are to be told.
        commits: The consumer's commits.
    """

    __slots__ = ("_assignment", "_commits", "_interest", "_skipped", "_told", "_topics")

    def __init__(self, topics: Topics, interest: Interest, assignment: Assignment, commits: Commits) -> None:
        self._topics = topics
        self._interest = interest
        self._assignment = assignment
        self._commits = commits
        self._told: set[PartitionKey] = set()  # that they go
        self._skipped: set[PartitionKey] = set()

    def __len__(self) -> int:
        return len(self._assignment.positions)

    def _keys(self) -> dict[PartitionKey, TopicPartition]:
        return {(at.topic_id, tp.partition): tp for tp, at in self._assignment.positions.items()}

    def retry(self) -> None:
        """Partitions of deleted topics were skipped by `follow`: the group has changed since."""
        self._skipped.clear()

    def follow(self, owned: set[PartitionKey], state: GroupState) -> bool:
        """Read what is owned and nothing else; False when a topic of it was deleted, which was skipped."""
        assignment = self._assignment
        held = self._keys()
        for key in held.keys() - owned:
            assignment.drop(held[key], told=True)
            self._commits.forget(held[key])
        self._told &= owned
        whole = True
        for topic_id, number in sorted(owned - held.keys() - self._skipped):
            topic = state.topics.get(topic_id)
            try:
                if topic is None:
                    raise UnknownTopicError("deleted")
                found = self._topics.find(topic.name)
                if found.id != topic_id or number >= found.partitions:  # what is remembered may be a second old
                    found = self._topics.find_anew(topic.name)
                if found.id != topic_id:
                    raise UnknownTopicError("deleted")
                assignment.add(TopicPartition(found.name, number), found, self._interest.serdes_of(found.name))
            except UnknownTopicError:
                self._skipped.add((topic_id, number))
                whole = False
        return whole

    def give_up(self, surplus: set[PartitionKey]) -> bool:
        """Have the callbacks told that these go, those that were not; False when all were."""
        untold = surplus - self._told
        self._told |= untold
        added, removed = self._assignment.added, self._assignment.removed
        for key, tp in self._keys().items():
            if key in untold:
                self._assignment.positions[tp].given_up = True
                if tp in added:
                    del added[tp]  # nobody was told that it came
                else:
                    removed[tp] = None
        return bool(untold)

    def give_up_all(self) -> None:
        """The same with all that is held."""
        self.give_up(set(self._keys()))

    def regain(self, kept: set[PartitionKey]) -> None:
        """What the callbacks were told goes, and then did not, comes back."""
        back = self._told & kept
        self._told -= back
        for key, tp in self._keys().items() if back else ():
            if key in back:
                self._assignment.positions[tp].given_up = False
                self._assignment.added[tp] = None

    def moved(self, surplus: Iterable[PartitionKey]) -> Offsets:
        """What the application moved past in these partitions and was not committed."""
        held, moved = self._keys(), self._commits.moved
        tps = {held[key] for key in surplus if key in held}
        return {tp: OffsetAndMetadata(offset) for tp, offset in moved.items() if tp in tps}

    def lose(self) -> None:
        """Read nothing more, and have the callbacks told that all was lost, but for what they were told goes."""
        assignment = self._assignment
        for key, tp in self._keys().items():
            if tp in assignment.removed:
                del assignment.removed[tp]  # nobody was told yet
                assignment.lost[tp] = None
            elif key not in self._told and tp not in assignment.added:
                assignment.lost[tp] = None
            assignment.drop(tp, told=True)
            self._commits.forget(tp)
        self.forget()

    def forget(self) -> None:
        """Nothing is held any more."""
        self._told.clear()
        self._skipped.clear()
