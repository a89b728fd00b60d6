"""How large a form is, in bytes of what the client wrote."""

from collections.abc import Mapping

import msgspec


def num_bytes(part: object) -> int:
    """Bytes of all texts in a form or a part of one; of schemas that were not kept as text, of their JSON."""
    if isinstance(part, str):
        return len(part.encode())
    if isinstance(part, msgspec.Struct):
        return sum(num_bytes(getattr(part, name)) for name in part.__struct_fields__)
    if isinstance(part, tuple):
        return sum(map(num_bytes, part))
    return len(msgspec.json.encode(part)) if isinstance(part, Mapping) else 0
