"""Images and their aliases, as agents report them."""

from collections.abc import Sequence

from ..domain.ids import AgentId
from ..wire.reports import ImageReport
from .pool import Conn

FORGET_OFFERS = """
DELETE FROM agent_images WHERE agent_id = $1
   AND (name, architecture) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""
OFFER = """
INSERT INTO agent_images (agent_id, name, architecture)
SELECT $1, m.name, m.architecture FROM unnest($2::text[], $3::text[]) AS m (name, architecture)
ON CONFLICT DO NOTHING
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

# An alias moves to another image only when no agent offers its old one any more.
UPSERT_ALIASES = """
INSERT INTO image_aliases AS a (alias, image)
SELECT DISTINCT ON (m.alias) m.alias, i.id
  FROM unnest($1::text[], $2::text[], $3::text[]) AS m (alias, name, architecture)
  JOIN images i ON i.name = m.name AND i.architecture = m.architecture
 ORDER BY m.alias, i.name DESC
ON CONFLICT (alias) DO UPDATE SET image = excluded.image
 WHERE NOT EXISTS (
       SELECT 1 FROM agent_images o JOIN images i ON i.name = o.name AND i.architecture = o.architecture
        WHERE i.id = a.image)
"""


async def store_images(conn: Conn, agent_id: AgentId, images: Sequence[ImageReport]) -> None:
    """Make *images* what the agent offers, and known to everybody; rows that are the same are not written."""
    names = [image.name for image in images]
    architectures = [image.architecture for image in images]
    await conn.execute(FORGET_OFFERS, agent_id, names, architectures)
    if not images:
        return
    await conn.execute(OFFER, agent_id, names, architectures)
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
    aliases = [(alias, image.name, image.architecture) for image in images for alias in image.aliases]
    if aliases:
        await conn.execute(UPSERT_ALIASES, *(list(column) for column in zip(*aliases, strict=True)))


def split_name(name: str) -> tuple[str, str, str]:
    """(registry, path, tag) of a canonical name ``registry/path:tag``; parts that are missing are empty."""
    registry, slash, rest = name.partition("/")
    if not slash:
        registry, rest = "", name
    path, _, tag = rest.partition(":")
    return registry, path, tag
