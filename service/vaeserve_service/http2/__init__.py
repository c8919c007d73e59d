"""gRPC over HTTP/2 on asyncio's own sockets, a leaner transport than grpcio's server (docs/decisions/transport.md).

`frames` and `fields` are bytes. A `connection` has `stream`s, whose data goes by an `outflow` and comes by an `inflow`,
and a `lifetime`. An `exchange` is a call on a stream: `messages` after a `head`. A `peer` is a client, with its
connection and its socket, and the `server` accepts them.
"""
