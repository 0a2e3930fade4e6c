"""The display of values that can show themselves as more than text.

Loaded by `host` at the first such value (see there for what holds of all modules in this folder).  A run's
last value, or what `sys.displayhook` is called with, is shown as notebooks do: as the first of FORMATS that
its class offers and that does not give None.  Each is text or bytes, or a pair of that and metadata.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Tuple

LIMIT = 8 << 20  # characters
FORMATS = (
    ("_repr_html_", "text/html"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_svg_", "image/svg+xml"),
)


def rich(value: "Any") -> "Optional[Tuple[str, Any]]":
    """Return the type and the data of what a value shows; None if it is only text after all."""
    if isinstance(value, type):
        return None  # a class itself: its methods need an instance
    for name, kind in FORMATS:
        method = getattr(type(value), name, None)
        if method is None:
            continue
        data = method(value)
        if isinstance(data, tuple) and data:
            data = data[0]
        if isinstance(data, (str, bytes)):
            return kind, data
    return None


def payload(kind: str, data: "Any", to_base64: "Callable[..., bytes]") -> "Tuple[str, Optional[str]]":
    """Return the stream and its payload; None in its place if that is too large."""
    if kind == "text/html":
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        return "html", text if len(text) <= LIMIT else None
    if isinstance(data, str) and kind != "image/svg+xml":  # base64 already
        encoded = "".join(data.split())
    else:
        encoded = (
            to_base64(data.encode("utf-8", "replace") if isinstance(data, str) else data).decode().strip()
        )
    if len(encoded) > LIMIT - 100:
        return "media", None
    return "media", '["%s", "%s"]' % (kind, encoded)


def too_large(kind: str) -> str:
    return "[%s is not shown: it is larger than %d MiB]\n" % (kind, LIMIT >> 20)
