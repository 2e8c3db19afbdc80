"""The HTTP server of `musicgen-jax serve`, on top of a `Scheduler`. It needs the extra `[serve]`.

about        what a page says about its model
settings     what the server allows
errors failures, in OpenAI's shape
fields       the fields of a request: names, types, other names
asked        from a request's body to a checked `Request`
body, form   read a body within bounds
uploads      audio that comes with a request
listener a ticket for asyncio
sound        answers that are audio, whole or streamed
page         the page of `musicgen-jax app`
jobs         long pieces that nobody holds a connection for
service      what all routes share
routes the address of each answer
guard        around all routes: host, origin, token, one log line
pace         how long until a place in the queue is free
metrics      for Prometheus
openapi      the description of all this for programs
connection limits for slow connections, and for too many
run          the process: socket, signals, the end
"""
