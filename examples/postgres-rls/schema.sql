-- Row-level security that believes an assertion of Toolward's sidecar, and
-- nothing that an MCP server says. PostgreSQL 15, in UTF-8, with PL/Python and
-- Python's `cryptography`; run once, by a superuser, in a database of its own:
--
--   psql -d orders -v ON_ERROR_STOP=1 -v server_url=http://orders.demo.svc/mcp -f schema.sql
--
-- What has to stay true:
--   * Who the user is comes from toolward.verified alone. No setting is read, for
--     a server could write it.
--   * Only toolward.become() writes there, for the transaction that it runs in.
--     A transaction has one user at most, and the record ends with it.
--   * orders_server owns nothing and can create nothing, not even temporary
--     objects; what runs with more rights than its caller has a fixed search_path.
\set ON_ERROR_STOP on
BEGIN;

SELECT current_setting('server_encoding') = 'UTF8' AS utf8 \gset
\if :utf8
\else
  DO $$ BEGIN RAISE 'this database is not in UTF-8: identities could not be compared'; END $$;
\endif

CREATE EXTENSION IF NOT EXISTS plpython3u;
-- Fails here, and not at the first call, where Debian's python3-cryptography is missing.
DO $python$ import cryptography.hazmat.primitives.asymmetric.ec $python$ LANGUAGE plpython3u;

-- Owns the tables of identity. Nobody logs in as this role, nor as the next.
CREATE ROLE toolward_owner NOLOGIN;
-- What become() may do.
CREATE ROLE toolward_verifier NOLOGIN;
-- Brings the sidecars' public keys. The server must not have its password.
CREATE ROLE toolward_syncer LOGIN;
-- Owns the orders, and is under their policies all the same.
CREATE ROLE orders_owner NOLOGIN;
-- The MCP server.
CREATE ROLE orders_server LOGIN;

-- By default everybody may create temporary tables, which come before all others
-- in a search_path that does not say otherwise.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO toolward_syncer, orders_server;

CREATE SCHEMA toolward AUTHORIZATION toolward_owner;
REVOKE ALL ON SCHEMA toolward FROM PUBLIC;
GRANT USAGE ON SCHEMA toolward TO toolward_verifier, toolward_syncer, orders_server;

-- Which role is which MCP server: an assertion for one is of no use to another.
CREATE TABLE toolward.servers (
  url text PRIMARY KEY, -- status.url of the McpServer
  login name NOT NULL UNIQUE
);

-- The public keys of a server's sidecars.
CREATE TABLE toolward.keys (
  server text NOT NULL REFERENCES toolward.servers ON DELETE CASCADE,
  kid text NOT NULL,
  x bytea NOT NULL,
  y bytea NOT NULL,
  PRIMARY KEY (server, kid)
);

-- One row for each transaction in flight whose user is known. It is written and
-- removed within that transaction, so that no other one ever sees it; UNLOGGED,
-- as no transaction outlives a crash.
CREATE UNLOGGED TABLE toolward.verified (
  xact xid8 PRIMARY KEY,
  iss text NOT NULL,
  sub text NOT NULL,
  agent_iss text,
  agent_sub text,
  groups text[] NOT NULL,
  expires timestamptz NOT NULL
);

ALTER TABLE toolward.servers OWNER TO toolward_owner;
ALTER TABLE toolward.keys OWNER TO toolward_owner;
ALTER TABLE toolward.verified OWNER TO toolward_owner;
GRANT SELECT ON toolward.servers, toolward.keys TO toolward_verifier;
GRANT SELECT, INSERT, DELETE ON toolward.verified TO toolward_verifier;

-- Verifies an assertion and records whose transaction this is. Raises 28000 and
-- why, where the assertion is not good.
CREATE FUNCTION toolward.become(assertion text) RETURNS void
  LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
AS $python$
import base64
import json
import re
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

MAX_LENGTH = 16384
MAX_LIFETIME = 60
# How far the clock of a sidecar may be ahead of this one.
LEEWAY = 5


def refuse(why):
    plpy.error("assertion refused: " + why, sqlstate="28000")


def decode(text, what):
    """Base64url in the one form that an encoder writes (RFC 7515, section 2)."""
    if not re.fullmatch("[A-Za-z0-9_-]+", text) or len(text) % 4 == 1:
        refuse(what + " is not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        refuse(what + " is not base64url as an encoder writes it")
    return data


def members(pairs):
    """An object, in which no name may come twice: another reader could take the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def no_constant(name):
    raise ValueError(name + " is not JSON")


def read(part, what):
    """A JSON object."""
    try:
        value = json.loads(
            decode(part, what).decode("utf-8"),
            object_pairs_hook=members,
            parse_constant=no_constant,
        )
    except (ValueError, RecursionError):
        refuse(what + " is not JSON, or has a name twice")
    if type(value) is not dict:
        refuse(what + " is not a JSON object")
    return value


def text(value, what):
    """What names somebody, and can be stored and compared."""
    if type(value) is not str or not 1 <= len(value) <= 1024 or "\0" in value:
        refuse(what + " is not a text of 1 to 1024 characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(what + " has half of a character")
    return value


def pair(value, names, what):
    """An object of exactly these members, all of them texts."""
    if type(value) is not dict or sorted(value) != sorted(names):
        refuse(what + " does not have exactly the members " + ", ".join(names))
    return {name: text(value[name], what + "." + name) for name in names}


def moment(claims, name):
    """A NumericDate, in whole seconds."""
    value = claims.get(name)
    if type(value) is not int or not 0 < value < 2**40:
        refuse(name + " is not a time in seconds")
    return value


def only_row(query, types=(), values=()):
    rows = plpy.execute(plpy.prepare(query, list(types)), list(values))
    return rows[0] if len(rows) == 1 else None


# One transaction, one user: so no row of one is written for another by mistake.
if only_row("SELECT pg_current_xact_id_if_assigned() IS NULL AS first")["first"] is not True:
    plpy.error(
        "toolward.become() has to come before everything that writes, and once in a transaction",
        sqlstate="25001",
    )
server = only_row("SELECT url FROM toolward.servers WHERE login = session_user")
if server is None:
    plpy.error("this role is no MCP server: it is not in toolward.servers", sqlstate="42501")

if not assertion:
    refuse("there is none")
if len(assertion) > MAX_LENGTH:
    refuse("it is longer than %d characters" % MAX_LENGTH)
parts = assertion.split(".")
if len(parts) != 3:
    refuse("it does not have three parts")

header = read(parts[0], "the header")
if sorted(header) != ["alg", "kid", "typ"]:
    refuse("the header does not have exactly the members alg, kid, typ")
if header["alg"] != "ES256":
    refuse("alg is not ES256")
if header["typ"] != "toolward-identity+jwt":
    refuse("typ is not toolward-identity+jwt")
key = only_row(
    "SELECT x, y FROM toolward.keys WHERE server = $1 AND kid = $2",
    ["text", "text"],
    [server["url"], text(header["kid"], "kid")],
)
if key is None:
    refuse("no sidecar of this server has the key of kid")

signature = decode(parts[2], "the signature")
if len(signature) != 64:
    refuse("the signature does not have 64 bytes")
r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
x, y = (int.from_bytes(key[name], "big") for name in ("x", "y"))
try:
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key().verify(
        utils.encode_dss_signature(r, s),
        (parts[0] + "." + parts[1]).encode(),
        ec.ECDSA(hashes.SHA256()),
    )
except InvalidSignature:
    refuse("the signature is not of that key")

claims = read(parts[1], "the payload")
for name in ("iss", "aud"):
    if claims.get(name) != server["url"]:
        refuse(name + " is not the URL of this server")
now = time.time()
iat, nbf, exp = (moment(claims, name) for name in ("iat", "nbf", "exp"))
if exp <= now:
    refuse("it has expired")
if nbf > now + LEEWAY:
    refuse("it is not valid yet")
if iat > now + LEEWAY:
    refuse("it is of the future")
if exp - iat > MAX_LIFETIME:
    refuse("it lives longer than %d s" % MAX_LIFETIME)

if "sub_id" not in claims:
    refuse("it names no user")
user = pair(claims["sub_id"], ("format", "iss", "sub"), "sub_id")
if user["format"] != "iss_sub":
    refuse("sub_id.format is not iss_sub")
agent = {}
if "act" in claims:
    agent = pair(claims["act"], ("iss", "sub"), "act")
groups = claims.get("groups", [])
if type(groups) is not list:
    refuse("groups is not a list")
groups = [text(group, "a group") for group in groups]

plpy.execute(
    plpy.prepare(
        "INSERT INTO toolward.verified"
        " VALUES (pg_current_xact_id(), $1, $2, $3, $4, $5, to_timestamp($6))",
        ["text", "text", "text", "text", "text[]", "float8"],
    ),
    [user["iss"], user["sub"], agent.get("iss"), agent.get("sub"), groups, exp],
)
$python$;

-- Removes the record when the transaction commits. Whoever has it removed earlier
-- (SET CONSTRAINTS) loses the user for the rest of the transaction.
CREATE FUNCTION toolward.forget() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  DELETE FROM toolward.verified AS v WHERE v.xact = NEW.xact;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER forget AFTER INSERT ON toolward.verified
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION toolward.forget();

CREATE TYPE toolward.identity AS (
  iss text, -- of the user: a name means something together with its issuer only
  sub text,
  agent_iss text,
  agent_sub text,
  groups text[]
);

-- Whose transaction this is; NULL throughout where nobody is known, or the
-- assertion has expired by now. In parallel plans it runs in the leader, whose
-- transaction it is.
CREATE FUNCTION toolward.identity() RETURNS toolward.identity
  LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT v.iss, v.sub, v.agent_iss, v.agent_sub, v.groups
  FROM toolward.verified AS v
  WHERE v.xact = pg_current_xact_id_if_assigned() AND v.expires > clock_timestamp();
END;

-- Replaces the keys of a server by those of a JWK set, the `jwks.json` of the
-- ConfigMap NAME-toolward-identity. One key that is not right, and nothing changes.
CREATE FUNCTION toolward.set_keys(server text, jwks jsonb) RETURNS void
  LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
AS $python$
import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric import ec


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def key(jwk):
    """The coordinates of a P-256 key whose id is its thumbprint (RFC 7638)."""
    named = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    if (named["kty"], named["crv"]) != ("EC", "P-256") or jwk.get("alg", "ES256") != "ES256":
        raise ValueError("it is not for ES256")
    point = [base64.urlsafe_b64decode(named[name] + "=") for name in ("x", "y")]
    if [(len(number), encode(number)) for number in point] != [(32, named["x"]), (32, named["y"])]:
        raise ValueError("x and y are not 32 bytes each, in base64url")
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
    if jwk["kid"] != encode(hashlib.sha256(canonical.encode()).digest()):
        raise ValueError("its kid is not its thumbprint")
    # Fails where this is no point of the curve.
    x, y = (int.from_bytes(number, "big") for number in point)
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    return jwk["kid"], point[0], point[1]


keys = {}
try:
    for jwk in json.loads(jwks)["keys"]:
        kid, x, y = key(jwk)
        keys[kid] = (x, y)
except (AttributeError, KeyError, TypeError, ValueError) as error:
    plpy.error("key %d is not taken, nor any other: %r" % (len(keys), error), sqlstate="22023")

plpy.execute(
    plpy.prepare("DELETE FROM toolward.keys AS k WHERE k.server = $1", ["text"]), [server]
)
insert = plpy.prepare(
    "INSERT INTO toolward.keys VALUES ($1, $2, $3, $4)", ["text", "text", "bytea", "bytea"]
)
for kid, (x, y) in keys.items():
    plpy.execute(insert, [server, kid, x, y])
$python$;

ALTER FUNCTION toolward.become OWNER TO toolward_verifier;
ALTER FUNCTION toolward.forget OWNER TO toolward_verifier;
ALTER TYPE toolward.identity OWNER TO toolward_owner;
ALTER FUNCTION toolward.identity OWNER TO toolward_verifier;
ALTER FUNCTION toolward.set_keys OWNER TO toolward_owner;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA toolward FROM PUBLIC;
GRANT EXECUTE ON FUNCTION toolward.become, toolward.identity TO orders_server;
GRANT EXECUTE ON FUNCTION toolward.set_keys TO toolward_syncer;

INSERT INTO toolward.servers VALUES (:'server_url', 'orders_server');

-- The application. A server sets what it may choose; whose an order is, it may not.
CREATE SCHEMA shop AUTHORIZATION orders_owner;
GRANT USAGE ON SCHEMA shop TO orders_server;
GRANT USAGE ON SCHEMA toolward TO orders_owner;
GRANT EXECUTE ON FUNCTION toolward.identity TO orders_owner;

CREATE TABLE shop.orders (
  -- Not a number: it would tell how many orders others have.
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  owner_iss text NOT NULL DEFAULT (toolward.identity()).iss,
  owner_sub text NOT NULL DEFAULT (toolward.identity()).sub,
  agent_iss text DEFAULT (toolward.identity()).agent_iss,
  agent_sub text DEFAULT (toolward.identity()).agent_sub,
  item text NOT NULL CHECK (length(item) BETWEEN 1 AND 200),
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
  placed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON shop.orders (owner_iss, owner_sub);
ALTER TABLE shop.orders OWNER TO orders_owner;
ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE shop.orders FORCE ROW LEVEL SECURITY;

-- For everything that one can do with rows, and for all roles. The subquery is
-- evaluated once in a statement, and not for each row.
CREATE POLICY own_orders ON shop.orders
  USING ((owner_iss, owner_sub) = (SELECT i.iss, i.sub FROM toolward.identity() AS i))
  WITH CHECK ((owner_iss, owner_sub) = (SELECT i.iss, i.sub FROM toolward.identity() AS i));

GRANT SELECT, DELETE, INSERT (item, quantity), UPDATE (item, quantity) ON shop.orders TO orders_server;

COMMIT;
