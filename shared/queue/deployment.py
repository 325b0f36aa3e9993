"""Two deployments must not share one Redis: each would run the other's jobs and store the other's prices.

A deployment is its database. Its workers claim Redis and renew the claim, which expires a minute after the last one.
"""

import asyncpg
from arq.connections import ArqRedis

from shared.errors import StorageUnavailable
from shared.storage.database import Pool, fetch_row

_KEY = "deployment"
_CLAIM_SECONDS = 60

_CLAIM = """
local holder = redis.call('get', KEYS[1]) or ARGV[1]
if holder == ARGV[1] then
    redis.call('set', KEYS[1], holder, 'ex', ARGV[2])
end
return holder
"""


class ForeignRedis(Exception):
    """Another deployment uses this Redis."""

    def __init__(self, holder: str, own: str) -> None:
        super().__init__(
            f"REDIS_URL leads to a Redis that another deployment uses: its database is {holder}, ours is {own} "
            "(system identifier/database/schema). Give each deployment a Redis database of its own, such as "
            "redis://host:6379/1. If the other one is gone, this one can start a minute after its last worker's end."
        )


async def select_deployment(pool: Pool) -> str:
    """The database's identity, which a promoted standby shares. Raises `StorageUnavailable`."""
    sql = """
        select format('%s/%s/%s', system_identifier, current_database(), current_schema()) as deployment
        from pg_control_system()
    """
    try:
        row = await fetch_row(pool, sql)
    except asyncpg.PostgresError as error:  # some hosted servers do not allow it
        raise StorageUnavailable("The database does not say which one it is.") from error
    return str(row["deployment"] if row else "")


async def claim_redis(redis: ArqRedis, deployment: str) -> None:
    """Claim Redis, or renew the claim. Raises `ForeignRedis`."""
    holder: bytes = await redis.execute_command("EVAL", _CLAIM, 1, _KEY, deployment, _CLAIM_SECONDS)
    if holder.decode() != deployment:
        raise ForeignRedis(holder.decode(), deployment)


async def check_claim(redis: ArqRedis, deployment: str) -> None:
    """As `claim_redis`, for a process that runs no jobs and so claims nothing."""
    claim: bytes | None = await redis.get(_KEY)
    if claim and claim.decode() != deployment:
        raise ForeignRedis(claim.decode(), deployment)
