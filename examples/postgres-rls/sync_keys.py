"""Brings the public keys of a server's sidecars from the cluster to the database.

    sync_keys.py orders-toolward-identity http://orders.demo.svc/mcp

A ConfigMap that is mounted is a minute old when a new replica asks for its first
row, so this watches it. The database is named by DATABASE_URL, with the role
`toolward_syncer`. Whatever goes wrong, the database keeps the keys that it has,
and this tries again.
"""

import json
import os
import ssl
import sys
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psycopg

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/"
NO_KEYS = '{"keys": []}'


def account(name: str) -> str:
    with open(ACCOUNT + name, encoding="utf-8") as file:
        return file.read()


def ask(name: str, **parameters: str) -> Any:
    """Asks the API server for this ConfigMap, and for nothing else."""
    parameters["fieldSelector"] = f"metadata.name={name}"
    path = f"/api/v1/namespaces/{account('namespace')}/configmaps?{urlencode(parameters)}"
    # The token is read each time: the kubelet renews it.
    headers = {"Authorization": f"Bearer {account('token')}"}
    request = Request("https://kubernetes.default.svc" + path, headers=headers)
    # Longer than a watch may be silent.
    return urlopen(request, timeout=330, context=ssl.create_default_context(cafile=ACCOUNT + "ca.crt"))


def key_sets(name: str) -> Iterator[str]:
    """The set of keys as it is, and as it becomes, until the API server ends the watch."""
    with ask(name) as answer:
        listed = json.load(answer)
    found = listed["items"]
    yield found[0]["data"]["jwks.json"] if found else NO_KEYS
    version = listed["metadata"]["resourceVersion"]
    with ask(name, watch="true", resourceVersion=version, timeoutSeconds="300") as events:
        for line in events:
            event = json.loads(line)
            if event["type"] == "ERROR":
                return
            yield NO_KEYS if event["type"] == "DELETED" else event["object"]["data"]["jwks.json"]


# A database that went away without a word must not keep the next set from being written.
BOUNDED = {
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "options": "-c statement_timeout=10000",
}


def write(server: str, keys: str) -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], **BOUNDED) as connection:
        connection.execute("SELECT toolward.set_keys(%s, %s::jsonb)", [server, keys])
    kids = [key["kid"] for key in json.loads(keys)["keys"]]
    print(f"{server}: {len(kids)} keys: {' '.join(kids)}", flush=True)


def main() -> None:
    name, server = sys.argv[1:]
    while True:
        try:
            for keys in key_sets(name):
                write(server, keys)
        except (OSError, HTTPException, KeyError, TypeError, ValueError, psycopg.Error) as error:
            print(f"trying again: {error!r}", file=sys.stderr, flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()
