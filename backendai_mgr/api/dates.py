"""Dates of signed requests, read as liberally as clients write them (api-sessions §2.4)."""

from datetime import UTC, datetime, timedelta, timezone, tzinfo

from dateutil import parser

from ..domain.errors import MalformedAuth

#: Hours east of UTC and the abbreviations that stand for them. EDT is where the original has it.
_ABBREVIATIONS = {
    -10: "HST",
    -9: "AKST",
    -8: "PST AKDT",
    -7: "PDT MST",
    -6: "CST MDT",
    -5: "EST EDT CDT PET COT",
    -3.5: "NST",
    -3: "ADT ART BRT",
    -2.5: "NDT",
    0: "UTC GMT UT WET Z",
    1: "CET WEST MEZ WAT",
    2: "CEST EET MESZ CAT SAST",
    3: "AST EEST MSK EAT TRT",
    4: "GST",
    5: "PKT",
    5.5: "IST",
    5.75: "NPT",
    6: "BST",
    7: "ICT WIB",
    8: "HKT SGT PHT MYT AWST WITA",
    9: "JST KST WIT",
    9.5: "ACST",
    10: "AEST",
    10.5: "ACDT",
    11: "AEDT",
    12: "NZST",
    13: "NZDT",
}
_ZONES = {
    name: timezone(timedelta(hours=hours))
    for hours, names in _ABBREVIATIONS.items()
    for name in names.split()
}
#: The military zones: A to M (without J) lie to the east, N to Y to the west.
_ZONES |= {letter: timezone(timedelta(hours=hours)) for hours, letter in enumerate("ABCDEFGHIKLM", 1)}
_ZONES |= {letter: timezone(timedelta(hours=-hours)) for hours, letter in enumerate("NOPQRSTUVWXY", 1)}
_LONGEST = 64


def parse_date(text: str, now: datetime) -> datetime:
    """The moment that *text* names, in its own zone (UTC when it names none).

    ISO 8601, RFC 1123 and what else `dateutil` understands; what is missing (such as the year) is today's.
    `MalformedAuth` when nothing can be made of it.
    """
    try:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            if len(text) > _LONGEST:
                raise
            today = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
            moment = parser.parse(text, default=today, tzinfos=_zone)
        offset = moment.utcoffset()
    except (ValueError, OverflowError):
        raise MalformedAuth("Date/time sync error") from None
    return moment.replace(tzinfo=UTC) if offset is None else moment


def _zone(name: str | None, offset: float | None) -> tzinfo | None:
    """The zone that a date names by abbreviation or offset (seconds); ValueError for an unknown one."""
    if offset is not None:
        return timezone(timedelta(seconds=offset))
    if name is None:
        return None
    try:
        return _ZONES[name.upper()]
    except KeyError:
        raise ValueError(f"unknown time zone {name!r}") from None
