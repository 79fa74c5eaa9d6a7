"""An MCP server with orders in PostgreSQL, which sees the orders of its caller only.

    server.py stdio
    server.py http --port 8080        # http://127.0.0.1:8080/mcp

The database is named by DATABASE_URL. This program decides nothing: it hands the
sidecar's assertion on, and the database verifies it. Were there no `become`, or a
wrong one, there would be no rows; a WHERE that is forgotten shows no more either.
"""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from psycopg import AsyncConnection
from psycopg.errors import InvalidAuthorizationSpecification
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field


class Order(BaseModel):
    id: str
    item: str
    quantity: int


@asynccontextmanager
async def connections(server: MCPServer) -> AsyncIterator[AsyncConnectionPool]:
    """Callers share connections: what the database knows of one ends with a transaction."""
    pool = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=4, open=False)
    async with pool:
        yield pool


server = MCPServer(name="orders", version="1.0.0", log_level="WARNING", lifespan=connections)


def assertion(ctx: Context) -> str | None:
    """What the sidecar says of the caller of this request."""
    if ctx.headers is not None:
        return ctx.headers.get("Toolward-Identity")
    return (ctx.request_context.meta or {}).get("toolward.dev/identity")


@asynccontextmanager
async def as_caller(ctx: Context) -> AsyncIterator[AsyncConnection]:
    """A transaction in which the database knows who calls. It commits at its end."""
    pool: AsyncConnectionPool = ctx.request_context.lifespan_context
    async with pool.connection() as connection:
        try:
            # A parameter, so that it is not in the logs as part of a statement.
            await connection.execute("SELECT toolward.become(%s)", [assertion(ctx)])
        except InvalidAuthorizationSpecification as error:
            raise ToolError(str(error.diag.message_primary).removeprefix("plpy.Error: ")) from None
        yield connection


@server.tool()
async def list_orders(ctx: Context) -> list[Order]:
    """Lists your orders, the oldest first."""
    async with as_caller(ctx) as connection:
        cursor = connection.cursor(row_factory=class_row(Order))
        await cursor.execute("SELECT id::text, item, quantity FROM shop.orders ORDER BY placed_at, id")
        return await cursor.fetchall()


@server.tool()
async def place_order(
    item: Annotated[str, Field(min_length=1, max_length=200)],
    quantity: Annotated[int, Field(ge=1, le=1000)],
    ctx: Context,
) -> Order:
    """Places an order."""
    async with as_caller(ctx) as connection:
        cursor = connection.cursor(row_factory=class_row(Order))
        await cursor.execute(
            "INSERT INTO shop.orders (item, quantity) VALUES (%s, %s) RETURNING id::text, item, quantity",
            [item, quantity],
        )
        return await cursor.fetchone()


def main() -> None:
    arguments = argparse.ArgumentParser(description="An MCP server with orders.")
    transports = arguments.add_subparsers(dest="transport", required=True)
    transports.add_parser("stdio")
    http = transports.add_parser("http")
    http.add_argument("--port", type=int, required=True)
    chosen = arguments.parse_args()
    if chosen.transport == "stdio":
        server.run("stdio")
    else:
        # On 127.0.0.1: only the sidecar, which shares this pod's network, comes in.
        server.run("streamable-http", port=chosen.port)


if __name__ == "__main__":
    main()
