"""E2B's protocol, so that its official clients work unmodified.

`app` decides what a request is for: the REST control plane (`control`), or one sandbox's own services (`plane`), which
the api answers itself: no daemon of theirs runs inside. Nothing is enforced here that is not enforced below: each
call becomes one of the engine's verbs. An option that cannot be honoured is refused.
"""
