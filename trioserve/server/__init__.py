"""The serve loop: accept, connections, signals, drain, on hypercorn's protocol core and under Trio.

* ``run.run(app, settings)`` binds, serves until the drain is over and returns the exit code: ``trioserve serve``.
* ``app = hypercorn_hook.install_hypercorn_hook(make_app, load_settings)`` in a module, imported by hypercorn, makes
  ``hypercorn module:app`` run the same loop, whatever its ``-k`` says.
* ``serve.serve(...)`` is the loop itself, for those who have a Trio loop already, such as tests.

One connection, from the socket inwards::

    serve.Server         accepts, drains, ends
    connection.Connection   one socket: reads, writes with a deadline, closes without losing a reply
    http1, http2         hypercorn's protocols, with its faults fixed at their cause
    exchange.Exchange    one ASGI call: its messages, its cancellation, its line in the access log

The room knows ``engine.lifecycle``, ``settings`` and ``errors``, and nothing of what is served.
"""
