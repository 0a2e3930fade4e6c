"""Programs whose output is known beforehand, and that count their own starts."""

import hashlib
from collections.abc import Iterator

import attrs

#: Text with characters of one to three bytes, and bytes that are no text. The same in any Python.
GENERATOR = """
import random
def pieces(seed, count, longest):
    source = random.Random(seed)
    for number in range(count):
        size = int(source.random() * longest)
        if number % 7 == 3:
            yield source.getrandbits(8 * size + 8).to_bytes(size + 1, "little")
        else:
            yield ("%d %s %r\\n" % (number, "\\u20ac\\u00df" * (size // 5), source.random())).encode()
"""
WITNESS = "starts"


@attrs.frozen
class Output:
    """*count* pieces of about *longest* bytes at most; after every *burst* of them a short pause."""

    seed: int = 7
    count: int = 1000
    longest: int = 200
    burst: int = 100
    pause: float = 0.02

    @property
    def code(self) -> str:
        """The program. It appends a byte to the file ``starts`` when it starts."""
        return f"""{GENERATOR}
import os, time
with open("{WITNESS}", "ab", 0) as witness: witness.write(b"x")
for number, piece in enumerate(pieces({self.seed}, {self.count}, {self.longest})):
    while piece: piece = piece[os.write(1, piece):]
    if number % {self.burst} == 0: time.sleep({self.pause})
"""

    @property
    def data(self) -> bytes:
        return b"".join(self._pieces())

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        names: dict[str, object] = {}
        exec(GENERATOR, names)
        pieces = names["pieces"](self.seed, self.count, self.longest)  # type: ignore[operator]
        yield from pieces
