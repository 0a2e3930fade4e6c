"""Images and their aliases, as agents report them."""

from collections.abc import Collection, Sequence

from ..domain.ids import AgentId
from ..wire.reports import ImageReport
from .pool import Conn

FORGET_OFFERS = """
DELETE FROM agent_images WHERE agent_id = $1
   AND (name, architecture) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""
OFFER = """
INSERT INTO agent_images AS o (agent_id, name, architecture, aliases)
SELECT $1, m.name, m.architecture, ARRAY(SELECT jsonb_array_elements_text(m.claim -> 'aliases'))
  FROM unnest($2::text[], $3::text[], $4::jsonb[]) AS m (name, architecture, claim)
ON CONFLICT (agent_id, name, architecture) DO UPDATE SET aliases = excluded.aliases
 WHERE o.aliases <> excluded.aliases
"""

# In order of names, so that agents that report at once do not deadlock.
UPSERT_IMAGES = """
INSERT INTO images AS i (name, architecture, registry, image, tag, config_digest, size_bytes, accelerators,
                         labels, resources)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                     $8::text[], $9::jsonb[], $10::jsonb[])
    AS m (name, architecture, registry, image, tag, config_digest, size_bytes, accelerators, labels,
          resources)
 ORDER BY m.name, m.architecture
ON CONFLICT (name, architecture) DO UPDATE
   SET config_digest = excluded.config_digest, size_bytes = excluded.size_bytes,
       accelerators = excluded.accelerators, labels = excluded.labels, resources = excluded.resources
 WHERE (i.config_digest, i.size_bytes, i.labels, i.resources)
       IS DISTINCT FROM (excluded.config_digest, excluded.size_bytes, excluded.labels, excluded.resources)
"""

ALIASES_OF = "SELECT DISTINCT unnest(aliases) AS alias FROM agent_images WHERE agent_id = $1"

# Held to the commit, and taken before the offers are read: of two reports that move one alias the second
# sees what the first has offered.
LOCK_ALIASES = "SELECT pg_advisory_xact_lock(4202)"

# The newest version, number by number (3.11 is newer than 3.9), of those that agents that live claim it for.
# When none does, an alias stays where it is: whoever asks for it is told that the image is offered nowhere.
POINT_ALIASES = r"""
INSERT INTO image_aliases AS a (alias, image)
SELECT DISTINCT ON (m.alias) m.alias, i.id
  FROM unnest($1::text[]) AS m (alias)
  JOIN agent_images o ON m.alias = ANY (o.aliases)
  JOIN agents g ON g.id = o.agent_id AND g.status = 'ALIVE'
  JOIN images i ON i.name = o.name AND i.architecture = o.architecture
 ORDER BY m.alias,
       ARRAY(SELECT v.found[1]::numeric
               FROM regexp_matches(i.tag, '\d+', 'g') WITH ORDINALITY AS v (found, n) ORDER BY v.n) DESC,
       i.name DESC, i.architecture DESC
ON CONFLICT (alias) DO UPDATE SET image = excluded.image WHERE a.image <> excluded.image
"""


async def store_images(conn: Conn, agent_id: AgentId, images: Sequence[ImageReport]) -> None:
    """Make *images* what the agent offers, and known to everybody; rows that are the same are not written.

    The agent is ALIVE, and its report differs from its last: of agents whose images of one name differ, the
    one that changed last says what the image is.
    """
    before = await aliases_of(conn, agent_id)
    names = [image.name for image in images]
    architectures = [image.architecture for image in images]
    await conn.execute(FORGET_OFFERS, agent_id, names, architectures)
    aliases = [sorted(set(image.aliases)) for image in images]
    claims = [{"aliases": each} for each in aliases]
    await conn.execute(OFFER, agent_id, names, architectures, claims)
    parts = [split_name(name) for name in names]
    await conn.execute(
        UPSERT_IMAGES,
        names,
        architectures,
        [registry for registry, _, _ in parts],
        [path for _, path, _ in parts],
        [tag for _, _, tag in parts],
        [image.digest for image in images],
        [image.size_bytes for image in images],
        [image.labels.get("ai.backend.accelerators") for image in images],
        [image.labels for image in images],
        [image.resources for image in images],
    )
    await point_aliases(conn, before.union(*aliases))


async def aliases_of(conn: Conn, agent_id: AgentId) -> frozenset[str]:
    """The aliases that the agent claims for its images."""
    return frozenset(row["alias"] for row in await conn.fetch(ALIASES_OF, agent_id))


async def point_aliases(conn: Conn, aliases: Collection[str]) -> None:
    """Point *aliases* to the newest image that an ALIVE agent claims them for."""
    if aliases:
        await conn.execute(LOCK_ALIASES)
        await conn.execute(POINT_ALIASES, sorted(aliases))


def split_name(name: str) -> tuple[str, str, str]:
    """(registry, path, tag) of a canonical name ``registry/path:tag``; parts that are missing are empty."""
    registry, slash, rest = name.partition("/")
    if not slash:
        registry, rest = "", name
    path, _, tag = rest.partition(":")
    return registry, path, tag
