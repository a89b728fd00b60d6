"""The serve loop: accept, connections, signals, drain; on hypercorn's protocol core and under Trio.

* ``run.run(app, settings)`` binds, serves until the drain is over and returns the exit code: ``trioserve serve``.
* ``hypercorn_hook.install_hypercorn_hook(make_app, load_settings)`` gives a module its ``app``, so that
  ``hypercorn module:app`` runs the same loop, whatever its ``-k`` says.
* ``serve.serve(app, settings, listeners)`` is the loop itself, for those who run Trio already, such as tests.

From the socket inwards::

    sockets, signals        bound sockets; notices to end
    serve                   accepts, drains, ends
    connection.Connection   one socket: reads, writes with a deadline, closes without losing a reply
    http1, http2            hypercorn's protocols, with their faults fixed at their cause
    usual                   the plainest requests of HTTP/1.1 and their answers, from bytes to bytes, without h11
    target, proxies         what a request's path is, and whose word counts for its client
    exchange.Exchange       one ASGI call: its messages, its cancellation, its line in the access log

The room knows ``engine.lifecycle``, ``settings`` and ``errors``, and nothing of what is served.
"""
