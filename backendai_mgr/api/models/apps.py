"""Parameters of services (api-sessions §5.7, §5.8)."""

import json
from typing import Annotated, Any

import attrs

from ...domain.errors import InvalidParameters
from ...services.apps import StartApp
from ..decoding import INVALID, Param, clean_text

#: Variables or arguments of one start, and characters of one of them.
MOST = 64
LONGEST_NAME = 64
LONGEST = 4096


def _name(text: str) -> None:
    if not 0 < len(text.encode()) <= LONGEST_NAME:
        raise ValueError(f"value is not 1 to {LONGEST_NAME} bytes long")


def _port(port: int) -> None:
    if not 1024 <= port <= 65535:
        raise ValueError("value is not between 1024 and 65535")


def _json(text: str) -> None:
    _object(text)


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a parameter holds as text. Raises ValueError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("value is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("value is not a JSON object")
    if len(value) > MOST:
        raise ValueError(f"value has more than {MOST} members")
    return value


def _texts(value: Any) -> list[str]:
    """The words of an argument: none, one, or several. Raises ValueError."""
    words = [] if value is None else value if isinstance(value, list) else [value]
    if len(words) > MOST or not all(isinstance(word, str) and len(word) <= LONGEST for word in words):
        raise ValueError("value is not null, a string, or a list of strings")
    return [_clean(word) for word in words]


def _clean(text: str) -> str:
    if "\0" in text:
        raise ValueError("value has a NUL in it")
    return clean_text(text)


@attrs.frozen(kw_only=True)
class OpenApp:
    """The query of the proxy websockets."""

    app: Annotated[str, Param("app", "service", check=_name)]
    port: Annotated[int | None, Param("port", check=_port)] = None
    envs: Annotated[str | None, Param("envs", check=_json)] = None
    arguments: Annotated[str | None, Param("arguments", check=_json)] = None

    def request(self) -> StartApp:
        """What to start."""
        return _request(self.app, self.port, self.envs, self.arguments)


@attrs.frozen(kw_only=True)
class StartService:
    """The body of ``start-service``."""

    app: Annotated[str, Param("app", "service", check=_name)]
    login_session_token: str | None = None
    port: Annotated[int | None, Param("port", check=_port)] = None
    envs: Annotated[str | None, Param("envs", check=_json)] = None
    arguments: Annotated[str | None, Param("arguments", check=_json)] = None

    def request(self) -> StartApp:
        """What to start."""
        return _request(self.app, self.port, self.envs, self.arguments)


@attrs.frozen(kw_only=True)
class ShutdownService:
    """The body of ``shutdown-service``."""

    service_name: Annotated[str, Param("service_name", check=_name)]


def _request(app: str, port: int | None, envs: str | None, arguments: str | None) -> StartApp:
    faults: dict[str, str] = {}
    given: dict[str, dict[str, list[str]]] = {"envs": {}, "arguments": {}}
    for field, text in (("envs", envs), ("arguments", arguments)):
        try:
            for name, value in _object(text or "{}").items():
                words = _texts(value)
                if field == "envs" and len(words) != 1:
                    raise ValueError("value is not a string")
                given[field][_clean(name)] = words
        except ValueError as error:
            faults[field] = str(error)
    if faults:
        raise InvalidParameters(INVALID, faults)
    return StartApp(
        service=app,
        port=port,
        arguments=given["arguments"],
        envs={name: words[0] for name, words in given["envs"].items()},
    )
