"""Looking through a partition's key index for damage: every leaf, and whether it holds all records that it should.

The index is derived, and a reader believes it only as far as it proves itself. What it cannot see is a leaf that was
put back as it was before: that one verifies, and counts fewer records than there are. So these are counted.
"""

from __future__ import annotations

from collections.abc import Callable

from pystreamlog.errors import StreamLogError
from pystreamlog.storage.control import Published
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index_file import KeyIndexFile
from pystreamlog.storage.key_index_layout import KEYS_NAME
from pystreamlog.storage.key_index_leaf import BadKeyIndexError
from pystreamlog.storage.key_index_state import KeyPlace

__all__ = ["survey_keys"]

_LOOKS = 5


def survey_keys(
    folder: Folder, end: Published | None, state: Callable[[], Published | None], found: Findings
) -> tuple[int, int] | None:
    """Look through a key index: the offset below which it holds, and how many records it counts.

    Args:
        folder: The partition.
        end: Where it ends; None when that is not known.
        state: Its published slot as it is now.
        found: Gets what is found.

    Returns:
        None without an index, with one that is wrong, and while it is written all the time.
    """
    why = ""
    for _ in range(_LOOKS):
        before, why = state(), ""
        try:
            survey = _survey(folder)
        except FileNotFoundError:
            return None
        except (BadKeyIndexError, StreamLogError) as error:
            survey, why = None, f"does not verify ({error})"
        if survey is not None and end is not None:
            place, records = survey
            another = place.end_offset == end.end_offset and place.last_checksum != end.last_checksum
            if place.epoch == end.epoch and place.end_offset <= end.end_offset and not (another and place.end_position):
                return place.end_offset, records
            why = "belongs to another history of the log"
        if state() == before:
            break
    else:
        return None
    if why:
        message = f"the key index {why}: it is not believed, and repair drops it"
        found.note(f"{folder.path}/{KEYS_NAME}", "derived", message)
    return None


def _survey(folder: Folder) -> tuple[KeyPlace | Published, int] | None:
    index = KeyIndexFile.open(folder, write=False)
    try:
        return index.survey()
    finally:
        index.close()
