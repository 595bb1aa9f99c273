r"""What frames hold, as far as replicas must agree on it: whose copy they are, and patched bytes.

A frame's content is an origin (the frame it was copied from, or itself) and the bytes written to
it since the kernel was linked. Two frames are byte-identical when both agree. Data that the kernel
never replicates is left out.

>>> contents = Contents()
>>> contents.write(7, 5, b"\xcc")
>>> contents.copy(7, 107, pages=1)
>>> contents.same(7, 107, pages=1)
True
>>> contents.write(107, 5, b"\x90")
>>> contents.same(7, 107, pages=1), contents.read(107, 5, 2)
(False, (144, None))
"""

from dataclasses import dataclass, field


@dataclass
class Contents:
    """Frames that are copies, and bytes that differ from what was linked; None is as linked."""

    origin: dict[int, int] = field(default_factory=dict)  # first frame of a copy -> of its source
    patched: dict[int, dict[int, int]] = field(default_factory=dict)  # pfn -> offset -> byte

    def copy(self, source: int, target: int, pages: int) -> None:
        """Copy whole frames."""
        self.origin[target] = self.origin.get(source, source)
        if not self.patched:
            return
        self._forget_patches(target, pages)
        for pfn in self._patched_in(source, pages):
            self.patched[pfn - source + target] = dict(self.patched[pfn])

    def write(self, pfn: int, offset: int, data: bytes) -> None:
        """Write bytes within one frame."""
        self.patched.setdefault(pfn, {}).update(enumerate(data, offset))

    def read(self, pfn: int, offset: int, size: int) -> tuple[int | None, ...]:
        """Return `size` bytes, None for one as linked."""
        page = self.patched.get(pfn, {})
        return tuple(page.get(at) for at in range(offset, offset + size))

    def same(self, left: int, right: int, pages: int) -> bool:
        """Tell whether two runs of frames are byte-identical."""
        if self.origin.get(left, left) != self.origin.get(right, right):
            return False
        ours = {pfn - left: self.patched[pfn] for pfn in self._patched_in(left, pages)}
        theirs = {pfn - right: self.patched[pfn] for pfn in self._patched_in(right, pages)}
        return ours == theirs

    def drop(self, pfn: int, pages: int) -> None:
        """Forget frames that are freed or overwritten as a whole."""
        self.origin.pop(pfn, None)
        self._forget_patches(pfn, pages)

    def _forget_patches(self, pfn: int, pages: int) -> None:
        for page in self._patched_in(pfn, pages):
            del self.patched[page]

    def _patched_in(self, pfn: int, pages: int) -> list[int]:
        if pages <= len(self.patched):
            return [page for page in range(pfn, pfn + pages) if page in self.patched]
        return [page for page in self.patched if pfn <= page < pfn + pages]
